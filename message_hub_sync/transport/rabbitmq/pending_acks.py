"""How few acknowledgements say what is finished. Pure; the connection's lock guards it."""

from __future__ import annotations

__all__ = ["PendingAcks"]


class PendingAcks:
    """The delivery tags of one channel with one consumer: 1, 2, 3 … as the broker hands them out.

    ``multiple`` is used for the contiguous finished prefix only, and its tag is always one that is still
    outstanding: acknowledging an unknown tag closes the channel (406).
    """

    def __init__(self) -> None:
        self._prefix = 0  # every tag up to here is settled and said
        self._handled: set[int] = set()  # settled, not said yet
        self._sent: set[int] = set()  # said one by one, above the prefix

    @property
    def waiting(self) -> int:
        """How many acknowledgements wait to be said."""
        return len(self._handled)

    def mark_handled(self, tag: int) -> None:
        """The message of this tag is done with."""
        if tag > self._prefix and tag not in self._sent:
            self._handled.add(tag)

    def mark_rejected(self, tag: int) -> bool:
        """The message of this tag is being rejected by the caller; false when it was settled before."""
        if tag <= self._prefix or tag in self._sent or tag in self._handled:
            return False
        self._sent.add(tag)
        return True

    def take(self) -> list[tuple[int, bool]]:
        """What to say now: pairs of tag and ``multiple``. Afterwards nothing waits."""
        last_outstanding = 0
        count = 0
        tag = self._prefix + 1
        while True:
            if tag in self._handled:
                self._handled.remove(tag)
                last_outstanding = tag
                count += 1
            elif tag in self._sent:
                self._sent.remove(tag)
            else:
                break
            tag += 1
        self._prefix = tag - 1
        acks = [(last_outstanding, count > 1)] if count else []
        acks.extend((each, False) for each in sorted(self._handled))
        self._sent |= self._handled
        self._handled.clear()
        return acks
