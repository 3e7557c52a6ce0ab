"""The catalogue at work: what may be published, and what typed handlers get, wildcards and retries included."""

from __future__ import annotations

from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub
from pydantic import BaseModel

from message_hub_sync import (
    ActionPayload,
    Event,
    EventType,
    Message,
    MessageHubClient,
    MessageValidationError,
    RetryPolicy,
    catalogue,
)
from message_hub_sync.catalogue import CampaignThemeChanged, CharacterCreated, CharacterLeveledUp, Payload


class QuestBegun(Payload):
    """A quest has begun."""

    quest_id: str


class OfACharacter(BaseModel):
    """What the events of a character have in common."""

    character_id: str


@pytest.fixture(autouse=True)
def quest_begun(monkeypatch: pytest.MonkeyPatch) -> EventType:
    """An event of a service's own, in the process's catalogue for the time of one test."""
    for name in ("_by_name", "_by_model", "_warned"):
        monkeypatch.setattr(catalogue.catalogue, name, dict(getattr(catalogue.catalogue, name)))
    catalogue.register("quest.begun", publisher="quest-service")(QuestBegun)
    return catalogue.event_type_of(QuestBegun)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("character.created", {"name": "no id"}), "character_id"),
        ((catalogue.get("character.created"), {"name": "no id"}), "character_id"),
        (("character.created", CharacterLeveledUp(character_id="1")), "character.leveled_up"),
        (("campaign.theme_changed", {"id": 7}), "CampaignThemeChanged: id: Input should be a valid string"),
        (("quest.begun", {}), "quest_id"),
        ((CharacterCreated.model_construct(),), "character_id"),
        (
            (CharacterCreated(character_id="1"), {"character_id": "1"}),
            "payload must be left out if event_type is an object of CharacterCreated: it is the payload",
        ),
        ((OfACharacter(character_id="1"),), "OfACharacter must be the model of an event type: "),
    ],
    ids=str,
)
def test_a_catalogued_event_that_does_not_fit_is_refused_and_nothing_is_sent(
    hub: Hub, collected: Collector, given: tuple[Any, ...], says: str
) -> None:
    hub.client("campaign").subscribe(["#"], collected)
    publisher = hub.client("character")

    with pytest.raises(MessageValidationError, match=says):
        publisher.publish_event(*given)
    with pytest.raises(MessageValidationError):
        publisher.publish_events([("character.deleted", {"id": "1"}), given if len(given) > 1 else given[0]])

    publisher.publish_event("character.deleted", {"id": "last"})
    assert collected.stays(1, 0.05) == ['{"id":"last"}']


def test_an_unknown_event_is_published_with_one_warning_that_suggests_the_nearest(
    hub: Hub, collected: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    misspelt = f"charakter.created_{hub.name('x')[2:5]}"
    hub.client("campaign").subscribe([misspelt], collected)
    caplog.clear()
    publisher = hub.client("character")

    publisher.publish_events([(misspelt, {"n": 1}), (misspelt, {"n": 2})])
    publisher.publish_event(misspelt, {"n": 3})

    collected.stays(3, 0.05)
    (warning,) = [record.getMessage() for record in caplog.records if misspelt in record.getMessage()]
    assert "did you mean character.created?" in warning


def test_a_strict_client_publishes_only_what_the_catalogue_gives_its_service(
    hub: Hub, collected: Collector, quest_begun: EventType
) -> None:
    hub.client("campaign").subscribe(["#"], collected)
    # The catalogue knows services by their own names.
    with MessageHubClient("character-service", hub.url, strict_catalogue=True) as strict:
        for call in (strict.publish_event, lambda *event: strict.publish_events([event])):
            with pytest.raises(
                MessageValidationError, match=r"did you mean character\.created\?.*strict_catalogue is on"
            ):
                call("charakter.created", {"character_id": "1"})
            with pytest.raises(MessageValidationError, match="published by campaign-service, not by character-service"):
                call("campaign.theme_changed", {"campaign_id": "1"})
            with pytest.raises(MessageValidationError, match="published by quest-service"):
                call(quest_begun, {"quest_id": "1"})
        strict.publish_event(CharacterCreated(character_id="1"))
        strict.publish_event("campaign.validated", {"campaign_id": "nobody's"})

    assert collected.stays(2, 0.05) == ['{"character_id":"1"}', '{"campaign_id":"nobody\'s"}']


def test_what_the_model_does_not_know_arrives_too(hub: Hub, collected: Collector) -> None:
    def handle(event: Event[CharacterCreated]) -> None:
        collected(event)

    hub.client("campaign").subscribe(["character.created"], handle)

    hub.client("character").publish_event("character.created", {"id": "42", "mood": {"now": ["grim"]}})

    (event,) = collected.wait()
    assert (event.payload.character_id, event.payload.mood) == ("42", {"now": ["grim"]})


def test_several_typed_callbacks_of_one_event_type_share_one_queue(hub: Hub, collected: Collector) -> None:
    client = hub.client("campaign")

    def text(event: str) -> None:
        collected(("text", event))

    def model(created: CharacterCreated) -> None:
        collected(("model", created.character_id))

    def decoded(payload: dict[str, Any], event: Event) -> None:
        collected((event.event_type, payload.pop("character_id")))

    def envelope(event: Event[OfACharacter]) -> None:
        collected(("envelope", event.payload.character_id))

    def raw(body: bytes) -> None:
        collected(("raw", body))

    for callback in (text, model, decoded, envelope, raw):
        client.subscribe(catalogue.get("character.created"), callback)

    hub.client("character").publish_event("character.created", {"character_id": "42"})

    assert collected.stays(5, 0.05) == [
        ("text", '{"character_id":"42"}'),
        ("model", "42"),
        ("character.created", "42"),
        ("envelope", "42"),
        ("raw", b'{"character_id":"42"}'),
    ]
    assert client.get_queue_stats()[f"{hub.name('campaign')}.character.created"]["consumers"] == 1


@pytest.mark.parametrize("pattern", ["character.*", "character.#", "#", "*.leveled_up"])
def test_a_wildcards_typed_handler_sees_on_a_retry_what_was_published(
    hub: Hub, collected: Collector, pattern: str
) -> None:
    def fail_once(who: OfACharacter, event: Event) -> None:
        collected((event.event_type, who.character_id, event.id, event.headers.get("x-attempts")))
        if "x-attempts" not in event.headers:
            raise OSError("not yet")

    subscription = hub.client("campaign").subscribe([pattern], fail_once)
    publisher = hub.client("character")

    sent = publisher.publish_event(CharacterLeveledUp(character_id="42"))

    assert collected.stays(2) == [
        ("character.leveled_up", "42", sent, None),
        ("character.leveled_up", "42", sent, 1),
    ]
    assert hub.depth(f"{subscription.queues[0]}.retry.1000") == 0


def test_an_event_that_a_wildcards_model_does_not_fit_is_dead_lettered_as_what_it_was(
    hub: Hub, collected: Collector
) -> None:
    def handle(who: OfACharacter) -> None:
        collected(who.character_id)

    subscription = hub.client("campaign").subscribe(["#"], handle, retry=RetryPolicy.none())
    publisher = hub.client("character")

    publisher.publish_event(CampaignThemeChanged(campaign_id="7"))
    publisher.publish_event(CharacterCreated(character_id="42"))

    assert collected.wait() == ["42"]
    dead = hub.take(f"{subscription.queues[0]}.dead")
    assert dead.properties.headers["event_type"] == "campaign.theme_changed"
    assert dead.properties.headers["x-original-routing-key"] == "campaign.theme_changed"
    assert "character_id" in dead.properties.headers["x-reason"]


def test_the_guides_shape_of_a_message_is_sent_and_received_as_a_model(hub: Hub, collected: Collector) -> None:
    def handle(message: Message[ActionPayload]) -> ActionPayload:
        collected(message)
        return ActionPayload(action="done", data=message.payload.data)

    hub.client("llm").subscribe_messages(handle)

    reply = hub.client("character").request(hub.name("llm"), ActionPayload(action="refine", data={"id": "42"}))

    (message,) = collected.wait()
    assert (message.payload.action, message.payload.version, message.payload.data) == ("refine", "1.0", {"id": "42"})
    assert message.payload.timestamp.tzinfo is not None
    assert (reply.payload["action"], reply.payload["data"]) == ("done", {"id": "42"})


def test_an_envelope_that_was_received_cannot_be_changed(hub: Hub, collected: Collector) -> None:
    def handle(event: Event[CharacterCreated]) -> None:
        collected(event)

    hub.client("campaign").subscribe(["character.created"], handle)
    hub.client("campaign").subscribe_messages(collected)
    sender = hub.client("character")
    sender.publish_event(CharacterCreated(character_id="42"))
    sender.send_message(hub.name("campaign"), {"n": 1})

    for envelope in collected.wait(2):
        for name in ("id", "payload", "correlation_id", "headers", "anything"):
            with pytest.raises(ValueError, match=r"frozen|no field"):
                setattr(envelope, name, "other")
    typed = next(item for item in collected.items if isinstance(item, Event))
    with pytest.raises(ValueError, match="frozen"):
        typed.payload.character_id = "other"
