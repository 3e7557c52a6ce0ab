"""Faults between one client and its hub, on either transport, happening exactly where a test says."""

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
    """A fault that is to happen, to the next ones that fit."""

    kind: Kind
    fits: Callable[[Envelope], bool]
    left: int
    seconds: float = 0.0


class Faults:
    """What is to go wrong between one client and its hub. ``MessageHubTestFramework.faults`` gives it.

    Each method plans a fault for the next ``times`` messages or events that the client sends (those that fit
    ``where``), in the order of the calls. What the client moves to retry and dead-letter queues passes untouched.
    Safe from any thread.

    Mutable, guarded by the condition's lock: the plans, whether publishing is blocked, and how often
    all was cleared.
    """

    def __init__(self, hooks: TransportHooks) -> None:
        self._hooks = hooks
        self._changed = threading.Condition(threading.Lock())
        self._plans: list[_Plan] = []
        self._blocked = False
        self._cleared = 0
        hooks.interfere(_Interference(self))

    # --- publishing -------------------------------------------------------------------------------

    def lose_confirm(self, times: int = 1, where: Where[Any] = None) -> None:
        """The hub takes it, and its answer never arrives: the call ends at its deadline, its outcome unknown."""
        self._plan("lose_confirm", times, where)

    def nack(self, times: int = 1, where: Where[Any] = None) -> None:
        """The hub refuses it, as a full queue does: the call ends rejected."""
        self._plan("nack", times, where)

    def unroutable(self, times: int = 1, where: Where[Any] = None) -> None:
        """No queue takes it: a message ends rejected; an event is confirmed, and nobody gets it."""
        self._plan("unroutable", times, where)

    def cut_before(self, times: int = 1, where: Where[Any] = None) -> None:
        """The connections end while it is under way, before the hub has it: the client sends it again."""
        self._plan("cut_before", times, where)

    def cut_after(self, times: int = 1, where: Where[Any] = None) -> None:
        """The connections end when the hub has it, before its answer: the client sends it again, under the same id."""
        self._plan("cut_after", times, where)

    def delay(self, seconds: float, times: int = 1, where: Where[Any] = None) -> None:
        """It reaches the hub ``seconds`` later, in real time; where the deadline comes first, nothing is sent."""
        self._plan("delay", times, where, positive_seconds(seconds, "seconds"))

    def block(self) -> None:
        """The hub accepts nothing, as under a memory alarm, until :meth:`unblock`; health says ``blocked``."""
        with self._changed:
            self._blocked = True

    def unblock(self) -> None:
        """The hub accepts messages again; who waits goes on."""
        with self._changed:
            self._blocked = False
            self._changed.notify_all()

    # --- receiving, connections -------------------------------------------------------------------

    def redeliver(self, times: int = 1, where: Where[Any] = None) -> None:
        """The acknowledgement of what the client has handled is lost, and the hub delivers it again.

        A client that has not lost its connection since it subscribed takes it for what a crashed process left behind,
        and handles it a second later (with a virtual clock: after ``advance(1)``).
        """
        self._plan("redeliver", times, where)

    def cut(self) -> None:
        """The connections end now. They come back by themselves; what is being handled is delivered again."""
        self._hooks.transport.interrupt()

    # --- all of them ------------------------------------------------------------------------------

    @property
    def pending(self) -> list[str]:
        """What was planned and has not happened: ``["nack", "nack"]``."""
        with self._changed:
            return [plan.kind for plan in self._plans for _ in range(plan.left)]

    def clear(self) -> None:
        """Forget what has not happened, unblock, and end delays that run."""
        with self._changed:
            self._plans.clear()
            self._blocked = False
            self._cleared += 1
            self._changed.notify_all()

    # --- inside -----------------------------------------------------------------------------------

    def _plan(self, kind: Kind, times: int, where: Where[Any], seconds: float = 0.0) -> None:
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise MessageValidationError(f"times {times!r} is not usable: a whole number of at least 1 is")
        plan = _Plan(kind, fitting(where), times, seconds)
        with self._changed:
            self._plans.append(plan)

    def _next(self, receiving: bool, envelope: Envelope | None) -> _Plan | None:
        """The first plan that fits, with one of its times used up."""
        with self._changed:
            plans = [plan for plan in self._plans if (plan.kind == "redeliver") is receiving]
        for plan in plans:
            if envelope is not None and plan.fits(envelope):  # a user's function: without the lock
                with self._changed:
                    if plan in self._plans:
                        plan.left -= 1
                        if not plan.left:
                            self._plans.remove(plan)
                        return plan
        return None

    def _accepted(self, deadline: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._blocked, remaining(deadline))

    def _carry_out(self, plan: _Plan, round_: int, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        """An attempt to publish that goes wrong as planned."""
        if plan.kind == "nack":
            return _settled(PublishResult.NACKED, "the test had it refused")
        if plan.kind == "unroutable":
            if outgoing.mandatory:
                return _settled(PublishResult.RETURNED, "NO_ROUTE", 312)
            return _settled(PublishResult.CONFIRMED)
        if plan.kind == "cut_before":
            self.cut()
            return _settled(PublishResult.LOST, "the test cut the connection")
        if plan.kind == "delay":
            self._wait(plan.seconds, round_, deadline)
            return publish(outgoing, deadline)
        receipt = publish(outgoing, deadline)
        if plan.kind == "lose_confirm":
            return Receipt()
        if receipt.wait(deadline) is not PublishResult.CONFIRMED:
            return receipt  # the hub does not have it: there is no "after"
        self.cut()
        return _settled(PublishResult.LOST, "the test cut the connection")

    def _wait(self, seconds: float, round_: int, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._cleared != round_, min(seconds, remaining(deadline)))
        if not remaining(deadline):
            raise MessageHubConnectionError("the test delayed it beyond its deadline: nothing was sent")


def _settled(result: PublishResult, reason: str = "", code: int = 0) -> Receipt:
    receipt = Receipt()
    receipt.resolve(result, reason, code)
    return receipt


class _Interference:
    """What the hooks asks, answered by a :class:`Faults`."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def publish(self, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        if not self._faults._accepted(deadline):
            return _settled(PublishResult.BLOCKED, _BLOCKED)
        round_ = self._faults._cleared  # before the plan is taken: a clear() from now on ends its delay
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
