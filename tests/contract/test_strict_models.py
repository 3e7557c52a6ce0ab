"""A model sees the payload as JSON, as Model.model_validate_json does: at publishing and in every kind of handler."""

from __future__ import annotations

import enum
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from collector import Collector
from contract.conftest import Hub
from pydantic import BaseModel, ConfigDict, Field, computed_field

from message_hub_sync import Event, Message, MessageValidationError
from message_hub_sync.catalogue import reference
from message_hub_sync.testing import MessageHubTestFramework


class Alignment(enum.Enum):
    GOOD = "good"


class Place(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    at: tuple[int, float]


class Strict(BaseModel):
    """All that JSON has no type for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: UUID
    born: datetime
    day: date
    alignment: Alignment
    gold: Decimal
    place: Place
    names: frozenset[str]
    lasts: timedelta
    raw: bytes


class Named(BaseModel):
    """Sent by its alias, accepted by its alias only."""

    model_config = ConfigDict(strict=True, extra="forbid")

    identity: UUID = Field(alias="characterId")


class Inbound(BaseModel):
    """Accepts another name than it sends."""

    identity: int = Field(validation_alias="characterId")


class Summed(BaseModel):
    """Sends a field that it refuses."""

    model_config = ConfigDict(extra="forbid")

    a: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.a * 2


class Noted(Event[Strict]):
    note: str = "mine"


TEXT: Any = "x"
STRICT = Strict(
    id=UUID(int=7),
    born=datetime(2026, 1, 2, 3, 4, 5, 678, timezone.utc),
    day=date(2026, 1, 2),
    alignment=Alignment.GOOD,
    gold=Decimal("1.10"),
    place=Place(at=(1, 2.5)),
    names=frozenset({"Mira"}),
    lasts=timedelta(seconds=90),
    raw=b"\x01ab",
)
AS_JSON: dict[str, Any] = STRICT.model_dump(mode="json")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known = reference.catalogue
    monkeypatch.setattr(known, "_by_name", dict(known._by_name))
    monkeypatch.setattr(known, "_by_model", dict(known._by_model))
    models: dict[str, type[BaseModel]] = {"strict": Strict, "named": Named, "inbound": Inbound, "summed": Summed}
    for name, model in models.items():
        known.register(f"{name}.sent", model)


def annotated(collected: Collector, kind: Any) -> Any:
    def handle(received: Any) -> None:
        collected(getattr(received, "payload", received))

    handle.__annotations__["received"] = kind
    return handle


@pytest.mark.parametrize("kind", [Strict, Event[Strict]], ids=["model", "envelope"])
@pytest.mark.parametrize("payload", [STRICT, AS_JSON, dict(STRICT)], ids=["model", "JSON", "objects"])
def test_an_event_of_a_strict_model_arrives_as_it_was_sent(
    hub: Hub, collected: Collector, kind: Any, payload: Any
) -> None:
    hub.client("campaign").subscribe(["strict.sent"], annotated(collected, kind))

    hub.client("character").publish_event("strict.sent", payload)

    assert collected.wait() == [STRICT]


@pytest.mark.parametrize("kind", [Strict, Message[Strict]], ids=["model", "envelope"])
def test_a_message_of_a_strict_model_arrives_as_it_was_sent(hub: Hub, collected: Collector, kind: Any) -> None:
    hub.client("campaign").subscribe_messages(annotated(collected, kind))

    hub.client("character").send_messages([(hub.name("campaign"), STRICT), (hub.name("campaign"), AS_JSON)])

    assert collected.wait(2) == [STRICT, STRICT]


def test_an_envelope_keeps_its_other_fields(hub: Hub, collected: Collector) -> None:
    def handle(event: Event[Strict], whole: Event) -> None:
        collected((event, whole))

    hub.client("campaign").subscribe(["strict.sent"], handle)
    identity = hub.client("character").publish_event(STRICT, correlation_id="abc", headers={"tenant": "x"})

    (event, whole) = collected.wait()[0]
    assert type(event) is Event[Strict]
    assert (event.id, event.correlation_id, event.headers["tenant"]) == (identity, "abc", "x")
    assert event.model_dump(exclude={"payload"}) == whole.model_dump(exclude={"payload"})
    assert whole.payload == AS_JSON


def test_an_envelope_of_a_plain_type_is_validated_as_json_too(hub: Hub, collected: Collector) -> None:
    hub.client("campaign").subscribe(["plain.sent"], annotated(collected, Event[dict[str, tuple[UUID, ...]]]))

    hub.client("character").publish_event("plain.sent", {"ids": [UUID(int=1)]})

    assert collected.wait() == [{"ids": (UUID(int=1),)}]


def test_a_class_derived_from_an_envelope_keeps_its_own_fields(hub: Hub, collected: Collector) -> None:
    hub.client("campaign").subscribe(["strict.sent"], annotated(collected, Noted))

    hub.client("character").publish_event(STRICT)

    assert collected.wait() == [STRICT]


def test_what_a_model_sends_by_its_alias_it_accepts(hub: Hub, collected: Collector) -> None:
    hub.client("campaign").subscribe(["named.sent"], annotated(collected, Event[Named]))

    hub.client("character").publish_event(Named(characterId=UUID(int=3)))

    assert collected.wait() == [Named(characterId=UUID(int=3))]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (Inbound(characterId=3), r"characterId: Field required"),
        (Summed(a=1), r"total: Extra inputs are not permitted"),
        (Summed.model_construct(a=TEXT), r"a: Input should be a valid integer"),
        (Strict.model_construct(**{**dict(STRICT), "day": "yesterday"}), r"day: "),
    ],
    ids=["another name", "a computed field", "constructed", "constructed, strict"],
)
def test_what_its_own_model_would_refuse_is_refused_when_it_is_published(hub: Hub, payload: Any, why: str) -> None:
    client = hub.client("character")

    with pytest.raises(MessageValidationError, match=why):
        client.publish_event(payload)
    with pytest.raises(MessageValidationError, match=rf"item 1: .*{why}"):
        client.publish_events([STRICT, payload])


def test_deep_payloads_that_pydantics_parser_refuses_reach_a_model(hub: Hub, collected: Collector) -> None:
    class Deep(BaseModel):
        inside: Any

    deep: Any = "end"
    for _ in range(230):
        deep = [deep]
    hub.client("campaign").subscribe_messages(annotated(collected, Message[Deep]))

    hub.client("character").send_message(hub.name("campaign"), {"inside": deep})

    assert collected.wait() == [Deep(inside=deep)]


def test_a_strict_model_in_the_test_kit() -> None:
    with MessageHubTestFramework() as framework:
        campaign = framework.create_mock_service("campaign-service")
        campaign.subscribe_to_events(["strict.sent"])
        character = framework.client("character-service")
        with framework.intercept(character) as traffic:
            character.publish_event(STRICT)

            assert traffic.published(Strict).payload == STRICT
        assert campaign.expect_event(Strict).payload == STRICT
