"""Faults between one client and its hub, on RabbitMQ and on the embedded hub. A test chooses the messages."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from message_hub_sync.config import positive_seconds
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageHubConnectionError, MessageValidationError
from message_hub_sync.runtime.deadlines import remaining
from message_hub_sync.runtime.text import shown
from message_hub_sync.testing._hooks.transport_hooks import Publish, TransportHooks
from message_hub_sync.testing.envelopes import delivered, left_queue, sent
from message_hub_sync.testing.expectations import Where, fitting
from message_hub_sync.transport.base import (
    ConnectionState,
    ConnectionStatus,
    Consumer,
    Delivery,
    Outgoing,
    PublishResult,
    Receipt,
)

__all__ = ["Faults"]

Envelope = Event[Any] | Message[Any]
Kind = Literal["lose_confirm", "nack", "unroutable", "cut_before", "cut_after", "delay", "redeliver"]

_BLOCKED = "the broker accepts no messages (memory or disk alarm); nothing was sent"


@dataclass(eq=False)
class _Plan:
    """A planned fault, for the next ``left`` messages or events that fit."""

    kind: Kind
    fits: Callable[[Envelope], bool]
    left: int
    seconds: float = 0.0


class Faults:
    """Plans faults between one client and its hub. ``MessageHubTestFramework.faults`` creates it. Thread-safe.

    Each planning method has these parameters:

    :param times: how many messages or events get the fault. Faults happen in the order in which they were planned.
    :param where: which ones: a function of the :class:`Message` or :class:`Event`, or a dict of values that the payload
        must hold; ``None`` means all.
    :raises MessageValidationError: ``times`` or ``where`` is invalid.

    Messages that the client moves to retry and dead-letter queues get no fault.
    """

    def __init__(self, hooks: TransportHooks) -> None:
        self._hooks = hooks
        self._changed = threading.Condition()
        self._plans: list[_Plan] = []  # guarded by _changed
        self._blocked = False  # written under _changed
        self._cleared = 0  # number of calls of clear(); written under _changed
        hooks.set_interference(_Interference(self))

    # --- publishing -------------------------------------------------------------------------------

    def lose_confirm(self, times: int = 1, where: Where[Any] = None) -> None:
        """The hub accepts the message, but the confirm is lost.

        The call fails at its deadline with the outcome ``unknown``.
        """
        self._plan("lose_confirm", times, where)

    def nack(self, times: int = 1, where: Where[Any] = None) -> None:
        """The hub sends a nack, as a full queue does. A message fails as ``rejected``, an event as ``unknown``."""
        self._plan("nack", times, where)

    def unroutable(self, times: int = 1, where: Where[Any] = None) -> None:
        """No queue gets the message. A message fails as ``rejected``; an event is confirmed, and no service gets it."""
        self._plan("unroutable", times, where)

    def cut_before(self, times: int = 1, where: Where[Any] = None) -> None:
        """The connections are lost before the hub has accepted the message. The client publishes it again."""
        self._plan("cut_before", times, where)

    def cut_after(self, times: int = 1, where: Where[Any] = None) -> None:
        """The connections are lost after the hub has accepted the message.

        The client publishes it again, with the same id.
        """
        self._plan("cut_after", times, where)

    def delay(self, seconds: float, times: int = 1, where: Where[Any] = None) -> None:
        """The message reaches the hub ``seconds`` later, in real time. If the call's deadline comes first, nothing is
        sent.

        :param seconds: the delay, more than 0.
        """
        self._plan("delay", times, where, positive_seconds(seconds, "seconds"))

    def block(self) -> None:
        """The hub accepts nothing, as with a memory alarm, until :meth:`unblock`. The health status is ``blocked``."""
        with self._changed:
            self._blocked = True

    def unblock(self) -> None:
        """The hub accepts messages again. Waiting calls continue."""
        with self._changed:
            self._blocked = False
            self._changed.notify_all()

    # --- receiving, connections -------------------------------------------------------------------

    def redeliver(self, times: int = 1, where: Where[Any] = None) -> None:
        """The acknowledgement of a handled message or event is lost. The hub delivers it again."""
        self._plan("redeliver", times, where)

    def cut(self) -> None:
        """The connections are lost now. The client reconnects; messages that were being handled are delivered again."""
        self._hooks.transport.interrupt()

    # --- all faults -------------------------------------------------------------------------------

    @property
    def pending(self) -> list[str]:
        """The planned faults that have not happened yet, for example ``["nack", "nack"]``."""
        with self._changed:
            return [plan.kind for plan in self._plans for _ in range(plan.left)]

    def clear(self) -> None:
        """Remove the planned faults, unblock, and end current delays."""
        with self._changed:
            self._plans.clear()
            self._blocked = False
            self._cleared += 1
            self._changed.notify_all()

    # --- inside -----------------------------------------------------------------------------------

    def _plan(self, kind: Kind, times: int, where: Where[Any], seconds: float = 0.0) -> None:
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise MessageValidationError(f"times must be a whole number of at least 1, not {shown(times)}")
        plan = _Plan(kind, fitting(where), times, seconds)
        with self._changed:
            self._plans.append(plan)

    def _next(self, receiving: bool, envelope: Envelope | None) -> _Plan | None:
        """The first plan that fits, or ``None``. One of its ``left`` times is used up."""
        with self._changed:
            plans = [plan for plan in self._plans if (plan.kind == "redeliver") is receiving]
        for plan in plans:
            if envelope is not None and plan.fits(envelope):  # the test's own code: without the lock
                with self._changed:
                    # Another thread may have used it up meanwhile.
                    if plan in self._plans:
                        plan.left -= 1
                        if not plan.left:
                            self._plans.remove(plan)
                        return plan
        return None

    def _wait_unblocked(self, deadline: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._blocked, remaining(deadline))

    def _carry_out(self, plan: _Plan, round_: int, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        """One attempt to publish, with the planned fault."""
        if plan.kind == "nack":
            return _resolved(PublishResult.NACKED, "the test planned a nack")
        if plan.kind == "unroutable":
            if outgoing.mandatory:
                return _resolved(PublishResult.RETURNED, "NO_ROUTE", 312)
            return _resolved(PublishResult.CONFIRMED)
        if plan.kind == "cut_before":
            self.cut()
            return _resolved(PublishResult.LOST, "the test cut the connection")
        if plan.kind == "delay":
            self._wait(plan.seconds, round_, deadline)
            return publish(outgoing, deadline)
        receipt = publish(outgoing, deadline)
        if plan.kind == "lose_confirm":
            return Receipt()
        if receipt.wait(deadline) is not PublishResult.CONFIRMED:
            return receipt  # the hub has not accepted it: there is no "after"
        self.cut()
        return _resolved(PublishResult.LOST, "the test cut the connection")

    def _wait(self, seconds: float, round_: int, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._cleared != round_, min(seconds, remaining(deadline)))
        if not remaining(deadline):
            raise MessageHubConnectionError("the planned delay lasts beyond the deadline of the call: nothing was sent")


def _resolved(result: PublishResult, reason: str = "", code: int = 0) -> Receipt:
    receipt = Receipt()
    receipt.resolve(result, reason, code)
    return receipt


class _Interference:
    """Applies the plans of a :class:`Faults`. Methods: see :class:`Interference`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def publish(self, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        if not self._faults._wait_unblocked(deadline):
            return _resolved(PublishResult.BLOCKED, _BLOCKED)
        round_ = self._faults._cleared  # read before taking the plan: a clear() from now on ends its delay
        plan = None if left_queue(outgoing) else self._faults._next(False, sent(outgoing))
        if plan is None:
            return publish(outgoing, deadline)
        return self._faults._carry_out(plan, round_, outgoing, deadline, publish)

    def ack(self, delivery: Delivery, consumer: Consumer) -> bool:
        if self._faults._next(True, delivered(delivery)) is None:
            return False
        consumer.requeue(delivery)
        return True

    def status(self, connections: Sequence[ConnectionStatus]) -> Sequence[ConnectionStatus]:
        if not self._faults._blocked:
            return connections
        return [
            dataclasses.replace(one, state=ConnectionState.BLOCKED)
            if one.role == "publish" and one.state is ConnectionState.OPEN
            else one
            for one in connections
        ]
