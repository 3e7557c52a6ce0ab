"""Looking events up, adding some, and checking what is published and subscribed to."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import logging
import os
import pickle
import signal
import threading
from types import MappingProxyType
from typing import Any
from uuid import UUID

import locking
import pytest
from pydantic import BaseModel

from message_hub_sync.catalogue import (
    Catalogue,
    CharacterCreated,
    CharacterUpdated,
    EventType,
    campaign,
    character,
)
from message_hub_sync.envelope.encode import encode_payload
from message_hub_sync.envelope.names import event_name, validate_event_pattern, validate_event_type
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError

CHARACTER_SERVICE = "character-service"
SECRET = "swordfish"


class QuestStarted(BaseModel):
    """A quest has begun.

    More about it.
    """

    quest_id: str
    reward: int | None = None


class OtherQuestStarted(BaseModel):
    quest_id: str


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue((*character.EVENT_TYPES, *campaign.EVENT_TYPES))


@pytest.fixture
def created(catalogue: Catalogue) -> EventType:
    found = catalogue.get("character.created")
    assert found is not None
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "message_hub_sync.catalogue"]


# --- event types -----------------------------------------------------------------------------------


def test_an_event_type_stands_wherever_its_name_does(catalogue: Catalogue, created: EventType) -> None:
    assert str(created) == f"{created}" == event_name(created) == "character.created"
    assert validate_event_type(created) == validate_event_pattern(created) == "character.created"
    assert created == "character.created"
    assert created != "character.updated"
    assert created != 7
    assert {created: 1}["character.created"] == 1  # type: ignore[index]  # that is the point
    assert catalogue.get(created) is created
    assert created in catalogue
    assert EventType(created, "", None, (), CharacterCreated).name == "character.created"
    assert json.loads(encode_payload({"next": created, created: [created]}, 100)) == {
        "next": "character.created",
        "character.created": ["character.created"],
    }


def test_an_event_type_cannot_be_changed_and_its_copies_are_alike(created: EventType) -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        created.publisher = "other"
    for same in (copy.copy(created), copy.deepcopy(created), pickle.loads(pickle.dumps(created))):
        assert same.as_dict() == created.as_dict()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": "created"}, "event_type"),
        ({"name": "character.*"}, "event_type"),
        ({"publisher": "Character Service"}, "publisher"),
        ({"subscribers": ("llm service",)}, "subscriber"),
        ({"subscribers": "llm-service"}, "^subscribers must be a list of service names, not 'llm-service'$"),
        ({"model": dict}, "^model of character.created must be a class derived from BaseModel, not the class dict$"),
    ],
)
def test_an_event_type_that_cannot_be_is_refused(created: EventType, changed: dict[str, Any], named: str) -> None:
    given = {name: getattr(created, name) for name in ("name", "description", "publisher", "subscribers", "model")}
    with pytest.raises(MessageValidationError, match=named):
        EventType(**{**given, **changed})


# --- looking up ------------------------------------------------------------------------------------


def test_an_unknown_name_is_not_found(catalogue: Catalogue) -> None:
    assert catalogue.get("quest.started") is None
    assert "quest.started" not in catalogue


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("character.craeted", "character.created"),
        ("campaign.theme.changed", "campaign.theme_changed"),
        ("charakter.*", "character.*"),
        ("weather.forecast", None),
    ],
)
def test_the_nearest_name_is_the_one_most_likely_meant(catalogue: Catalogue, name: str, nearest: str | None) -> None:
    assert catalogue.nearest(name) == nearest


def test_a_service_has_what_it_publishes_and_what_it_subscribes_to(catalogue: Catalogue) -> None:
    assert [event.name for event in catalogue.of_service("llm-service")] == [
        "character.created",
        "character.refined",
        "campaign.theme_changed",
    ]
    assert catalogue.of_service("quest-service") == ()


def test_a_model_knows_its_event_type_as_a_class_an_instance_and_a_derived_class(
    catalogue: Catalogue, created: EventType
) -> None:
    class Derived(CharacterCreated):
        """A service's own."""

    assert catalogue.event_type_of(CharacterCreated) is created
    assert catalogue.event_type_of(CharacterCreated(character_id="a")) is created
    assert catalogue.event_type_of(Derived) is created


def test_a_model_of_no_event_type_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(MessageValidationError, match=r"QuestStarted must be the model of an event type: .* register"):
        catalogue.event_type_of(QuestStarted)


def test_a_model_of_two_event_types_must_be_published_by_name(catalogue: Catalogue) -> None:
    catalogue.register("quest.started", QuestStarted)
    catalogue.register("quest.resumed", QuestStarted)

    with pytest.raises(MessageValidationError, match=r"one event type, not of quest\.started, quest\.resumed: "):
        catalogue.event_type_of(QuestStarted)


def test_the_package_offers_the_methods_of_the_process_wide_catalogue() -> None:
    package = importlib.import_module("message_hub_sync.catalogue")

    assert package.get("character.created") is package.catalogue.get("character.created")
    assert package.event_type_of(CharacterCreated) == "character.created"
    assert package.register == package.catalogue.register


# --- registering -----------------------------------------------------------------------------------


def test_a_service_adds_its_own_event_type(catalogue: Catalogue) -> None:
    added = catalogue.register("quest.started", QuestStarted, publisher="quest-service", subscribers=["llm-service"])

    assert catalogue.get("quest.started") is added
    assert added.as_dict() == {
        "name": "quest.started",
        "description": "A quest has begun",
        "publisher": "quest-service",
        "subscribers": ["llm-service"],
        "schema": QuestStarted.model_json_schema(),
    }
    assert list(catalogue)[-1] is added
    assert "quest-service" in catalogue.services()


def test_registering_decorates_a_model_too(catalogue: Catalogue) -> None:
    @catalogue.register("quest.ended", publisher="quest-service", description="A quest is over")
    class QuestEnded(BaseModel):
        quest_id: str

    assert QuestEnded(quest_id="q").quest_id == "q"
    found = catalogue.event_type_of(QuestEnded)
    assert (found.name, found.publisher, found.description) == ("quest.ended", "quest-service", "A quest is over")


def test_a_duplicate_with_another_model_is_an_error_that_names_both(catalogue: Catalogue) -> None:
    first = catalogue.register("quest.started", QuestStarted)

    with pytest.raises(MessageHubConfigurationError, match=r"QuestStarted.*OtherQuestStarted"):
        catalogue.register("quest.started", OtherQuestStarted)
    assert catalogue.get("quest.started") is first
    with pytest.raises(MessageValidationError):
        catalogue.event_type_of(OtherQuestStarted)


def test_registering_the_same_model_again_changes_nothing(catalogue: Catalogue) -> None:
    first = catalogue.register("quest.started", QuestStarted, publisher="quest-service")

    assert catalogue.register("quest.started", QuestStarted, publisher="quest-service") is first
    assert catalogue.register("quest.started", QuestStarted) is first
    assert catalogue.event_type_of(QuestStarted) is first


@pytest.mark.parametrize(
    "changed",
    [{"publisher": "other-service"}, {"subscribers": ["llm-service"]}, {"description": "Something else"}],
)
def test_registering_the_same_model_with_other_facts_is_an_error(catalogue: Catalogue, changed: dict[str, Any]) -> None:
    catalogue.register("quest.started", QuestStarted, publisher="quest-service")

    with pytest.raises(MessageHubConfigurationError, match=next(iter(changed))):
        catalogue.register("quest.started", QuestStarted, **changed)


def test_of_threads_that_register_one_name_a_single_one_wins(catalogue: Catalogue) -> None:
    models = [type(f"Model{number}", (BaseModel,), {}) for number in range(16)]
    barrier = threading.Barrier(len(models))
    won: list[EventType] = []
    lost: list[MessageHubConfigurationError] = []

    def register(model: type[BaseModel]) -> None:
        barrier.wait(timeout=30)
        try:
            won.append(catalogue.register("quest.started", model))
        except MessageHubConfigurationError as error:
            lost.append(error)

    threads = [threading.Thread(target=register, args=(model,), daemon=True) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(won) == 1
    assert len(lost) == 15
    assert catalogue.get("quest.started") is won[0]


# --- publishing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        {"character_id": "a", "class": "wizard"},
        {"id": UUID(int=1)},
        CharacterCreated(character_id="a"),
        MappingProxyType({"character_id": "a"}),
        dataclasses.make_dataclass("Plain", ["character_id"])("a"),
        {"character_id": "a", "campaign_id": "c", "level": "3"},
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_a_payload_that_fits_passes_and_is_sent_as_it_was_given(catalogue: Catalogue, payload: Any) -> None:
    assert catalogue.check_publish("character.created", payload, CHARACTER_SERVICE) is payload
    assert catalogue.check_publish("character.created", payload, CHARACTER_SERVICE, strict=True) is payload


def test_objects_inside_a_payload_pass_when_their_json_fits(catalogue: Catalogue) -> None:
    class Theme(BaseModel):
        mood: str

    class Own(BaseModel):
        campaign_id: UUID
        theme: Theme

    own = Own(campaign_id=UUID(int=1), theme=Theme(mood="grim"))
    nested = {"campaign_id": "c", "theme": Theme(mood="grim")}
    for payload in (own, nested, MappingProxyType(nested)):
        assert catalogue.check_publish("campaign.theme_changed", payload, "campaign-service") is payload


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"name": SECRET}, "character_id: Field required"),
        ({"character_id": 7, "name": SECRET}, "character_id"),
        ({"character_id": "a", "level": SECRET}, "level"),
        (CharacterCreated.model_construct(name=SECRET), "character_id"),  # type: ignore[call-arg]
        ([SECRET], "payload"),
        (SECRET, "payload"),
        (object(), "payload"),
        (None, "payload"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_payload_that_does_not_fit_is_refused_by_field_and_never_by_value(
    catalogue: Catalogue, payload: Any, field: str
) -> None:
    with pytest.raises(MessageValidationError, match=f"character.created.*{field}") as caught:
        catalogue.check_publish("character.created", payload, CHARACTER_SERVICE)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_payload_of_another_event_is_refused_though_its_fields_would_fit(catalogue: Catalogue) -> None:
    with pytest.raises(MessageValidationError, match=r"CharacterUpdated.*character\.updated"):
        catalogue.check_publish("character.created", CharacterUpdated(character_id="a"), CHARACTER_SERVICE)


def test_an_unknown_event_passes_with_one_warning_that_suggests_the_nearest(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    payload = {"anything": 1}
    for _ in range(3):
        assert catalogue.check_publish("character.craeted", payload, CHARACTER_SERVICE) is payload

    assert len(warnings(caplog)) == 1
    assert "character.craeted" in warnings(caplog)[0]
    assert "did you mean character.created?" in warnings(caplog)[0]

    catalogue.check_publish("weather.forecast", payload, CHARACTER_SERVICE)
    assert len(warnings(caplog)) == 2
    assert "did you mean" not in warnings(caplog)[1]


def test_threads_that_publish_one_unknown_event_warn_once(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    barrier = threading.Barrier(8)

    class Warned(dict[str, object]):
        """Lets every thread see that nobody has warned yet before any of them goes on."""

        def __contains__(self, name: object) -> bool:
            found = super().__contains__(name)
            barrier.wait(timeout=30)
            return found

    catalogue._warned = Warned()

    def publish() -> None:
        catalogue.check_publish("quest.started", {}, "quest-service")

    threads = [threading.Thread(target=publish, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(warnings(caplog)) == 1


def test_names_made_at_run_time_do_not_pile_up(catalogue: Catalogue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "message_hub_sync.catalogue")
    small = Catalogue()
    for number in range(1_100):
        small.check_publish(f"sensor.n{number}", {}, "sensor-service")

    assert len(warnings(caplog)) == 1_000


def test_a_name_that_is_none_is_refused_even_where_unknown_events_pass(catalogue: Catalogue) -> None:
    for name in ("Character Created\n", "character.*", None, ["character.created"]):
        with pytest.raises(MessageValidationError, match="event_type"):
            catalogue.check_publish(name, {}, CHARACTER_SERVICE)  # type: ignore[arg-type]


def test_an_event_registered_after_its_warning_is_validated(catalogue: Catalogue) -> None:
    catalogue.check_publish("quest.started", {}, "quest-service")
    catalogue.register("quest.started", QuestStarted)

    with pytest.raises(MessageValidationError, match="quest_id"):
        catalogue.check_publish("quest.started", {}, "quest-service")


def test_strict_refuses_an_unknown_event_and_suggests_the_nearest(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue.check_publish("character.craeted", {}, CHARACTER_SERVICE)
    caplog.clear()

    with pytest.raises(MessageValidationError, match=r"did you mean character\.created\?"):
        catalogue.check_publish("character.craeted", {}, CHARACTER_SERVICE, strict=True)
    assert warnings(caplog) == []


def test_strict_refuses_an_event_that_the_catalogue_gives_to_another_service(catalogue: Catalogue) -> None:
    payload = {"character_id": "a"}

    with pytest.raises(MessageValidationError, match="must be published by character-service, not by llm-service"):
        catalogue.check_publish("character.created", payload, "llm-service", strict=True)
    assert catalogue.check_publish("character.created", payload, "llm-service") is payload


def test_strict_lets_anyone_publish_what_no_service_is_listed_to_publish(catalogue: Catalogue) -> None:
    payload = {"campaign_id": "c"}

    assert catalogue.check_publish("campaign.validated", payload, "campaign-service", strict=True) is payload


# --- subscribing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    ["character.created", "character.*", "*.created", "#", "*.*", "character.#", "#.created", "character.created.#"],
)
def test_a_pattern_that_matches_something_known_is_not_warned_about(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    catalogue.check_subscribe(pattern)

    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("character.craeted", "did you mean character.created?"),
        ("charakter.*", "did you mean character.*?"),
        ("*.*.*", ""),
        ("*", ""),
        ("weather.#", ""),
    ],
)
def test_a_pattern_that_matches_nothing_known_is_warned_about(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture, pattern: str, hint: str
) -> None:
    catalogue.check_subscribe(pattern)

    assert len(warnings(caplog)) == 1
    assert pattern in warnings(caplog)[0]
    assert hint in warnings(caplog)[0]
    assert "catalogue.register(" in warnings(caplog)[0]

    catalogue.check_subscribe(pattern)
    assert len(warnings(caplog)) == 1, "once is enough"

    catalogue.check_publish("weather.of_late", {}, CHARACTER_SERVICE)
    assert len(warnings(caplog)) == 2, "publishing is warned about by itself"


def test_an_event_that_is_merely_of_the_same_kind_is_not_suggested(catalogue: Catalogue) -> None:
    catalogue.register("order.placed", QuestStarted)

    assert catalogue.nearest("order.failed") is None
    assert catalogue.nearest("order.palced") == "order.placed"


def test_a_refused_payload_is_told_the_fields_of_its_model(catalogue: Catalogue) -> None:
    catalogue.register("quest.started", QuestStarted)

    with pytest.raises(MessageValidationError, match=r"\(its fields: quest_id \(required\), reward\)"):
        catalogue.check_publish("quest.started", {}, CHARACTER_SERVICE)


def test_what_is_no_pattern_cannot_be_subscribed_to(catalogue: Catalogue) -> None:
    with pytest.raises(MessageValidationError):
        catalogue.check_subscribe("Character.created")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_forked_while_a_thread_registers_can_register_and_list() -> None:
    catalogue = Catalogue()
    held, done = threading.Event(), threading.Event()

    def register() -> None:
        with locking.held(catalogue._lock):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=register)
    thread.start()
    assert held.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends the child if it waits for the lock of a thread that it does not have
        catalogue.register("quest.started", CharacterCreated)
        os._exit(0 if [str(one) for one in catalogue] == ["quest.started"] else 1)
    done.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
