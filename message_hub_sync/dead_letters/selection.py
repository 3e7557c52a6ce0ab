"""Which dead letters are meant: by id, key, error, source or age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from message_hub_sync.consuming.republished_properties import epoch_seconds
from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.envelope.header_names import SOURCE

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """The dead letters that fit every condition that is not ``None``. Without a condition, every letter fits.

    :param message_id: the message id. Several letters may share one.
    :param key: the beginning of :attr:`DeadLetter.key`, at least four characters.
    :param error: a part of the error's type and text, or of the reason; upper and lower case are equal.
    :param source: the service that sent the message.
    :param failed_before: it failed first before this time, in seconds since the epoch.
    :param failed_after: it failed first at this time or later.
    """

    message_id: UUID | str | None = None
    key: str | None = None
    error: str | None = None
    source: str | None = None
    failed_before: float | None = None
    failed_after: float | None = None

    @property
    def takes_all(self) -> bool:
        """Whether every letter fits."""
        return self == _EVERY

    def fits(self, letter: DeadLetter) -> bool:
        """Whether this letter is meant."""
        return (
            (self.message_id is None or self.message_id in (letter.message_id, _uuid(letter.message_id)))
            and (self.key is None or letter.key.startswith(self.key))
            and (self.source is None or letter.properties.headers.get(SOURCE) == self.source)
            and (self.error is None or self.error.casefold() in _error_text(letter.failure).casefold())
            and self._fits_age(letter.failure.get("first_failed_at"))
        )

    def _fits_age(self, first_failed_at: Any) -> bool:
        if self.failed_before is None and self.failed_after is None:
            return True
        moment = epoch_seconds(first_failed_at)
        return (
            moment is not None
            and (self.failed_before is None or moment < self.failed_before)
            and (self.failed_after is None or moment >= self.failed_after)
        )

    def __str__(self) -> str:
        """For an error text: the conditions."""
        conditions = {
            "": self.message_id,
            "with the key ": self.key,
            "with the error ": self.error,
            "from ": self.source,
        }
        found = [f"{word}{value}" for word, value in conditions.items() if value is not None]
        if self.failed_before is not None or self.failed_after is not None:
            found.append("of that age")
        return " ".join(["no message", *found])


_EVERY = Selection()


def _error_text(failure: Any) -> str:
    return f"{failure.get('error_type')}: {failure.get('error_message')} {failure.get('reason')}"


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text or "")
    except ValueError:
        return None
