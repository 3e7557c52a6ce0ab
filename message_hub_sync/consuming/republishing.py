"""Republishes a message to its retry or dead-letter queue, and acknowledges it only after the confirm."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, PublishResult, Receipt, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, QueueSpec

__all__ = ["Republisher"]

logger = SafeLogger("message_hub_sync.moving")

#: Seconds that a worker waits for the confirm before it takes its next message. A confirm takes milliseconds.
PATIENCE = 0.25
#: Seconds for writing a message without waiting for its confirm. They are enough if there is a connection.
WRITE_PATIENCE = 0.01
#: Seconds for declaring a queue that does not exist yet: usually once for each queue.
DECLARE_TIMEOUT = 5.0
#: Seconds until the next attempt: at first, and at most. The pause doubles after each attempt.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
#: While the pause is shorter than this, a confirm that has not come is not told of.
QUIET_PAUSE = 4.0

#: Called with the error if AMQP cannot carry the properties of a message. Returns the queue to publish it to instead,
#: with which properties, and what acknowledges the delivery after the confirm.
Fallback = Callable[[MessageValidationError], tuple[QueueSpec, Properties, Callable[[], None]]]


@dataclass(slots=True)
class _Republication:
    """One delivery that is being republished. Only the worker thread that handles the delivery changes it."""

    delivery: Delivery
    queue: QueueSpec
    outgoing: Outgoing
    #: Acknowledges the delivery.
    done: Callable[[], None]
    fallback: Fallback | None
    #: The receipt of an attempt that was published and is not answered yet.
    receipt: Receipt | None = None
    #: Whether the next attempt is published on a channel of its own.
    own_channel: bool = False
    #: Whether the queue must be declared before the next attempt.
    undeclared: bool = False
    #: The time.monotonic() of the next attempt.
    due: float = 0.0
    #: Seconds until the attempt after that.
    pause: float = FIRST_PAUSE
    #: Whether a failed attempt was logged as a warning.
    warned: bool = False
    #: Why it is stuck. Empty before the second failed attempt, unless its queue cannot be declared.
    stuck: str = ""


@dataclass(slots=True)
class _UndeclarableQueue:
    """A queue that could not be declared: nothing is published to it before ``due`` (``time.monotonic()``)."""

    why: str
    due: float
    pause: float


class Republisher:
    """The deliveries of one worker that are being republished and are not confirmed yet.

    A delivery that cannot be republished now stays unacked, and is tried again later. While an attempt is not answered,
    it is not repeated, so that a slow broker does not get the message twice. No lock: only the worker thread uses this,
    except that any thread may call :meth:`stuck`.
    """

    def __init__(self, transport: Transport, consumer: Consumer) -> None:
        self._transport = transport
        self._consumer = consumer
        self._pending: list[_Republication] = []  # worker thread only; stuck() copies it
        # One backoff for each queue, not for each message: a failed declare may take up to 5 s.
        self._undeclarable: dict[str, _UndeclarableQueue] = {}  # worker thread only
        self._declared: set[str] = set()  # worker thread only; queues declared since add() or advance() was called

    def add(
        self,
        delivery: Delivery,
        queue: QueueSpec,
        properties: Properties,
        done: Callable[[], None],
        fallback: Fallback | None = None,
    ) -> None:
        """Publish ``delivery`` to ``queue``; if that does not succeed now, keep it for :meth:`advance`.

        :param properties: the properties to publish it with.
        :param done: acknowledges the delivery; called after the broker has confirmed the message.
        :param fallback: called if AMQP cannot carry ``properties``; returns what to publish instead.
        """
        republication = _Republication(delivery, queue, _outgoing(delivery, queue, properties), done, fallback)
        self._declared.clear()
        # While others are pending, publish without waiting for the confirm; advance() collects it.
        patience = 0.0 if self._pending else PATIENCE
        if not self._advance(republication, patience):
            self._pending.append(republication)

    def drop_stale(self, origin: object) -> None:
        """Forget the deliveries whose channel is not ``origin``, the channel of the newest delivery.

        Their channel is closed, so the broker delivers them again. If they were republished, too, they would be handled
        twice.
        """
        if self._pending:
            self._pending = [
                republication for republication in self._pending if republication.delivery.origin is origin
            ]

    def next_due(self) -> float | None:
        """Seconds until :meth:`advance` has something to do; ``None`` if nothing is pending."""
        if not self._pending:
            return None
        return remaining(min(republication.due for republication in self._pending))

    def advance(self) -> None:
        """Make one attempt for each delivery that is due. Forget those that can no longer be acknowledged.

        The broker delivers the latter again.
        """
        now = time.monotonic()
        self._declared.clear()
        self._pending = [
            republication
            for republication in self._pending
            if self._consumer.holds(republication.delivery)
            and (republication.due > now or not self._advance(republication, 0.0))
        ]

    def stuck(self) -> dict[tuple[str, str], int]:
        """How many messages are stuck, by queue to publish to and reason. Any thread may call it."""
        return Counter(
            (republication.queue.name, republication.stuck)
            for republication in list(self._pending)
            if republication.stuck
        )

    def _advance(self, republication: _Republication, patience: float) -> bool:
        """Make one attempt, and wait ``patience`` seconds for its confirm. Returns whether it is complete."""
        undeclarable = self._undeclarable_now(republication.queue)
        if undeclarable is not None:
            return self._later(republication, undeclarable.why, undeclarable.due)
        try:
            try:
                result = self._attempt(republication, patience)
            except MessageValidationError as error:
                if republication.fallback is None:
                    raise
                # The properties do not fit into a frame, whose size is known only while connected: the same attempt
                # would always fail.
                republication.queue, properties, republication.done = republication.fallback(error)
                republication.outgoing, republication.fallback = (
                    _outgoing(republication.delivery, republication.queue, properties),
                    None,
                )
                result = self._attempt(republication, patience)
            if result is PublishResult.RETURNED:
                republication.receipt, republication.undeclared = None, True
                result = self._attempt(republication, patience)
        except MessageHubError as error:
            undeclarable = self._undeclarable_now(republication.queue)
            return self._later(republication, str(error), 0.0 if undeclarable is None else undeclarable.due)
        except Exception:
            logger.exception("the transport failed in an unexpected way")
            return self._later(republication, "the transport failed in an unexpected way")
        if result is PublishResult.CONFIRMED:
            self._undeclarable.pop(republication.queue.name, None)
            try:
                republication.done()
            except Exception:
                logger.exception("a message of %s was moved, but acknowledging it failed", republication.delivery.queue)
            return True
        # None: not answered yet, so keep the receipt. RETURNED: declare the queue first next time. The channel was
        # closed: publish on a channel of its own next time.
        reason = "no confirm yet" if republication.receipt is None else republication.receipt.reason
        if result is not None:
            republication.receipt = None
            republication.undeclared = result is PublishResult.RETURNED
            republication.own_channel = result in (PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR)
            reason = reason or result.value
        return self._later(republication, reason or "no confirm yet", unanswered=result is None)

    def _attempt(self, republication: _Republication, patience: float) -> PublishResult | None:
        now = time.monotonic()
        if republication.undeclared:
            self._declare(republication.queue)
            republication.undeclared = False
            now = time.monotonic()
        if republication.receipt is None:
            patience_to_write = max(patience, WRITE_PATIENCE)
            republication.receipt = self._transport.publish(
                republication.outgoing, now + patience_to_write, own_channel=republication.own_channel
            )
        return republication.receipt.wait(now + patience)

    def _declare(self, queue: QueueSpec) -> None:
        """Declare the queue. If that fails, nothing is published to it until its pause is over."""
        if queue.name in self._declared:
            return  # declared just now, for another delivery
        began = time.monotonic()
        try:
            self._transport.declare_queue(queue, began + DECLARE_TIMEOUT)
        except MessageHubError as error:
            earlier = self._undeclarable.get(queue.name)
            now = time.monotonic()
            # Pause at least as long as the declare took: a silent broker costs the worker at most half its time.
            pause = max(now - began, FIRST_PAUSE if earlier is None else min(2 * earlier.pause, LONGEST_PAUSE))
            self._undeclarable[queue.name] = _UndeclarableQueue(str(error), now + pause, pause)
            raise
        self._declared.add(queue.name)
        self._undeclarable.pop(queue.name, None)

    def _undeclarable_now(self, queue: QueueSpec) -> _UndeclarableQueue | None:
        undeclarable = self._undeclarable.get(queue.name)
        return undeclarable if undeclarable is not None and undeclarable.due > time.monotonic() else None

    def _later(self, republication: _Republication, why: str, due: float = 0.0, *, unanswered: bool = False) -> bool:
        """Schedule the next attempt. Returns false.

        :param due: when its queue may be declared again (``time.monotonic()``); 0.0: after its own pause.
        """
        # A confirm that only takes long is no failure: tell of it after about 4 s.
        quiet = unanswered and republication.pause < QUIET_PAUSE
        republication.stuck = why if due or (republication.warned and not quiet) else ""
        republication.due = due or time.monotonic() + republication.pause
        republication.pause = republication.pause if due else min(2 * republication.pause, LONGEST_PAUSE)
        logger.log(
            # One warning for each message, not for each attempt: the broker may be down for long.
            logging.DEBUG if republication.warned or quiet else logging.WARNING,
            "message %s of %s could not be moved to %s yet; it stays unacked and is tried again: %s",
            printable(republication.outgoing.properties.message_id or "without an id"),
            republication.delivery.queue,
            republication.queue.name,
            why,
        )
        republication.warned = republication.warned or not quiet
        return False


def _outgoing(delivery: Delivery, queue: QueueSpec, properties: Properties) -> Outgoing:
    return Outgoing(DEFAULT_EXCHANGE, queue.name, delivery.body, properties, mandatory=True)
