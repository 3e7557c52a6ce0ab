"""The arguments a queue of the embedded hub may be declared with. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.transport.memory.validation import MAX_TTL_MS
from message_hub_sync.transport.topology import QueueSpec

__all__ = ["QueueArguments", "difference"]


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


#: The arguments that change what the hub does, as RabbitMQ 3.10 checks them.
_KNOWN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "x-queue-type": (_one_of("classic", "quorum"), "'classic' or 'quorum'"),
    "x-message-ttl": (_whole(0, MAX_TTL_MS), f"milliseconds, at most {MAX_TTL_MS}"),
    "x-max-priority": (_whole(1, 255), "a whole number from 1 to 255"),
    "x-max-length": (_whole(0, 2**63 - 1), "a whole number of messages"),
    "x-overflow": (_one_of("drop-head", "reject-publish"), "'drop-head' or 'reject-publish'"),
    "x-dead-letter-exchange": (_is_text, "an exchange's name"),
    "x-dead-letter-routing-key": (_is_text, "a routing key"),
    "x-dead-letter-strategy": (_one_of("at-most-once", "at-least-once"), "'at-most-once' or 'at-least-once'"),
}
#: Better refused than ignored: a queue that should vanish or exclude others, and does not, is found late.
_MISSING = ("x-expires", "x-max-length-bytes", "x-single-active-consumer", "x-delivery-limit")


@dataclass(frozen=True)
class QueueArguments:
    """What a queue's arguments come to. ``ttl`` is in seconds, infinity when messages stay."""

    ttl: float = math.inf
    max_priority: int = 0
    max_length: int | None = None
    reject_publish: bool = False
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    at_least_once: bool = False

    @classmethod
    def read(cls, spec: QueueSpec) -> QueueArguments:
        """Understand the arguments of a queue that is to be made.

        :raises MessageHubConfigurationError: RabbitMQ would refuse one (406), or the embedded hub lacks it.
        """
        given = spec.arguments
        for name in _MISSING:
            if name in given:
                raise MessageHubConfigurationError(
                    f"queue {spec.name!r}: the embedded hub does not have {name}: leave it out, or use RabbitMQ"
                )
        for name, (fits, allowed) in _KNOWN.items():
            if name in given and not fits(given[name]):
                raise _invalid(spec, name, f"{given[name]!r} is not usable, {allowed} is")
        quorum = given.get("x-queue-type") == "quorum"
        if quorum and ("x-max-priority" in given or spec.exclusive or not spec.durable):
            raise _invalid(spec, "x-queue-type", "a quorum queue is durable, not exclusive and without priorities")
        if "x-dead-letter-routing-key" in given and "x-dead-letter-exchange" not in given:
            raise _invalid(spec, "x-dead-letter-routing-key", "it needs x-dead-letter-exchange beside it")
        ttl = given.get("x-message-ttl")
        reject_publish = given.get("x-overflow") == "reject-publish"
        return cls(
            ttl=math.inf if ttl is None else ttl / 1000,
            max_priority=given.get("x-max-priority", 0),
            max_length=given.get("x-max-length"),
            reject_publish=reject_publish,
            dead_letter_exchange=given.get("x-dead-letter-exchange"),
            dead_letter_routing_key=given.get("x-dead-letter-routing-key"),
            # Without reject-publish a quorum queue falls back to at-most-once.
            at_least_once=quorum and reject_publish and given.get("x-dead-letter-strategy") == "at-least-once",
        )


def _invalid(spec: QueueSpec, name: str, why: str) -> MessageHubConfigurationError:
    return MessageHubConfigurationError(
        f"queue {spec.name!r}: the hub says 406 PRECONDITION_FAILED - invalid arg '{name}': {why}"
    )


def difference(name: str, asked: QueueSpec, present: QueueSpec) -> str | None:
    """How a declaration differs from the queue that is there, as RabbitMQ puts it; ``None`` when it does not."""
    pairs: list[tuple[str, Any, Any]] = [
        ("durable", asked.durable, present.durable),
        ("auto_delete", asked.auto_delete, present.auto_delete),
    ]
    pairs += [(key, asked.arguments.get(key), present.arguments.get(key)) for key in _KNOWN]
    for key, received, current in pairs:
        if key == "x-queue-type":
            received, current = received or "classic", current or "classic"
        if received != current:
            return (
                f"PRECONDITION_FAILED - inequivalent arg '{key}' for queue '{name}': "
                f"received {_shown(received)} but current is {_shown(current)}"
            )
    return None


def _shown(value: Any) -> str:
    return "none" if value is None else f"'{value}'"
