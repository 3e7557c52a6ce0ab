"""The pending acks of one channel, combined into as few ``basic.ack`` as possible. No I/O."""

from __future__ import annotations

__all__ = ["PendingAcks"]


class PendingAcks:
    """The delivery tags of one channel with one consumer. The broker numbers its deliveries 1, 2, 3 …

    The caller of each method holds the connection's lock.
    """

    def __init__(self) -> None:
        # All three are guarded by the connection's lock.
        self._prefix = 0  # guarded; every tag up to this one is acked or rejected
        self._handled: set[int] = set()  # guarded; handled, ack not sent yet
        self._sent: set[int] = set()  # guarded; above the prefix: acked one by one, or rejected

    def mark_handled(self, tag: int) -> int:
        """The message with this tag is handled: :meth:`take` acks it. A tag that was sent before is ignored.

        :returns: how many handled messages are not acked yet.
        """
        if tag > self._prefix and tag not in self._sent:
            self._handled.add(tag)
        return len(self._handled)

    def mark_rejected(self, tag: int) -> bool:
        """The caller rejects the message with this tag.

        :returns: whether to send the reject; false if the message was acked, marked as handled, or rejected before.
        """
        if tag <= self._prefix or tag in self._sent or tag in self._handled:
            return False
        self._sent.add(tag)
        return True

    def take(self) -> list[tuple[int, bool]]:
        """The acks to send now, as pairs of tag and ``multiple``. No ack is pending afterwards."""
        # `multiple` only for the handled tags without a gap from the first one on. Its tag must be an unacked one: the
        # broker closes the channel (406) for a tag that it does not know, such as one that was rejected.
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
