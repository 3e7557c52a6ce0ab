"""What a caller's type checker knows of sending. Checked by mypy --strict, never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel
from typing_extensions import assert_type

from message_hub_sync import (
    ActionPayload,
    CircuitBreakerConfig,
    Event,
    HealthStatus,
    Message,
    MessageHubClient,
    MessageHubDeliveryError,
    RetryPolicy,
    bound_correlation,
    current_correlation_id,
)
from message_hub_sync.catalogue import CharacterCreated, catalogue


class Quest(BaseModel):
    title: str


@dataclass
class Note:
    text: str


client = MessageHubClient(
    service_name="character-service",
    rabbitmq_url=["amqp://one", "amqp://two"],
    auth_key="key",
    circuit_breaker_config=CircuitBreakerConfig(failure_threshold=5, reset_timeout=60, half_open_timeout=30),
    retry=RetryPolicy(),
    queue_type="quorum",
)
assert_type(client, MessageHubClient)
with client as entered:
    assert_type(entered, MessageHubClient)
assert_type(client.service_name, str)

assert_type(client.send_message("image-service", {"action": "paint"}), UUID)
assert_type(client.send("image-service", {"action": "paint"}, uuid4(), 300, 5), UUID)
assert_type(client.send_message("image-service", ActionPayload(action="paint"), ttl=None, priority=9), UUID)
assert_type(client.send_message("image-service", Note("by dataclass"), headers={"tenant": "7"}, timeout=2.5), UUID)
assert_type(client.publish_event("character.created", {"character_id": "42"}), UUID)
assert_type(client.publish("character.created", Quest(title="any model"), correlation_id="a text"), UUID)
assert_type(client.publish_event(CharacterCreated(character_id="42")), UUID)
known = catalogue.get("character.created")
if known is not None:
    assert_type(client.publish_event(known, {"character_id": "42"}, message_id=uuid4()), UUID)
assert_type(client.send_messages([("image-service", {"n": 1}), ("llm-service", Note("two"))]), list[UUID])
assert_type(client.publish_events(("quest.begun", {"n": n}) for n in range(3)), list[UUID])

reply = client.request("campaign-service", {"action": "players"}, timeout=5)
assert_type(reply.id, UUID)
assert_type(reply.source, str)
assert_type(reply.correlation_id, str)

with bound_correlation() as correlation_id:
    assert_type(correlation_id, str)
assert_type(current_correlation_id(), "str | None")

try:
    client.connect()
except MessageHubDeliveryError as error:
    assert_type(error.message_id, "UUID | None")
    assert_type(error.reason, str)
    assert_type([failure.index for failure in error.failures], list[int])

assert_type(client.get_health_status(), HealthStatus)
assert_type(client.get_health_status()["queues"]["q"]["error"], str | None)
client.get_health_status()["conected"]  # type: ignore[typeddict-item]
assert_type(client.get_queue_stats(), dict[str, dict[str, int]])


def of_an_event(event: Event, typed: Event[Quest]) -> None:
    assert_type(event.payload, dict[str, Any])
    assert_type(typed.payload, Quest)
    assert_type(typed.event_type, str)
    client.publish_event(event)


def of_a_message(message: Message, typed: Message[Quest]) -> None:
    assert_type(message.payload, dict[str, Any])
    assert_type(typed.payload, Quest)
    assert_type(message.ttl, "float | None")
    assert_type(message.reply({"players": 5}), UUID)
    client.send_message(message)


# What is wrong is refused: an ignore that is not needed is an error.
MessageHubClient()  # type: ignore[call-arg]
MessageHubClient("character-service", queue_type="lazy")  # type: ignore[arg-type]
client.send_message("image-service", {}, ttl="soon")  # type: ignore[arg-type]
client.send_message("image-service", {}, priority="high")  # type: ignore[arg-type]
client.send_message(b"image-service", {})  # type: ignore[arg-type]
client.publish_event("character.created", {}, message_id="text")  # type: ignore[arg-type]
client.request("campaign-service", {}, timeout=None)  # type: ignore[arg-type]


def from_env() -> None:
    client = MessageHubClient.from_env(service_name="s", credentials=lambda: ("user", "password"))
    assert_type(client, MessageHubClient)
    MessageHubClient.from_env(conect_timeout=1)  # type: ignore[call-arg]
