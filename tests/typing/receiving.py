"""What a caller's type checker knows of receiving. Checked by mypy --strict, never run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from typing_extensions import TypedDict, assert_type

from message_hub_sync import (
    Event,
    HandlerGroup,
    MemoryDeduplication,
    Message,
    MessageHubClient,
    MessageHubRejectError,
    MessageHubRetryError,
    RetryPolicy,
    Subscription,
)
from message_hub_sync.catalogue import CharacterCreated, catalogue


class Quest(BaseModel):
    title: str


class Sheet(TypedDict):
    name: str


client = MessageHubClient("campaign-service", "memory://")


def as_text(event_data: str) -> None: ...


def as_dict(event: dict[str, Any], envelope: Event) -> None: ...


def as_event(event: Event[CharacterCreated]) -> None:
    assert_type(event.payload, CharacterCreated)
    assert_type(event.payload.name, "str | None")
    if event.redelivered:
        raise MessageHubRetryError(delay=5)
    raise MessageHubRejectError("not ours")


def as_typed_dict(sheet: Sheet) -> None: ...


subscription = client.subscribe(
    event_types=["character.created", "campaign.*"],
    callback=as_text,
    durable=True,
    prefetch=10,
    workers=2,
    retry=RetryPolicy(),
    deduplicate=MemoryDeduplication(),
)
assert_type(subscription, Subscription)
assert_type(subscription.event_types, tuple[str, ...])
assert_type(subscription.queues, tuple[str, ...])
assert_type(subscription.active, bool)
assert_type(subscription.wait(timeout=1), bool)
subscription.cancel()
subscription.start()
subscription.delete()

assert_type(client.subscribe(catalogue.of_service("campaign-service"), as_event), Subscription)
assert_type(client.subscribe("character.created", as_dict), Subscription)
assert_type(client.subscribe_messages(as_typed_dict, workers=4), Subscription)


# The decorators leave the function as it was.


@client.on_event("character.created", "character.updated", durable=False)
def on_created(event: Event[CharacterCreated]) -> int:
    return len(event.payload.character_id)


@client.on_message
def on_message(message: Message[Quest]) -> dict[str, str]:
    assert_type(message.payload.title, str)
    return {"title": message.payload.title}


@client.on_message(workers=2)
def on_message_with_options(message: Message) -> None:
    assert_type(message["payload"], Any)
    assert_type(message.get("priority"), Any)


def call_them(event: Event[CharacterCreated], quest: Message[Quest], message: Message) -> None:
    assert_type(on_created(event), int)
    assert_type(on_message(quest), dict[str, str])
    on_message_with_options(message)
    on_created(message)  # type: ignore[arg-type]
    on_message(event)  # type: ignore[arg-type]


# What is wrong is refused: an ignore that is not needed is an error.
client.subscribe(["character.created"], "as_text")  # type: ignore[arg-type]
client.subscribe(["character.created"])  # type: ignore[call-arg]
client.subscribe_messages(as_text, prefetch="many")  # type: ignore[arg-type]
client.subscribe_messages(as_text, deduplicate=[])  # type: ignore[arg-type]
client.on_message(7)  # type: ignore[call-overload]
client.on_message(prefetch="many")  # type: ignore[call-overload]
client.on_event("character.created", durrable=True)  # type: ignore[call-arg]
client.on_event("character.created", prefetch="many")  # type: ignore[arg-type]


group = HandlerGroup()


@group.on_event("character.created", durable=False, prefetch=1, workers=2, retry=RetryPolicy())
def grouped_event(event: Event[CharacterCreated]) -> int:
    return 1


@group.on_message
def grouped_message(message: Message) -> dict[str, int]:
    return {"players": 5}


@group.on_message(deduplicate=MemoryDeduplication())
def grouped_once(message: Message) -> None: ...


def call_it(message: Message) -> None:
    assert_type(grouped_message(message), dict[str, int])


assert_type(client.include(group), list[Subscription])
