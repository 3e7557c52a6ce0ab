"""Moving a message to its retry or dead-letter queue: published with confirm, and only then settled."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync.deadlines import remaining
from message_hub_sync.envelope import Properties
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.text import printable
from message_hub_sync.topology import DEFAULT_EXCHANGE, QueueSpec
from message_hub_sync.transport.base import Delivery, Outgoing, Receipt, Result, Transport

__all__ = ["Moves"]

logger = logging.getLogger(__name__)

#: Seconds a worker gives to one move before it turns to its next message. A confirm takes milliseconds.
PATIENCE = 0.25
#: Seconds it may take to write when nobody waits for the answer: enough unless there is no connection.
WRITE_PATIENCE = 0.01
#: Seconds for declaring a queue that is not there yet; once per queue, as a rule.
DECLARE_TIMEOUT = 5.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0


#: Where a message goes whose properties AMQP cannot carry, what it bears, and what settles it then.
Otherwise = Callable[[MessageValidationError], tuple[QueueSpec, Properties, Callable[[], None]]]


@dataclass(slots=True)
class _Move:
    delivery: Delivery
    queue: QueueSpec
    outgoing: Outgoing
    done: Callable[[], None]
    otherwise: Otherwise | None
    receipt: Receipt | None = None
    alone: bool = False
    undeclared: bool = False
    due: float = 0.0
    pause: float = FIRST_PAUSE
    complained: bool = False


class Moves:
    """The moves of one worker that are not confirmed yet.

    Mutable, without a lock: all of it belongs to the worker's thread. What cannot be moved now stays
    unacknowledged and is tried again later; a move whose answer is still out is waited for, not repeated, so
    that a slow broker does not get it twice.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._pending: list[_Move] = []

    def add(
        self,
        delivery: Delivery,
        queue: QueueSpec,
        properties: Properties,
        done: Callable[[], None],
        otherwise: Otherwise | None = None,
    ) -> None:
        """Move ``delivery`` to ``queue``.

        :param done: settles the delivery; called once the broker has the message in ``queue``.
        :param otherwise: asked where to, when AMQP cannot carry ``properties`` and never will.
        """
        move = _Move(delivery, queue, _outgoing(delivery, queue, properties), done, otherwise)
        # While others are stuck the road is blocked: this one is sent, but nobody waits for it.
        patience = 0.0 if self._pending else PATIENCE
        if not self._advance(move, patience):
            self._pending.append(move)

    def keep(self, origin: object) -> None:
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
        """Carry on with those that are due."""
        now = time.monotonic()
        self._pending = [move for move in self._pending if move.due > now or not self._advance(move, 0.0)]

    def _advance(self, move: _Move, patience: float) -> bool:
        """One step; whether the move is complete."""
        try:
            try:
                result = self._attempt(move, patience)
            except MessageValidationError as error:
                if move.otherwise is None:
                    raise
                # How large a frame may be is known only now, and it stays too small: to try again is of no use.
                move.queue, properties, move.done = move.otherwise(error)
                move.outgoing, move.otherwise = _outgoing(move.delivery, move.queue, properties), None
                result = self._attempt(move, patience)
            if result is Result.RETURNED:
                move.receipt, move.undeclared = None, True
                result = self._attempt(move, patience)
        except MessageHubError as error:
            return self._later(move, str(error))
        except Exception:
            logger.exception("the transport failed in an unexpected way")
            return self._later(move, "the transport failed in an unexpected way")
        if result is Result.CONFIRMED:
            try:
                move.done()
            except Exception:
                logger.exception("a message of %s was moved, but could not be settled", move.delivery.queue)
            return True
        reason = "no confirm yet" if move.receipt is None else move.receipt.reason
        if result is not None:
            move.receipt = None
            move.undeclared = result is Result.RETURNED
            move.alone = result in (Result.CHANNEL_CLOSED, Result.REFUSED)
            reason = reason or result.value
        return self._later(move, reason or "no confirm yet")

    def _attempt(self, move: _Move, patience: float) -> Result | None:
        now = time.monotonic()
        if move.undeclared:
            self._transport.declare_queue(move.queue, now + DECLARE_TIMEOUT)
            move.undeclared = False
            now = time.monotonic()
        if move.receipt is None:
            patience_to_write = max(patience, WRITE_PATIENCE)
            move.receipt = self._transport.publish(move.outgoing, now + patience_to_write, alone=move.alone)
        return move.receipt.wait(now + patience)

    def _later(self, move: _Move, why: str) -> bool:
        move.due = time.monotonic() + move.pause
        move.pause = min(2 * move.pause, LONGEST_PAUSE)
        with contextlib.suppress(Exception):  # a logging handler may raise; the move is tried again all the same
            logger.log(
                # Once per message: a broker that is down must not be told of once per attempt.
                logging.DEBUG if move.complained else logging.WARNING,
                "message %s of %s could not be moved to %s yet and stays where it is: %s",
                printable(move.outgoing.properties.message_id or "without an id"),
                move.delivery.queue,
                move.queue.name,
                why,
            )
        move.complained = True
        return False


def _outgoing(delivery: Delivery, queue: QueueSpec, properties: Properties) -> Outgoing:
    return Outgoing(DEFAULT_EXCHANGE, queue.name, delivery.body, properties, mandatory=True)
