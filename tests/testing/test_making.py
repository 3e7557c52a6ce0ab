"""Events and messages for unit tests of handlers."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from message_hub_sync import Event, Message, MessageValidationError
from message_hub_sync.catalogue import CharacterCreated
from message_hub_sync.testing import make_event, make_message


def test_an_event_of_a_catalogued_payload() -> None:
    event = make_event(CharacterCreated(character_id="42", name="Mira"))
    assert type(event.payload) is CharacterCreated
    assert (event.event_type, event.source, event.type) == ("character.created", "character-service", "event")
    assert event.payload.name == "Mira"
    assert event.id != make_event(CharacterCreated(character_id="42")).id


def test_an_event_by_name_with_all_that_a_test_may_choose() -> None:
    message_id = uuid4()
    event = make_event(
        "quest.started",
        {"number": 1},
        source="quest-service",
        correlation_id="abc",
        message_id=message_id,
        headers={"tenant": "x"},
    )
    assert (event.event_type, event.payload, event.source) == ("quest.started", {"number": 1}, "quest-service")
    assert (event.correlation_id, event.id, event.headers["tenant"]) == ("abc", message_id, "x")


def test_a_message_is_a_mapping_too() -> None:
    message = make_message({"action": "welcome"}, source="map-service", ttl=None, priority=3)
    assert isinstance(message, Message)
    assert message["payload"] == {"action": "welcome"}
    assert (message.destination, message.source, message.ttl, message.priority) == (
        *("service-under-test", "map-service", None, 3),
    )


def test_a_model_of_ones_own_stays_that_model() -> None:
    class Welcome(BaseModel):
        name: str

    assert make_message(Welcome(name="Mira")).payload == Welcome(name="Mira")
    event: Event[Welcome] = make_event("quest.started", Welcome(name="Mira"))
    assert event.payload.name == "Mira"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("character.created", {"name": "nobody"}), "character_id"),
        (("Quest Started", {}), "event_type must"),
        (("quest.started", "text"), "payload"),
        (("character.*", {}), "event_type must"),
    ],
)
def test_an_event_that_no_service_can_send_is_refused(arguments: Any, text: str) -> None:
    with pytest.raises(MessageValidationError, match=text):
        make_event(*arguments)
