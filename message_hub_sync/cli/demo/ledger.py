"""What was sent in the demo, who should handle it, and who did."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID, uuid4

from message_hub_sync.envelope.correlation import current_correlation_id
from message_hub_sync.errors import MessageHubError

__all__ = ["Ledger", "Receipt", "Sent"]

Kind = Literal["event", "message", "request"]


@dataclass(frozen=True)
class Receipt:
    """One service has handled something: how long after it was sent it arrived, under which correlation id."""

    milliseconds: float
    correlation_id: str


@dataclass
class Sent:
    """One event, message or request, and who has handled it so far.

    ``expected``: the event's subscribers by the catalogue; a message's destination; for a request its destination
    and, for the reply, its source.
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
        """Who should have handled it under its correlation id, and has not."""
        return tuple(
            service
            for service in self.expected
            if service not in self.handled or self.handled[service].correlation_id != self.correlation_id
        )


class Ledger:
    """Mutable, guarded by ``_changed``: what was sent, in order; the scenes begun and ended; what went wrong."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sent: dict[UUID, Sent] = {}
        self._scene = 0
        self._playing = False
        self._errors: list[str] = []

    # --- written by the services, from their threads

    @contextmanager
    def sending(self, kind: Kind, name: str, source: str, expected: tuple[str, ...]) -> Iterator[Sent]:
        """Note what is sent inside the ``with`` block: before, because it may be handled before that ends.

        An error of the hub is noted, and goes on.
        """
        correlation_id = current_correlation_id() or str(uuid4())
        with self._changed:
            sent = Sent(uuid4(), kind, name, source, correlation_id, self._scene, expected, time.monotonic())
            self._sent[sent.id] = sent
            self._changed.notify_all()
        try:
            yield sent
        except MessageHubError as error:
            self.note_error(f"{name} of {source}: {error}")
            raise

    def knows(self, sent_id: UUID) -> bool:
        """Whether it was sent by this demo."""
        with self._changed:
            return sent_id in self._sent

    @contextmanager
    def handling(self, sent_id: UUID, service: str, correlation_id: str) -> Iterator[None]:
        """Note, when the ``with`` block ends without an error, that ``service`` has handled it."""
        arrived = time.monotonic()
        yield
        with self._changed:
            sent = self._sent[sent_id]
            sent.handled.setdefault(service, Receipt((arrived - sent.at) * 1000, correlation_id))
            self._changed.notify_all()

    def scene_ended(self) -> None:
        """The service whose scene it was has done its part."""
        with self._changed:
            self._playing = False
            self._changed.notify_all()

    def note_error(self, error: str) -> None:
        """Something went wrong that the missing deliveries do not tell."""
        with self._changed:
            self._errors.append(error)

    # --- read by the command

    def scene_begins(self) -> None:
        """What is sent from now on belongs to the next scene."""
        with self._changed:
            self._scene += 1
            self._playing = True

    def follow(self, show: Callable[[list[Sent]], None], deadline: float, patience: float) -> bool:
        """Call ``show`` with all that was sent, at each change and whenever ``patience`` seconds bring none.

        :returns: whether the scene ended and all was handled before the deadline (monotonic seconds).
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
        """All that was sent, in order."""
        with self._changed:
            return list(self._sent.values())

    @property
    def errors(self) -> list[str]:
        """What went wrong, in the order in which it was noticed."""
        with self._changed:
            return list(self._errors)

    def _state(self) -> tuple[int, int, bool]:
        return len(self._sent), sum(len(one.handled) for one in self._sent.values()), self._playing
