"""The envelope as a value: frozen, and a message a mapping besides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from message_hub_sync.envelope.decode import event_from_wire, message_from_wire
from message_hub_sync.envelope.encode import event_properties, message_properties
from message_hub_sync.envelope.values import Message
from message_hub_sync.errors import MessageHubConfigurationError


def a_message(**changed: Any) -> Message:
    fields = {"source": "a", "destination": "b", "correlation_id": "c", "priority": 3, "ttl": 5, **changed}
    return message_from_wire(message_properties(**fields), "b", {"k": "v"})


def test_a_message_is_a_read_only_mapping_of_the_wires_names() -> None:
    message = a_message()
    assert list(message) == list(message.keys()) == [
        "id", "type", "source", "destination", "correlation_id", "payload", "timestamp", "ttl", "priority",
    ]  # fmt: skip
    assert len(message) == 9
    assert message["correlation_id"] == message.correlation_id == message.get("correlation_id") == "c"
    assert dict(message.items()) == {key: message[key] for key in message}
    assert next(iter(message.values())) == message.id
    assert "payload" in message
    assert "headers" not in message
    assert message.get("headers", 7) == 7
    with pytest.raises(KeyError):
        message["reply_to"]


def test_an_envelope_cannot_be_changed() -> None:
    event = event_from_wire(event_properties(source="a", event_type="b.c"), "b.c", {})
    for envelope in (a_message(), event):
        with pytest.raises(ValidationError):
            setattr(envelope, "source", "other")  # noqa: B010  # mypy knows it cannot be done


def test_a_message_made_by_hand_cannot_be_replied_to_and_says_why() -> None:
    with pytest.raises(MessageHubConfigurationError, match="only a message received by a handler can be replied to"):
        a_message().reply({})


def test_a_dumped_envelope_has_the_fixed_fields_only() -> None:
    assert a_message(headers={"tenant": "x"}, reply_to="q").model_dump().keys() == set(a_message().keys())
    event = event_from_wire(event_properties(source="a", event_type="b.c"), "b.c", {})
    assert event.model_dump().keys() == {
        "id", "type", "source", "event_type", "correlation_id", "timestamp", "payload"
    }  # fmt: skip
