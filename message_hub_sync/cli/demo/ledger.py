"""Records what the demo sent, which services must handle it, and which have handled it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID, uuid4

from message_hub_sync.envelope.correlation import current_correlation_id
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.real_time import time

__all__ = ["Ledger", "Receipt", "Sent"]

Kind = Literal["event", "message", "request"]


@dataclass(frozen=True)
class Receipt:
    """One service has handled something. ``milliseconds``: from sending to the start of the handler."""

    milliseconds: float
    correlation_id: str


@dataclass
class Sent:
    """One event, message or request, and the services that have handled it so far.

    ``expected`` names the services that must handle it. 1: an event's subscribers in the catalogue. 2: a message's
    destination. 3: a request's destination, and its source for the reply.
    """

    id: UUID
    kind: Kind
    name: str
    source: str
    correlation_id: str
    scene: int
    expected: tuple[str, ...]
    at: float
    handled: dict[str, Receipt] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The services that must handle it with its correlation id and have not done so yet."""
        return tuple(
            service
            for service in self.expected
            if service not in self.handled or self.handled[service].correlation_id != self.correlation_id
        )


class Ledger:
    """What was sent and handled in the demo. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sent: dict[UUID, Sent] = {}  # in the order of sending; guarded by _changed
        self._scene = 0  # number of the current scene; guarded by _changed
        self._playing = False  # guarded by _changed
        self._errors: list[str] = []  # guarded by _changed

    # --- called by the services, in their threads

    @contextmanager
    def sending(self, kind: Kind, name: str, source: str, expected: tuple[str, ...]) -> Iterator[Sent]:
        """Note what is sent in the ``with`` block. An error of the package is noted and raised.

        :returns: a context manager that gives the ids to send it with.
        """
        correlation_id = current_correlation_id() or str(uuid4())
        with self._changed:
            sent = Sent(uuid4(), kind, name, source, correlation_id, self._scene, expected, time.monotonic())
            # Before sending: it may be handled before the block ends.
            self._sent[sent.id] = sent
            self._changed.notify_all()
        try:
            yield sent
        except MessageHubError as error:
            self.note_error(f"{name} of {source}: {error}")
            raise

    def knows(self, sent_id: UUID) -> bool:
        """Whether this demo sent it."""
        with self._changed:
            return sent_id in self._sent

    @contextmanager
    def handling(self, sent_id: UUID, service: str, correlation_id: str) -> Iterator[None]:
        """Note that ``service`` has handled it if the ``with`` block ends without an error."""
        arrived = time.monotonic()
        yield
        with self._changed:
            sent = self._sent[sent_id]
            sent.handled.setdefault(service, Receipt((arrived - sent.at) * 1000, correlation_id))
            self._changed.notify_all()

    def scene_ended(self) -> None:
        """The service has finished the calls of its scene."""
        with self._changed:
            self._playing = False
            self._changed.notify_all()

    def note_error(self, error: str) -> None:
        """Note an error for the report."""
        with self._changed:
            self._errors.append(error)

    # --- called by the command

    def scene_begins(self) -> None:
        """Count what is sent from now on to the next scene."""
        with self._changed:
            self._scene += 1
            self._playing = True

    def follow(self, show: Callable[[list[Sent]], None], deadline: float, patience: float) -> bool:
        """Call ``show`` with everything that was sent, at each change, until the scene is complete.

        :param show: called without the lock.
        :param deadline: monotonic seconds.
        :param patience: seconds without a change after which ``show`` is called, too.
        :returns: whether the scene ended, and everything was handled, before the deadline.
        """
        while True:
            with self._changed:
                sent = list(self._sent.values())
                settled = not self._playing and not any(one.missing for one in sent)
                before = self._state()
            show(sent)
            left = deadline - time.monotonic()
            if settled or left <= 0:
                return settled
            with self._changed:
                self._changed.wait_for(lambda before=before: self._state() != before, min(left, patience))  # type: ignore[misc]

    def everything(self) -> list[Sent]:
        """Everything that was sent, in order."""
        with self._changed:
            return list(self._sent.values())

    @property
    def errors(self) -> list[str]:
        """The noted errors, in order."""
        with self._changed:
            return list(self._errors)

    def _state(self) -> tuple[int, int, bool]:
        return len(self._sent), sum(len(one.handled) for one in self._sent.values()), self._playing
