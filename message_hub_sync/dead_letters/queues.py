"""Looking into dead-letter queues, taking out of them, and putting a dead letter back to work."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty
from uuid import UUID

from message_hub_sync.catalogue import catalogue
from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.envelope.header_names import ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY
from message_hub_sync.errors import MessageHubConnectionError, MessageHubDeliveryError, MessageValidationError
from message_hub_sync.runtime.deadlines import remaining, take
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import (
    DEAD_LETTER_SUFFIX,
    DEFAULT_EXCHANGE,
    QueueSpec,
    Topology,
    event_queue_name,
    inbox_name,
)

__all__ = [
    "Gathered",
    "dead_letter_queues",
    "each_dead_letter",
    "existing",
    "fetch_dead_letter",
    "gathered",
    "requeue_dead_letters",
    "send_again",
]

#: Looked at, at most: they are all held unsettled until the right one is found.
MOST = 10_000


def fetch_dead_letter(
    transport: Transport,
    queue: str,
    message_id: UUID | str | None,
    save: Callable[[DeadLetter], object],
    *,
    remove: bool = False,
    wait: bool = False,
    deadline: float,
) -> DeadLetter:
    """One message of a dead-letter queue.

    :param queue: the queue, with ``.dead`` or without it.
    :param message_id: which one; ``None``: the oldest.
    :param save: called with it, before it is removed: what cannot be saved stays.
    :param remove: take it out; otherwise it stays, as do all others.
    :param wait: until the deadline, for it to be dead-lettered; the queue is made where it does not exist.
    :raises MessageValidationError: there is no such queue, or nothing in it, or not that message.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    name = _dead(queue)
    # Looked at, at most: without an end where it is waited for, else what is there now.
    count = sys.maxsize if wait else min(_depth(transport, name, deadline), MOST)
    consumer = transport.consume(Topology(QueueSpec(name)), prefetch=min(count, MOST), deadline=deadline)
    seen = 0
    try:
        while seen < count:
            delivery = take(consumer.deliveries, remaining(deadline))
            seen += 1
            if delivery is not None and _is_meant(delivery, message_id):
                letter = DeadLetter.of(delivery)
                save(letter)
                if remove:
                    consumer.ack(delivery)
                return letter
    except Empty:
        if not wait:
            raise MessageHubConnectionError(f"the hub did not hand out what is in {name} in time") from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)
    raise _missing(name, message_id, seen)


def each_dead_letter(transport: Transport, queue: str, seen: Callable[[DeadLetter], object], deadline: float) -> None:
    """Look at what is in a dead-letter queue now, the oldest first, 10,000 at most; all of it stays.

    :param queue: the queue, with ``.dead`` or without it.
    :param seen: called with each.
    :raises MessageValidationError: there is no such queue, or nothing in it.
    :raises MessageHubConnectionError: the hub did not hand out all of them in time.
    """
    name = _dead(queue)
    count = min(_depth(transport, name, deadline), MOST)
    consumer = transport.consume(Topology(QueueSpec(name)), prefetch=count, deadline=deadline)
    try:
        for _ in range(count):
            delivery = take(consumer.deliveries, remaining(deadline))
            if delivery is not None:
                seen(DeadLetter.of(delivery))
    except Empty:
        raise MessageHubConnectionError(f"the hub did not hand out what is in {name} in time") from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)


def requeue_dead_letters(
    transport: Transport,
    queue: str,
    message_id: UUID | str | None,
    done: Callable[[DeadLetter], object],
    *,
    every: bool = False,
    deadline: float,
) -> int:
    """Put messages back into the queue that they failed in, each confirmed there before it is settled here.

    They have all attempts before them, and no ttl any more: it was over, or would be before anybody looks.

    :param queue: the queue, with ``.dead`` or without it.
    :param message_id: which one; ``None``: the oldest.
    :param done: called with each one that is back.
    :param every: all that are there at the beginning, whatever ``message_id`` says.
    :returns: how many.
    :raises MessageValidationError: there is no such queue, or nothing in it, or not that message.
    :raises MessageHubDeliveryError: one could not be put back; it stays, with those behind it.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    name = _dead(queue)
    count = _depth(transport, name, deadline)
    consumer = transport.consume(Topology(QueueSpec(name)), prefetch=min(count, MOST), deadline=deadline)
    seen = moved = 0
    try:
        while seen < count:
            delivery = take(consumer.deliveries, remaining(deadline))
            seen += 1
            if delivery is None or not (every or _is_meant(delivery, message_id)):
                continue
            letter = DeadLetter.of(delivery)
            send_again(transport, letter.without_ttl(), deadline)
            consumer.ack(delivery)
            moved += 1
            done(letter)
            if not every:
                break
    except Empty:
        raise MessageHubConnectionError(f"the hub did not hand out what is in {name} in time") from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)
    if not moved:
        raise _missing(name, message_id, seen)
    return moved


def dead_letter_queues(service: str) -> list[str]:
    """Where a service's dead letters may be: those of its inbox, of the catalogue's events and of their patterns."""
    names = [event_type.name for event_type in catalogue]
    families = [f"{family}.*" for family in dict.fromkeys(name.partition(".")[0] for name in names)]
    queues = [inbox_name(service), *(event_queue_name(service, name) for name in (*names, *families, "#"))]
    return [_dead(queue) for queue in queues]


@dataclass(frozen=True)
class Gathered:
    """What waits in one dead-letter queue. ``oldest``: ``None`` where not asked for, or held by somebody else."""

    queue: str
    depth: int
    oldest: DeadLetter | None


def gathered(
    transport: Transport, queues: Iterable[str], deadline: float, *, with_oldest: bool = True
) -> list[Gathered]:
    """Those of these dead-letter queues that are not empty; a queue that is not there is.

    :param queues: with ``.dead`` or without it.
    :param with_oldest: whether to look at the oldest of each, which is back in its queue a moment later.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    names = list(dict.fromkeys(_dead(queue) for queue in queues))
    found = transport.queue_stats(names, deadline)
    return [
        Gathered(name, stats.depth, _oldest(transport, name, deadline) if with_oldest else None)
        for name, stats in found.items()
        if stats is not None and stats.depth
    ]


def existing(transport: Transport, queues: Iterable[str], deadline: float) -> list[str]:
    """Those of these queues that are there, or whose dead-letter queue is.

    :param queues: with ``.dead`` or without it.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    names = list(dict.fromkeys(queue.removesuffix(DEAD_LETTER_SUFFIX) for queue in queues))
    found = transport.queue_stats([*names, *map(_dead, names)], deadline)
    return [name for name in names if (found[name] or found[_dead(name)]) is not None]


def _oldest(transport: Transport, name: str, deadline: float) -> DeadLetter | None:
    try:
        return fetch_dead_letter(transport, name, None, lambda found: None, deadline=deadline)
    except MessageValidationError:  # gone meanwhile
        return None


def _dead(queue: str) -> str:
    return queue.removesuffix(DEAD_LETTER_SUFFIX) + DEAD_LETTER_SUFFIX


def _is_meant(delivery: Delivery, message_id: UUID | str | None) -> bool:
    return message_id in (None, delivery.properties.message_id, _uuid(delivery))


def _missing(name: str, message_id: UUID | str | None, seen: int) -> MessageValidationError:
    which = "no message" if message_id is None else f"no message {message_id}"
    return MessageValidationError(f"the queue {name} holds {which}; looked at: {seen}")


def _depth(transport: Transport, name: str, deadline: float) -> int:
    stats = transport.queue_stats([name], deadline)[name]
    if stats is None:
        raise MessageValidationError(f"there is no queue {name}: nothing was dead-lettered there")
    if not stats.depth:
        raise MessageValidationError(f"the queue {name} is empty, or another consumer holds what is in it")
    return stats.depth


def _uuid(delivery: Delivery) -> UUID | None:
    try:
        return UUID(delivery.properties.message_id or "")
    except ValueError:
        return None


def send_again(transport: Transport, letter: DeadLetter, deadline: float) -> None:
    """Put a dead letter into the queue that it failed in, as if it had never been handled.

    :raises MessageHubDeliveryError: there is no such queue, or the hub did not confirm it in time.
    """
    origin = {ORIGINAL_EXCHANGE: letter.exchange, ORIGINAL_ROUTING_KEY: letter.routing_key}
    # A foreign user_id is refused by the broker.
    properties = dataclasses.replace(letter.properties, user_id=None, headers={**letter.properties.headers, **origin})
    outgoing = Outgoing(DEFAULT_EXCHANGE, letter.queue, letter.body, properties, mandatory=True)
    receipt = transport.publish(outgoing, deadline)
    result = receipt.wait(deadline)
    if result is PublishResult.RETURNED:
        raise MessageHubDeliveryError(
            f"there is no queue {letter.queue}: subscribe with its service before the dead letter is sent again",
            outcome="rejected",
        )
    if result is not PublishResult.CONFIRMED:
        reason = receipt.reason or "no confirm in time"
        raise MessageHubDeliveryError(f"the dead letter was not sent again: {reason}", outcome="unknown")
