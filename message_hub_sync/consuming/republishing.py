"""Moving a message to its retry or dead-letter queue: published with confirm, and only then settled."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, PublishResult, Receipt, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, QueueSpec

__all__ = ["Republisher"]

logger = SafeLogger("message_hub_sync.moving")

#: Seconds a worker gives to one move before it turns to its next message. A confirm takes milliseconds.
PATIENCE = 0.25
#: Seconds it may take to write when nobody waits for the answer: enough unless there is no connection.
WRITE_PATIENCE = 0.01
#: Seconds for declaring a queue that is not there yet; once per queue, as a rule.
DECLARE_TIMEOUT = 5.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0


#: Where a message goes whose properties AMQP cannot carry, what it bears, and what settles it then.
Fallback = Callable[[MessageValidationError], tuple[QueueSpec, Properties, Callable[[], None]]]


@dataclass(slots=True)
class _Republication:
    delivery: Delivery
    queue: QueueSpec
    outgoing: Outgoing
    done: Callable[[], None]
    fallback: Fallback | None
    receipt: Receipt | None = None
    own_channel: bool = False
    undeclared: bool = False
    due: float = 0.0
    pause: float = FIRST_PAUSE
    warned: bool = False
    #: Why it is stuck: not before it failed twice, or its queue cannot be declared.
    stuck: str = ""


@dataclass(slots=True)
class _UndeclarableQueue:
    """A queue that cannot be declared: nothing is moved there before ``due``."""

    why: str
    due: float
    pause: float


class Republisher:
    """The moves of one worker that are not confirmed yet.

    Mutable, without a lock: all of it belongs to the worker's thread, save that :meth:`stuck` copies ``_pending``.
    What cannot be moved now stays unacknowledged and is tried again later; a move whose answer is still out is
    waited for, not repeated, so that a slow broker does not get it twice. A queue that cannot be declared has one
    backoff for all that waits for it (``_undeclarable``): to be refused, or not to be answered, takes up to 5 s each
    time. ``_declared``: the queues declared in the present round.
    """

    def __init__(self, transport: Transport, consumer: Consumer) -> None:
        self._transport = transport
        self._consumer = consumer
        self._pending: list[_Republication] = []
        self._undeclarable: dict[str, _UndeclarableQueue] = {}
        self._declared: set[str] = set()

    def add(
        self,
        delivery: Delivery,
        queue: QueueSpec,
        properties: Properties,
        done: Callable[[], None],
        fallback: Fallback | None = None,
    ) -> None:
        """Move ``delivery`` to ``queue``.

        :param done: settles the delivery; called once the broker has the message in ``queue``.
        :param fallback: asked where to, when AMQP cannot carry ``properties`` and never will.
        """
        move = _Republication(delivery, queue, _outgoing(delivery, queue, properties), done, fallback)
        self._declared.clear()
        # While others are stuck the road is blocked: this one is sent, but nobody waits for it.
        patience = 0.0 if self._pending else PATIENCE
        if not self._advance(move, patience):
            self._pending.append(move)

    def drop_stale(self, origin: object) -> None:
        """Forget the moves of deliveries that did not come from ``origin``, where the newest one came from.

        Their channel is gone, so that they went back to the queue: they are delivered again, and must not be
        moved besides.
        """
        if self._pending:
            self._pending = [move for move in self._pending if move.delivery.origin is origin]

    def next_due(self) -> float | None:
        """Seconds until :meth:`advance` is worth calling, ``None`` when nothing is pending."""
        if not self._pending:
            return None
        return remaining(min(move.due for move in self._pending))

    def advance(self) -> None:
        """Carry on with those that are due; those that can no longer be settled come again, and are forgotten."""
        now = time.monotonic()
        self._declared.clear()
        self._pending = [
            move
            for move in self._pending
            if self._consumer.holds(move.delivery) and (move.due > now or not self._advance(move, 0.0))
        ]

    def stuck(self) -> dict[tuple[str, str], int]:
        """How many messages cannot be moved, by where to and why. From any thread."""
        return Counter((move.queue.name, move.stuck) for move in list(self._pending) if move.stuck)

    def _advance(self, move: _Republication, patience: float) -> bool:
        """One step; whether the move is complete."""
        undeclarable = self._undeclarable_now(move.queue)
        if undeclarable is not None:
            return self._later(move, undeclarable.why, undeclarable.due)
        try:
            try:
                result = self._attempt(move, patience)
            except MessageValidationError as error:
                if move.fallback is None:
                    raise
                # How large a frame may be is known only now, and it stays too small: to try again is of no use.
                move.queue, properties, move.done = move.fallback(error)
                move.outgoing, move.fallback = _outgoing(move.delivery, move.queue, properties), None
                result = self._attempt(move, patience)
            if result is PublishResult.RETURNED:
                move.receipt, move.undeclared = None, True
                result = self._attempt(move, patience)
        except MessageHubError as error:
            undeclarable = self._undeclarable_now(move.queue)
            return self._later(move, str(error), 0.0 if undeclarable is None else undeclarable.due)
        except Exception:
            logger.exception("the transport failed in an unexpected way")
            return self._later(move, "the transport failed in an unexpected way")
        if result is PublishResult.CONFIRMED:
            self._undeclarable.pop(move.queue.name, None)
            try:
                move.done()
            except Exception:
                logger.exception("a message of %s was moved, but could not be settled", move.delivery.queue)
            return True
        reason = "no confirm yet" if move.receipt is None else move.receipt.reason
        if result is not None:
            move.receipt = None
            move.undeclared = result is PublishResult.RETURNED
            move.own_channel = result in (PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR)
            reason = reason or result.value
        return self._later(move, reason or "no confirm yet")

    def _attempt(self, move: _Republication, patience: float) -> PublishResult | None:
        now = time.monotonic()
        if move.undeclared:
            self._declare(move.queue)
            move.undeclared = False
            now = time.monotonic()
        if move.receipt is None:
            patience_to_write = max(patience, WRITE_PATIENCE)
            move.receipt = self._transport.publish(move.outgoing, now + patience_to_write, own_channel=move.own_channel)
        return move.receipt.wait(now + patience)

    def _declare(self, queue: QueueSpec) -> None:
        """Make the queue exist, once for all that wait for it; bar it where that fails."""
        if queue.name in self._declared:
            return
        began = time.monotonic()
        try:
            self._transport.declare_queue(queue, began + DECLARE_TIMEOUT)
        except MessageHubError as error:
            earlier = self._undeclarable.get(queue.name)
            now = time.monotonic()
            # Where nobody answers, half of the time at least is for other messages.
            pause = max(now - began, FIRST_PAUSE if earlier is None else min(2 * earlier.pause, LONGEST_PAUSE))
            self._undeclarable[queue.name] = _UndeclarableQueue(str(error), now + pause, pause)
            raise
        self._declared.add(queue.name)
        self._undeclarable.pop(queue.name, None)

    def _undeclarable_now(self, queue: QueueSpec) -> _UndeclarableQueue | None:
        undeclarable = self._undeclarable.get(queue.name)
        return undeclarable if undeclarable is not None and undeclarable.due > time.monotonic() else None

    def _later(self, move: _Republication, why: str, due: float = 0.0) -> bool:
        """Have it tried again after its own pause; at ``due`` where its queue is undeclarable until then."""
        move.stuck = why if due or move.warned else ""
        move.due = due or time.monotonic() + move.pause
        move.pause = move.pause if due else min(2 * move.pause, LONGEST_PAUSE)
        logger.log(
            # Once per message: a broker that is down must not be told of once per attempt.
            logging.DEBUG if move.warned else logging.WARNING,
            "message %s of %s could not be moved to %s yet and stays where it is: %s",
            printable(move.outgoing.properties.message_id or "without an id"),
            move.delivery.queue,
            move.queue.name,
            why,
        )
        move.warned = True
        return False


def _outgoing(delivery: Delivery, queue: QueueSpec, properties: Properties) -> Outgoing:
    return Outgoing(DEFAULT_EXCHANGE, queue.name, delivery.body, properties, mandatory=True)
