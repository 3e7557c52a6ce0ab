"""The outstanding publisher confirms of one channel. No I/O; the connection's lock guards it."""

from __future__ import annotations

from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt

__all__ = ["OutstandingConfirms"]

_ACCESS_REFUSED = 403
#: RabbitMQ's name for the default exchange in its texts about permissions.
_DEFAULT_EXCHANGE = "amq.default"


class OutstandingConfirms:
    """The publishes in flight on one channel in confirm mode, by delivery tag.

    The caller of each method holds the connection's lock.
    """

    def __init__(self) -> None:
        self._next_tag = 1  # guarded by the connection's lock
        #: By delivery tag, in order: the publishes that are written and not answered. A publish whose caller stopped
        #: waiting stays here: the broker still answers its tag.
        self.in_flight: dict[int, tuple[Receipt, Outgoing]] = {}  # guarded by the connection's lock
        # A basic.return comes before the ack of its publish. That ack may overtake earlier ones, and may cover several
        # publishes. So keep the returns until the ack, by message id, exchange and routing key.
        self._returned: dict[tuple[str | None, str, str], list[tuple[int, str]]] = {}  # guarded likewise
        #: Whether a publish was answered after its caller had stopped waiting. The reader resets it.
        self.late = False  # guarded likewise

    def add(self, receipt: Receipt, outgoing: Outgoing) -> None:
        """Assign the next delivery tag to this publish. Call it in the order of the writes."""
        self.in_flight[self._next_tag] = (receipt, outgoing)
        self._next_tag += 1

    def returned(self, message_id: str | None, exchange: str, routing_key: str, code: int, reason: str) -> None:
        """Handle a ``basic.return``: no queue matched a mandatory publish. Its ack follows."""
        self._returned.setdefault((message_id, exchange, routing_key), []).append((code, reason))

    def ack(self, tag: int, multiple: bool) -> int:
        """Handle a ``basic.ack``.

        :returns: how many publishes it confirmed.
        """
        if not multiple and not self._returned:  # the fast path of the common case
            entry = self.in_flight.get(tag)
            if entry is None:
                return 0
            receipt = entry[0]
            receipt.resolve(PublishResult.CONFIRMED)
            if receipt.abandoned:
                self.late = True
            del self.in_flight[tag]  # last: if a signal interrupts this, the end of the connection resolves the receipt
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
        """Handle a ``basic.nack``."""
        for each in self._tags(tag, multiple):
            receipt, outgoing = self.in_flight.pop(each)
            if outgoing.mandatory:
                self._take_return(outgoing)
            receipt.resolve(
                PublishResult.NACKED, "the broker rejected it (basic.nack): a queue is full or not available"
            )

    def closed(self, reason: str, code: int) -> None:
        """The broker closed the channel because of a publish: resolve every publish in flight.

        :param reason: the broker's code and text.
        :param code: its reply code.
        """
        # The broker does not name the publish. Three cases:
        # 1: several in flight, no answer yet on this channel, and 403 for an exchange: all publishes to that exchange
        #    were denied. RabbitMQ checks the permission once per exchange and channel (for credentials that expire,
        #    again each minute), so it accepted none of them before. The publishes to other exchanges are case 3.
        # 2: one in flight: it is the cause, and the broker did not accept it.
        # 3: several in flight: one of them is the cause, and the broker may have accepted some of the others.
        first_ones = self._next_tag - 1 == len(self.in_flight)
        if len(self.in_flight) > 1 and first_ones and code == _ACCESS_REFUSED:
            for tag, (receipt, outgoing) in list(self.in_flight.items()):
                # Not "access to topic … in exchange …": RabbitMQ checks each topic on its own.
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
        """The channel ended, so no answer will come: resolve every publish in flight with ``result``."""
        in_flight = dict(self.in_flight)
        self.in_flight.clear()  # not replaced by a new dict: the reader role holds a reference to this one
        for receipt, _ in in_flight.values():
            receipt.resolve(result, reason, code)

    def _tags(self, tag: int, multiple: bool) -> list[int]:
        """The tags in flight that an answer covers."""
        if not multiple:
            return [tag] if tag in self.in_flight else []
        tags = []
        for each in self.in_flight:  # in the order of the tags
            if tag and each > tag:  # tag 0 covers all
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
