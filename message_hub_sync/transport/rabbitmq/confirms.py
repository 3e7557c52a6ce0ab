"""Which publish an acknowledgement of the broker speaks of. Pure; the connection's lock guards it."""

from __future__ import annotations

from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt

__all__ = ["OutstandingConfirms"]

_ACCESS_REFUSED = 403
#: What the broker calls the exchange without a name when it speaks of permissions.
_DEFAULT_EXCHANGE = "amq.default"


class OutstandingConfirms:
    """Delivery tags in flight on one channel in confirm mode.

    A ``basic.return`` comes before the acknowledgement of its own publish, which may overtake earlier
    ones and may cover several; so returns are remembered by what identifies a publish until then.
    A waiter that gave up leaves its tag here: tags are never reused by position.
    """

    def __init__(self) -> None:
        self._next_tag = 1
        #: By delivery tag, in their order: what was written and is not answered.
        self.in_flight: dict[int, tuple[Receipt, Outgoing]] = {}
        self._returned: dict[tuple[str | None, str, str], list[tuple[int, str]]] = {}
        #: Whether somebody was answered who had given up waiting; whoever asks sets it back.
        self.late = False

    def add(self, receipt: Receipt, outgoing: Outgoing) -> None:
        """The next publish on the wire is this one."""
        self.in_flight[self._next_tag] = (receipt, outgoing)
        self._next_tag += 1

    def returned(self, message_id: str | None, exchange: str, routing_key: str, code: int, reason: str) -> None:
        """The broker found no queue for a mandatory publish; its acknowledgement follows."""
        self._returned.setdefault((message_id, exchange, routing_key), []).append((code, reason))

    def ack(self, tag: int, multiple: bool) -> int:
        """``basic.ack``; how many were answered by it."""
        if not multiple and not self._returned:  # the common one, without detours
            entry = self.in_flight.get(tag)
            if entry is None:
                return 0
            receipt = entry[0]
            receipt.resolve(PublishResult.CONFIRMED)
            if receipt.abandoned:
                self.late = True
            del self.in_flight[tag]  # last, so that an interrupted one is settled when the connection ends
            return 1
        tags = self._tags(tag, multiple)
        for each in tags:
            receipt, outgoing = self.in_flight[each]
            self.late = self.late or receipt.abandoned
            back = self._take_return(outgoing) if self._returned and outgoing.mandatory else None
            if back is None:
                receipt.resolve(PublishResult.CONFIRMED)
            else:
                receipt.resolve(PublishResult.RETURNED, back[1], back[0])
            del self.in_flight[each]
        return len(tags)

    def nack(self, tag: int, multiple: bool) -> None:
        """``basic.nack``."""
        for each in self._tags(tag, multiple):
            receipt, outgoing = self.in_flight.pop(each)
            if outgoing.mandatory:
                self._take_return(outgoing)
            receipt.resolve(
                PublishResult.NACKED, "the broker refused it (basic.nack): a queue is full or not available"
            )

    def closed(self, reason: str, code: int) -> None:
        """The broker closed the channel over a publish, and does not say which: settle all that is in flight.

        The only one in flight is the culprit. And RabbitMQ looks a permission up once per exchange and channel (that
        of credentials that expire, again each minute): where it has not answered anything on this channel yet, whoever
        may not write to an exchange has not written to it before either. Of all others it may have accepted some.
        """
        first_ones = self._next_tag - 1 == len(self.in_flight)
        if len(self.in_flight) > 1 and first_ones and code == _ACCESS_REFUSED:
            for tag, (receipt, outgoing) in list(self.in_flight.items()):
                # Not "access to topic … in exchange …": topics are looked up one by one.
                if f"access to exchange '{outgoing.exchange or _DEFAULT_EXCHANGE}'" in reason:
                    del self.in_flight[tag]
                    receipt.resolve(PublishResult.CHANNEL_ERROR, reason, code)
            self.fail(PublishResult.CHANNEL_ERROR_SHARED, reason, code)
        else:
            self.fail(
                PublishResult.CHANNEL_ERROR if len(self.in_flight) == 1 else PublishResult.CHANNEL_ERROR_SHARED,
                reason,
                code,
            )

    def fail(self, result: PublishResult, reason: str, code: int = 0) -> None:
        """No more answers will come: settle all that is in flight."""
        in_flight = dict(self.in_flight)
        self.in_flight.clear()  # the same dict for good: others look at it
        self._returned.clear()
        for receipt, _ in in_flight.values():
            receipt.resolve(result, reason, code)

    def _tags(self, tag: int, multiple: bool) -> list[int]:
        """Those in flight that an answer covers."""
        if not multiple:
            return [tag] if tag in self.in_flight else []
        tags = []
        for each in self.in_flight:  # in the order of the tags
            if tag and each > tag:  # tag 0 means all of them
                break
            tags.append(each)
        return tags

    def _take_return(self, outgoing: Outgoing) -> tuple[int, str] | None:
        key = (outgoing.properties.message_id, outgoing.exchange, outgoing.routing_key)
        waiting = self._returned.get(key)
        if not waiting:
            return None
        if len(waiting) == 1:
            del self._returned[key]
            return waiting[0]
        return waiting.pop(0)
