"""Republishes messages to their retry and dead-letter queues, and acknowledges each one only after its confirm."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubError, MessageValidationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, PublishResult, Receipt, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, QueueSpec

__all__ = ["Republisher"]

logger = SafeLogger("message_hub_sync.moving")

#: Seconds for opening the connection or a channel, and writing a message.
PATIENCE = 0.25
#: Seconds for writing a message while others wait for their next attempt. They are enough if there is a connection.
WRITE_PATIENCE = 0.01
#: Seconds for declaring a queue that does not exist yet: usually once for each queue.
DECLARE_TIMEOUT = 5.0
#: Seconds until the next attempt: at first, and at most. The pause doubles after each attempt.
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
#: Seconds after which an attempt without an answer is told of. A confirm usually takes milliseconds.
SLOW = 5.0

#: Called with the error if AMQP cannot carry the properties of a message. Returns the queue to publish it to instead,
#: with which properties, and what acknowledges the delivery after the confirm.
Fallback = Callable[[MessageValidationError], tuple[QueueSpec, Properties, Callable[[], None]]]


@dataclass(slots=True, eq=False)
class _Republication:
    """One delivery that is being republished. The thread that took it out of its collection owns it."""

    delivery: Delivery
    queue: QueueSpec
    outgoing: Outgoing
    #: Acknowledges the delivery.
    done: Callable[[], None]
    fallback: Fallback | None
    #: Logs why it is moved: with true, that it was moved; with false, that it is not moved yet. ``None`` once it was
    #: called.
    report: Callable[[bool], None] | None
    #: Seconds from the next failed attempt to the one after it.
    pause: float
    #: The receipt of the attempt that is not answered yet.
    receipt: Receipt | None = None
    #: When the last attempt was published (``time.monotonic()``).
    tried_at: float = 0.0
    #: Whether the next attempt is published on a channel of its own.
    own_channel: bool = False
    #: Whether the queue must be declared before the next attempt.
    undeclared: bool = False
    #: Whether it was returned: its queue did not exist.
    returned: bool = False
    #: The time.monotonic() of the next attempt.
    due: float = 0.0
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
    """The deliveries of one queue that are being republished and are not confirmed yet. Any thread may use it.

    No worker waits for a confirm, so as many messages are under way as the prefetch allows. After the confirm a worker
    acknowledges the delivery. A delivery that cannot be republished now stays unacked, and is tried again later.
    While an attempt is not answered, it is not repeated, so that a slow broker does not get the message twice.

    It has no lock, because a confirm may come while a lock of the transport is held. Each republication is in one of
    three collections, and is added and taken out by single, atomic operations.

    :param consumer: acknowledges the deliveries.
    :param attend: has a worker call :meth:`advance` soon. It does not wait, and may be called with any lock held.
    :param attend_at: the same, at a time in monotonic seconds.
    """

    def __init__(
        self,
        transport: Transport,
        consumer: Consumer,
        attend: Callable[[], None],
        attend_at: Callable[[float], None],
    ) -> None:
        self._transport = transport
        self._consumer = consumer
        self._attend = attend
        self._attend_at = attend_at
        self._unanswered: dict[int, _Republication] = {}  # by id() of the receipt
        self._answered: deque[_Republication] = deque()
        self._waiting: deque[_Republication] = deque()  # for their next attempt
        # Those with an attempt whose answer was not dealt with completely: for whoever waits for all of them.
        self._open: set[_Republication] = set()
        self._next_look = math.inf  # the time.monotonic() at which to look for attempts without an answer
        self._connected_at = 0.0  # the time.monotonic() of the last connected()
        self._finishing = False  # set once
        # One backoff for each queue, not for each message: a failed declare may take up to 5 s.
        self._undeclarable: dict[str, _UndeclarableQueue] = {}
        self._declared: dict[str, float] = {}  # the time.monotonic() at which each queue was declared

    # --- for the workers --------------------------------------------------------------------------

    def add(
        self,
        delivery: Delivery,
        queue: QueueSpec,
        properties: Properties,
        done: Callable[[], None],
        fallback: Fallback | None = None,
        report: Callable[[bool], None] | None = None,
    ) -> None:
        """Publish ``delivery`` to ``queue``. Does not wait for the confirm; :meth:`advance` collects it.

        :param properties: the properties to publish it with.
        :param done: acknowledges the delivery; called after the broker has confirmed the message.
        :param fallback: called if AMQP cannot carry ``properties``; returns what to publish instead.
        :param report: logs why it is moved. Called once: with true after the confirm, with false if an attempt fails.
        """
        outgoing = _outgoing(delivery, queue, properties)
        self._try(_Republication(delivery, queue, outgoing, done, fallback, report, FIRST_PAUSE))

    def advance(self) -> None:
        """Deal with the answers, and make one attempt for each delivery that is due.

        A delivery that can no longer be acknowledged is forgotten: the broker delivers it again. If it were
        republished, too, it would be handled twice.
        """
        self._settle_answered()
        if self._finishing:
            return
        now = time.monotonic()
        for _ in range(len(self._waiting)):
            republication = _popped(self._waiting)
            if republication is None:
                break
            if not self._consumer.holds(republication.delivery):
                continue
            if republication.due <= now:
                self._try(republication)
            else:
                self._wait(republication)
        if self._unanswered and now >= self._next_look:
            self._look_at(now + SLOW)
            for republication in list(self._unanswered.values()):
                if now - republication.tried_at >= SLOW:
                    republication.stuck = f"no confirm for {SLOW:g} s"
                    self._tell(republication, republication.stuck)

    # --- for any thread ---------------------------------------------------------------------------

    @property
    def in_flight(self) -> bool:
        """Whether an attempt is not answered, or its answer was not dealt with completely."""
        return bool(self._open)

    def finish(self, deadline: float) -> None:
        """Wait for the answers to what is published, and acknowledge what is confirmed. Publish nothing again.

        What is not confirmed stays unacked.

        :param deadline: monotonic seconds.
        """
        self._finishing = True
        for republication in list(self._open):
            receipt = republication.receipt
            if receipt is not None and receipt.wait(deadline) is not None:
                self._resolved(receipt)  # the thread that has the answer may not have come to it
        self._settle_answered()
        for republication in [*list(self._unanswered.values()), *list(self._waiting)]:
            self._report(republication, False)

    def connected(self) -> None:
        """The broker accepts messages again: have all that waits tried at once. Does not wait."""
        self._connected_at = time.monotonic()
        self._undeclarable.clear()
        for republication in list(self._waiting):
            republication.due, republication.pause = 0.0, FIRST_PAUSE
        if self._waiting:
            self._attend()

    def stuck(self) -> Counter[tuple[str, str]]:
        """How many messages are stuck, by queue to publish to and reason."""
        return Counter(
            (republication.queue.name, republication.stuck)
            for republication in [*list(self._waiting), *list(self._unanswered.values())]
            if republication.stuck
        )

    def _resolved(self, receipt: Receipt) -> None:
        """The broker has answered. A lock of the transport may be held. A second call changes nothing."""
        republication = self._unanswered.pop(id(receipt), None)
        if republication is not None:
            self._answered.append(republication)
            self._attend()

    # --- one attempt ------------------------------------------------------------------------------

    def _try(self, republication: _Republication) -> None:
        """Make one attempt, or schedule it. Does not wait for its answer."""
        undeclarable = self._undeclarable_now(republication.queue)
        if undeclarable is not None:
            self._later(republication, undeclarable.why, undeclarable.due)
            return
        try:
            receipt = self._publish(republication)
        except MessageHubError as error:
            undeclarable = self._undeclarable_now(republication.queue)
            self._later(republication, str(error), 0.0 if undeclarable is None else undeclarable.due)
            return
        except Exception:
            logger.exception("the transport failed in an unexpected way")
            self._later(republication, "the transport failed in an unexpected way")
            return
        republication.receipt = receipt
        if not self._unanswered:
            self._look_at(republication.tried_at + SLOW)
        self._open.add(republication)
        self._unanswered[id(receipt)] = republication
        receipt.on_resolved(lambda: self._resolved(receipt))
        # Do not wait: this leaves it to the I/O thread to read the confirm.
        if receipt.wait(0.0) is not None and self._unanswered.pop(id(receipt), None) is not None:
            self._settle(republication)

    def _publish(self, republication: _Republication) -> Receipt:
        try:
            return self._publish_as_is(republication)
        except MessageValidationError as error:
            if republication.fallback is None:
                raise
            # The properties do not fit into a frame, whose size is known only while connected: the same attempt would
            # always fail.
            republication.queue, properties, republication.done = republication.fallback(error)
            republication.outgoing = _outgoing(republication.delivery, republication.queue, properties)
            republication.fallback = None
            return self._publish_as_is(republication)

    def _publish_as_is(self, republication: _Republication) -> Receipt:
        if republication.undeclared:
            # Not if another delivery had it declared since this one was returned.
            if self._declared.get(republication.queue.name, -math.inf) <= republication.tried_at:
                self._declare(republication.queue)
            republication.undeclared = False
        patience = WRITE_PATIENCE if self._waiting and not republication.own_channel else PATIENCE
        republication.tried_at = now = time.monotonic()
        own_channel = republication.own_channel
        return self._transport.publish(
            republication.outgoing, now + patience, own_channel=own_channel, together=not own_channel
        )

    def _declare(self, queue: QueueSpec) -> None:
        """Declare the queue. If that fails, nothing is published to it until its pause is over."""
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
        self._declared[queue.name] = time.monotonic()
        self._undeclarable.pop(queue.name, None)

    def _undeclarable_now(self, queue: QueueSpec) -> _UndeclarableQueue | None:
        undeclarable = self._undeclarable.get(queue.name)
        return undeclarable if undeclarable is not None and undeclarable.due > time.monotonic() else None

    # --- its answer -------------------------------------------------------------------------------

    def _settle_answered(self) -> None:
        while (republication := _popped(self._answered)) is not None:
            self._settle(republication)

    def _settle(self, republication: _Republication) -> None:
        """Acknowledge it if the broker has confirmed it, else schedule the next attempt."""
        receipt, republication.receipt = republication.receipt, None
        result = None if receipt is None else receipt.result
        assert receipt is not None
        assert result is not None
        if result is PublishResult.CONFIRMED:
            self._undeclarable.pop(republication.queue.name, None)
            self._report(republication, True)  # before the acknowledgement: whoever sees it finds the line in the log
            try:
                republication.done()
            except Exception:
                logger.exception("a message of %s was moved, but acknowledging it failed", republication.delivery.queue)
            finally:
                self._open.discard(republication)
            return
        self._open.discard(republication)
        # RETURNED: declare the queue first. The channel was closed: publish on a channel of its own.
        republication.undeclared = result is PublishResult.RETURNED
        republication.own_channel = result in (PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR)
        if republication.undeclared and not (republication.returned or self._finishing):
            republication.returned = True
            self._try(republication)
        else:
            self._later(republication, receipt.reason or result.value)

    def _later(self, republication: _Republication, why: str, due: float = 0.0) -> None:
        """Schedule the next attempt.

        :param due: when its queue may be declared again (``time.monotonic()``); 0.0: after its own pause.
        """
        if self._connected_at >= republication.tried_at:
            republication.pause = FIRST_PAUSE
        republication.stuck = why if due or republication.warned else ""
        republication.due = due or time.monotonic() + republication.pause
        republication.pause = republication.pause if due else min(2 * republication.pause, LONGEST_PAUSE)
        self._tell(republication, why)
        self._wait(republication)

    def _wait(self, republication: _Republication) -> None:
        self._waiting.append(republication)
        self._attend_at(republication.due)

    def _look_at(self, due: float) -> None:
        self._next_look = due
        self._attend_at(due)

    def _tell(self, republication: _Republication, why: str) -> None:
        self._report(republication, False)
        logger.log(
            # One warning for each message, not for each attempt: the broker may be down for long.
            logging.DEBUG if republication.warned else logging.WARNING,
            "message %s of %s could not be moved to %s yet; it stays unacked and is tried again: %s",
            printable(republication.outgoing.properties.message_id or "without an id"),
            republication.delivery.queue,
            republication.queue.name,
            why,
        )
        republication.warned = True

    def _report(self, republication: _Republication, moved: bool) -> None:
        report, republication.report = republication.report, None
        if report is not None:
            try:
                report(moved)
            except Exception:  # it shows values of the handler, which may raise
                logger.exception("why a message of %s is moved could not be logged", republication.delivery.queue)
        elif moved and republication.warned:
            logger.info(
                "message %s of %s was moved to %s",
                printable(republication.outgoing.properties.message_id or "without an id"),
                republication.delivery.queue,
                republication.queue.name,
            )


def _popped(collection: deque[_Republication]) -> _Republication | None:
    """The first one, taken out; ``None`` if there is none."""
    try:
        return collection.popleft()
    except IndexError:  # another worker has taken it
        return None


def _outgoing(delivery: Delivery, queue: QueueSpec, properties: Properties) -> Outgoing:
    return Outgoing(DEFAULT_EXCHANGE, queue.name, delivery.body, properties, mandatory=True)
