"""The queue arguments of the embedded hub. Pure functions and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.memory.validation import MAX_TTL_MS
from message_hub_sync.transport.topology import QueueSpec

__all__ = ["QueueArguments", "difference"]


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


#: The arguments that the hub implements, each with the check of RabbitMQ 3.10 and its rule for the error text.
_KNOWN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "x-queue-type": (_one_of("classic", "quorum"), "'classic' or 'quorum'"),
    "x-message-ttl": (_whole(0, MAX_TTL_MS), f"a whole number of milliseconds from 0 to {MAX_TTL_MS}"),
    "x-max-priority": (_whole(1, 255), "a whole number from 1 to 255"),
    "x-max-length": (_whole(0, 2**63 - 1), f"a whole number of messages from 0 to {2**63 - 1}"),
    "x-delivery-limit": (_whole(0, 2**63 - 1), f"a whole number of deliveries from 0 to {2**63 - 1}"),
    "x-overflow": (_one_of("drop-head", "reject-publish"), "'drop-head' or 'reject-publish'"),
    "x-expires": (_whole(1, MAX_TTL_MS), f"a whole number of milliseconds from 1 to {MAX_TTL_MS}"),
    "x-dead-letter-exchange": (_is_text, "an exchange's name"),
    "x-dead-letter-routing-key": (_is_text, "a routing key"),
    "x-dead-letter-strategy": (_one_of("at-most-once", "at-least-once"), "'at-most-once' or 'at-least-once'"),
}
#: The arguments that the hub does not implement. An error, not ignored: a test would pass although, for example, its
#: queue has no limit.
_MISSING = ("x-max-length-bytes", "x-single-active-consumer")


@dataclass(frozen=True)
class QueueArguments:
    """The checked arguments of a queue. ``ttl`` and ``expires`` are in seconds, infinity if nothing expires."""

    ttl: float = math.inf
    expires: float = math.inf
    max_priority: int = 0
    max_length: int | None = None
    reject_publish: bool = False
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    at_least_once: bool = False
    quorum: bool = False
    delivery_limit: int | None = None

    @classmethod
    def read(cls, spec: QueueSpec) -> QueueArguments:
        """Check the arguments of a queue that is being declared.

        :raises MessageHubConfigurationError: RabbitMQ would close the channel because of an argument (406), or the
            embedded hub does not implement it.
        """
        given = spec.arguments
        for name in _MISSING:
            if name in given:
                raise MessageHubConfigurationError(
                    f"queue {spec.name!r}: the embedded hub does not implement {name}: leave it out, or use RabbitMQ"
                )
        for name, (fits, allowed) in _KNOWN.items():
            if name in given and not fits(given[name]):
                raise _invalid(spec, name, f"it must be {allowed}, not {shown(given[name])}")
        quorum = given.get("x-queue-type") == "quorum"
        if quorum and ("x-max-priority" in given or spec.exclusive or not spec.durable):
            raise _invalid(spec, "x-queue-type", "a quorum queue must be durable, not exclusive, without priorities")
        if "x-delivery-limit" in given and not quorum:
            raise _invalid(spec, "x-delivery-limit", "only a quorum queue has it")
        if "x-dead-letter-routing-key" in given and "x-dead-letter-exchange" not in given:
            raise _invalid(spec, "x-dead-letter-routing-key", "it must be set together with x-dead-letter-exchange")
        ttl = given.get("x-message-ttl")
        reject_publish = given.get("x-overflow") == "reject-publish"
        return cls(
            ttl=math.inf if ttl is None else ttl / 1000,
            expires=given.get("x-expires", math.inf) / 1000,
            max_priority=given.get("x-max-priority", 0),
            max_length=given.get("x-max-length"),
            reject_publish=reject_publish,
            dead_letter_exchange=given.get("x-dead-letter-exchange"),
            dead_letter_routing_key=given.get("x-dead-letter-routing-key"),
            quorum=quorum,
            delivery_limit=given.get("x-delivery-limit"),
            # Without reject-publish, RabbitMQ uses at-most-once for a quorum queue.
            at_least_once=quorum and reject_publish and given.get("x-dead-letter-strategy") == "at-least-once",
        )


def _invalid(spec: QueueSpec, name: str, why: str) -> MessageHubConfigurationError:
    return MessageHubConfigurationError(f"queue {spec.name!r}: 406 PRECONDITION_FAILED - invalid arg '{name}': {why}")


def difference(name: str, asked: QueueSpec, present: QueueSpec) -> str | None:
    """How a declaration differs from the existing queue, in the words of RabbitMQ; ``None`` if it does not differ."""
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
