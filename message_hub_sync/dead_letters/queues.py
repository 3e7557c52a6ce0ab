"""Looking into a dead-letter queue, taking out of it, and putting a dead letter back to work."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from queue import Empty
from uuid import UUID

from message_hub_sync.deadlines import remaining, take
from message_hub_sync.errors import MessageHubConnectionError, MessageHubDeliveryError, MessageValidationError
from message_hub_sync.retry import ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY
from message_hub_sync.testing.dead_letter import DeadLetter
from message_hub_sync.topology import DEAD_LETTER_SUFFIX, DEFAULT_EXCHANGE, QueueSpec, Topology
from message_hub_sync.transport.base import Delivery, Outgoing, Result, Transport

__all__ = ["fetch_dead_letter", "send_again"]

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
    name = queue.removesuffix(DEAD_LETTER_SUFFIX) + DEAD_LETTER_SUFFIX
    # Looked at, at most: without an end where it is waited for, else what is there now.
    count = sys.maxsize if wait else min(_depth(transport, name, deadline), MOST)
    consumer = transport.consume(Topology(QueueSpec(name)), prefetch=min(count, MOST), deadline=deadline)
    seen = 0
    try:
        while seen < count:
            delivery = take(consumer.deliveries, remaining(deadline))
            seen += 1
            if delivery is not None and message_id in (None, delivery.properties.message_id, _uuid(delivery)):
                letter = DeadLetter.of(delivery)
                save(letter)
                if remove:
                    consumer.settle(delivery)
                return letter
    except Empty:
        if not wait:
            raise MessageHubConnectionError(f"the hub did not hand out what is in {name} in time") from None
    finally:
        consumer.cancel(deadline)
        consumer.close(deadline)
    which = "no message" if message_id is None else f"no message {message_id}"
    raise MessageValidationError(f"the queue {name} holds {which}; looked at: {seen}")


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
    if result is Result.RETURNED:
        raise MessageHubDeliveryError(
            f"there is no queue {letter.queue}: subscribe with its service before the dead letter is sent again",
            outcome="rejected",
        )
    if result is not Result.CONFIRMED:
        reason = receipt.reason or "no confirm in time"
        raise MessageHubDeliveryError(f"the dead letter was not sent again: {reason}", outcome="unknown")
