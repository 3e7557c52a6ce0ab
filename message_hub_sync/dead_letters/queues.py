"""Read dead-letter queues, remove messages from them, and requeue dead letters."""

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

#: The most messages to look at. All of them stay unacknowledged until the wanted one is found.
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
    """Read one message of a dead-letter queue.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param message_id: the message's id; ``None`` means the oldest.
    :param save: called with the message before it is removed. If it raises, the message stays.
    :param remove: remove the message. Otherwise it stays; all other messages stay in any case.
    :param wait: wait until the deadline for the message to be dead-lettered. A missing queue is declared.
    :param deadline: monotonic seconds.
    :returns: the message.
    :raises MessageValidationError: the queue does not exist, is empty, or does not hold that message.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    name = _dead(queue)
    # The number of messages to look at: no limit if we wait for new ones, otherwise those that are there now.
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
            raise MessageHubConnectionError(
                f"the hub did not deliver the messages of {name} in time: raise the timeout"
            ) from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)
    raise _missing(name, message_id, seen)


def each_dead_letter(transport: Transport, queue: str, seen: Callable[[DeadLetter], object], deadline: float) -> None:
    """Read the messages that are in a dead-letter queue now, oldest first, at most 10,000. All of them stay.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param seen: called with each message.
    :param deadline: monotonic seconds.
    :raises MessageValidationError: the queue does not exist or is empty.
    :raises MessageHubConnectionError: the hub did not deliver all of them in time.
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
        raise MessageHubConnectionError(
            f"the hub did not deliver the messages of {name} in time: raise the timeout"
        ) from None
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
    """Publish messages to the queue in which they failed, and remove them from the dead-letter queue.

    A requeued message gets all its attempts again, and no longer expires.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param message_id: the message's id; ``None`` means the oldest.
    :param done: called with each message after it was requeued.
    :param every: requeue all messages that are there at the beginning; ``message_id`` is then ignored.
    :param deadline: monotonic seconds, for all messages together.
    :returns: the number of requeued messages.
    :raises MessageValidationError: the queue does not exist, is empty, or does not hold that message.
    :raises MessageHubDeliveryError: a message could not be requeued. It stays, and so do those behind it.
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
            # Without a ttl: it has passed, or would pass before the service handles the message.
            send_again(transport, letter.without_ttl(), deadline)
            # Only after the confirm. If this process ends in between, both queues hold the message.
            consumer.ack(delivery)
            moved += 1
            done(letter)
            if not every:
                break
    except Empty:
        raise MessageHubConnectionError(
            f"the hub did not deliver the messages of {name} in time: raise the timeout"
        ) from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)
    if not moved:
        raise _missing(name, message_id, seen)
    return moved


def dead_letter_queues(service: str) -> list[str]:
    """The dead-letter queues that a service may have.

    They belong to its inbox, the events of the catalogue, their patterns (``character.*``) and ``#``.
    """
    names = [event_type.name for event_type in catalogue]
    families = [f"{family}.*" for family in dict.fromkeys(name.partition(".")[0] for name in names)]
    queues = [inbox_name(service), *(event_queue_name(service, name) for name in (*names, *families, "#"))]
    return [_dead(queue) for queue in queues]


@dataclass(frozen=True)
class Gathered:
    """The state of one dead-letter queue.

    :param queue: its name, with ``.dead``.
    :param depth: the number of messages in it.
    :param oldest: the oldest message, or ``None`` if it was not asked for or another consumer holds it.
    """

    queue: str
    depth: int
    oldest: DeadLetter | None


def gathered(
    transport: Transport, queues: Iterable[str], deadline: float, *, with_oldest: bool = True
) -> list[Gathered]:
    """The state of each of these dead-letter queues that contains messages. A missing queue counts as empty.

    :param transport: the connection to the hub.
    :param queues: their names, with or without ``.dead``.
    :param deadline: monotonic seconds.
    :param with_oldest: read the oldest message of each queue, too. It returns to its old position at once.
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
    """The names, without ``.dead``, of those queues that exist or have a dead-letter queue that exists.

    :param transport: the connection to the hub.
    :param queues: their names, with or without ``.dead``.
    :param deadline: monotonic seconds.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    names = list(dict.fromkeys(queue.removesuffix(DEAD_LETTER_SUFFIX) for queue in queues))
    found = transport.queue_stats([*names, *map(_dead, names)], deadline)
    return [name for name in names if (found[name] or found[_dead(name)]) is not None]


def _oldest(transport: Transport, name: str, deadline: float) -> DeadLetter | None:
    try:
        return fetch_dead_letter(transport, name, None, lambda found: None, deadline=deadline)
    except MessageValidationError:  # the queue has been emptied or deleted meanwhile
        return None


def _dead(queue: str) -> str:
    return queue.removesuffix(DEAD_LETTER_SUFFIX) + DEAD_LETTER_SUFFIX


def _is_meant(delivery: Delivery, message_id: UUID | str | None) -> bool:
    return message_id in (None, delivery.properties.message_id, _uuid(delivery))


def _missing(name: str, message_id: UUID | str | None, seen: int) -> MessageValidationError:
    which = "no message" if message_id is None else f"no message {message_id}"
    return MessageValidationError(f"the queue {name} has {which}; messages read: {seen}")


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
    """Publish a dead letter to the queue in which it failed, without the headers of its failure.

    :param transport: the connection to the hub.
    :param letter: the dead letter.
    :param deadline: monotonic seconds.
    :raises MessageHubDeliveryError: the queue does not exist, or the hub did not confirm in time.
    """
    origin = {ORIGINAL_EXCHANGE: letter.exchange, ORIGINAL_ROUTING_KEY: letter.routing_key}
    # The broker closes the channel (406) for a user_id that is not the connection's user.
    properties = dataclasses.replace(letter.properties, user_id=None, headers={**letter.properties.headers, **origin})
    outgoing = Outgoing(DEFAULT_EXCHANGE, letter.queue, letter.body, properties, mandatory=True)
    receipt = transport.publish(outgoing, deadline)
    result = receipt.wait(deadline)
    if result is PublishResult.RETURNED:
        raise MessageHubDeliveryError(
            f"there is no queue {letter.queue}: let its service subscribe, then send the dead letter again",
            outcome="rejected",
        )
    if result is not PublishResult.CONFIRMED:
        reason = receipt.reason or "no confirm in time"
        raise MessageHubDeliveryError(
            f"the hub did not confirm the dead letter {letter.message_id}: {reason}", outcome="unknown"
        )
