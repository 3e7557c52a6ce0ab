"""Put dead letters back into the queue in which they failed: many at once, and each on its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from message_hub_sync.consuming.republished_properties import senders_headers
from message_hub_sync.dead_letters.letter import DeadLetter, why_incomplete
from message_hub_sync.dead_letters.reading import Held, LetterReader, Patience, ReadingLost, never
from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.envelope.header_names import (
    ORIGINAL_EXCHANGE,
    ORIGINAL_ROUTING_KEY,
    ORIGINAL_USER_ID,
)
from message_hub_sync.envelope.values import PERSISTENT
from message_hub_sync.errors import (
    MessageHubConnectionError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE

__all__ = ["NO_QUEUE", "Named", "Requeue", "Requeued", "put_back"]

NO_QUEUE = "there is no queue {queue}: let its service subscribe, then send the dead letter again"

#: Letters of one write; and published letters whose confirm is awaited.
_BATCH, _IN_FLIGHT = 100, 1_000


@dataclass(frozen=True)
class Named:
    """A letter that was not simply put back, with the reason."""

    message_id: str | None
    key: str
    reason: str


@dataclass
class Requeued:
    """What has become of the letters.

    :param found: how many were in the queue at the beginning.
    :param count: how many were put back: confirmed by the hub.
    :param left: those that could not be put back. They are in the dead-letter queue.
    :param doubtful: those that may be there twice, or in both queues, because a connection was lost.
    :param missed: how many were not delivered: another consumer holds them, or has taken them.
    :param error: why it ended early.
    """

    found: int
    count: int = 0
    left: list[Named] = field(default_factory=list)
    doubtful: list[Named] = field(default_factory=list)
    missed: int = 0
    error: MessageHubError | None = None


@dataclass(slots=True, eq=False)
class _Published:
    held: Held
    outgoing: Outgoing
    receipt: Receipt


class Requeue:
    """One run over a dead-letter queue. Not thread-safe.

    :param found: the number of letters in the queue.
    :param only: which letters to put back.
    :param most: end after so many.
    :param done: called with each letter that was put back.
    :param stop: asked before each letter. If it returns true, the run ends in order.
    """

    def __init__(
        self,
        transport: Transport,
        queue: str,
        found: int,
        patience: Patience,
        *,
        only: Selection,
        most: int,
        done: Callable[[DeadLetter], object],
        stop: Callable[[], bool] = never,
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._patience = patience
        self._only = only
        self._most = most
        self._everything = found < most or not only.takes_all
        self._done = done
        self._stop = stop
        self._in_flight: deque[_Published] = deque()
        self._begun = 0  # letters that were published at least once, or left
        # After a loss, by key: letters that were confirmed, those of them without an id, and letters that were left.
        # They come again.
        self._confirmed: Counter[str] = Counter()
        self._confirmed_without_id: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._again: set[Held] = set()  # letters without an id that are published again, and count as before
        self.result = Requeued(found)

    def run(self) -> Requeued:
        """Put the letters back. A lost connection is no end: what was not confirmed is published again.

        An error of the hub is in the result. What ``done`` raises is raised, after the letters in flight are settled.
        """
        wanted, lost = self.result.found, False
        while True:
            reader = LetterReader(
                self._transport,
                self._queue,
                wanted,
                self._patience,
                everything=self._everything,
                after_loss=lost,
                stop=self._stop,
            )
            try:
                with reader:
                    try:
                        self._read(reader)
                        lost = False
                    except ReadingLost:
                        self._note_loss(reader)
                        lost = True
            except MessageHubError as error:
                self.result.error = error
                return self.result
            if not lost:
                if not self._stop() and self._begun < self._most:
                    # Those that were confirmed and did not come again had been removed before the loss.
                    self.result.missed = max(0, wanted - reader.seen - self._may_come_again())
                return self.result
            done = self.result.count + len(self.result.left)
            wanted = max(1, self.result.found - done + self._may_come_again() + sum(self._left.values()))

    def _read(self, reader: LetterReader) -> None:
        letters = reader.read()
        try:
            while batch := list(itertools.islice(letters, _BATCH)):
                self._publish([held for held in batch if self._is_wanted(reader, held)])
                while len(self._in_flight) > _IN_FLIGHT:
                    self._settle_oldest(reader)
                reader.release()
                if self._begun >= self._most and not self._may_come_again():
                    break
            while self._in_flight:
                self._settle_oldest(reader)
        except ReadingLost:
            raise
        except BaseException:
            # What is confirmed leaves the dead-letter queue, whatever ended the run.
            self._await_receipts(reader)
            raise
        reader.release(everything=True)

    def _is_wanted(self, reader: LetterReader, held: Held) -> bool:
        if not self._only.fits(held.letter):
            return False
        if self._confirmed or self._confirmed_without_id or self._left:
            key = held.letter.key
            if self._confirmed[key] > 0:
                self._confirmed[key] -= 1
                reader.settle(held)
                return False
            if self._left[key] > 0:
                self._left[key] -= 1
                return False
            if held.letter.message_id is None and self._confirmed_without_id[key] > 0:
                self._confirmed_without_id[key] -= 1
                self._again.add(held)
                return True
        if self._begun >= self._most:
            return False
        self._begun += 1
        if lost := why_incomplete(held.letter):
            self._leave(held, lost)
            return False
        return True

    def _publish(self, batch: list[Held]) -> None:
        outgoing = [put_back(held.letter, expiration=None) for held in batch]
        receipts = self._transport.publish_many(outgoing, self._patience.next()) if batch else []
        self._in_flight.extend(map(_Published, batch, outgoing, receipts))

    def _settle_oldest(self, reader: LetterReader) -> None:
        """Wait for the oldest confirm. What was not written, or lost, is published again with the same id."""
        published = self._in_flight[0]
        deadline = self._patience.next()
        receipt, alone = published.receipt, False
        while True:
            result = receipt.wait(deadline)
            if result is PublishResult.LOST and published.held.lost:
                raise ReadingLost  # it comes again
            if result is PublishResult.CONFIRMED:
                self._confirm(published.held)
                reader.settle(published.held)
            elif result in _REFUSED:
                queue = published.held.letter.queue
                self._leave(published.held, _REFUSED[result].format(queue=queue, reason=receipt.reason))
            elif result is None or result is PublishResult.BLOCKED:
                raise MessageHubConnectionError(receipt.reason or "the hub did not confirm in time: raise the timeout")
            else:
                if result is PublishResult.LOST:
                    self._doubt(published.held, _NO_CONFIRM)
                # The broker closed the channel, because of this letter or of another one: publish it on its own.
                alone = alone or result is PublishResult.CHANNEL_ERROR_SHARED
                receipt = self._published(published.outgoing, deadline, alone)
                continue
            self._in_flight.popleft()
            return

    def _published(self, outgoing: Outgoing, deadline: float, alone: bool) -> Receipt:
        try:
            return self._transport.publish(outgoing, deadline, own_channel=alone)
        except MessageValidationError as error:
            receipt = Receipt()
            receipt.resolve(PublishResult.INVALID, str(error))
            return receipt

    def _await_receipts(self, reader: LetterReader) -> None:
        """Before the run ends early: note the confirms of what is in flight, and publish nothing again."""
        deadline = self._patience.next()
        while self._in_flight:
            published = self._in_flight.popleft()
            result = published.receipt.wait(deadline)
            if result is PublishResult.CONFIRMED:
                self._confirm(published.held)
                reader.settle(published.held)
            elif result is PublishResult.LOST or result is None:
                published.receipt.abandoned = True
                self._doubt(published.held, _NO_CONFIRM)
        reader.release(everything=True)

    def _note_loss(self, reader: LetterReader) -> None:
        """The letters are back in the dead-letter queue. Remember which of them must not be published again."""
        deadline = self._patience.next()
        again = reader.unsure()
        while self._in_flight:
            published = self._in_flight.popleft()
            result = published.receipt.wait(deadline)
            if result is PublishResult.CONFIRMED:
                self._confirm(published.held)
                again.append(published.held)
                continue
            if published.held in self._again:
                again.append(published.held)
            else:
                self._begun -= 1
            if result is PublishResult.LOST or result is None:
                self._doubt(published.held, _NO_CONFIRM)
        for held in again:
            if held.letter.message_id is None:
                # Letters without an id may be equal. Better twice than lost.
                self._doubt(held, "the connection was lost before it was removed")
                self._confirmed_without_id[held.letter.key] += 1
            else:
                self._confirmed[held.letter.key] += 1
        self._again.clear()
        self._left = Counter(named.key for named in self.result.left)

    def _may_come_again(self) -> int:
        """How many letters were confirmed, but may still be in the dead-letter queue."""
        return sum(self._confirmed.values()) + sum(self._confirmed_without_id.values())

    def _confirm(self, held: Held) -> None:
        if held in self._again:
            return  # it was put back twice, and counts once
        self.result.count += 1
        self._done(held.letter)

    def _leave(self, held: Held, reason: str) -> None:
        self.result.left.append(Named(held.letter.message_id, held.letter.key, reason))

    def _doubt(self, held: Held, reason: str) -> None:
        named = Named(held.letter.message_id, held.letter.key, reason)
        if named not in self.result.doubtful:
            self.result.doubtful.append(named)


_NO_CONFIRM = "the connection was lost before the confirm"
_REFUSED = {
    PublishResult.RETURNED: NO_QUEUE,
    PublishResult.NACKED: "the hub rejected it (a queue is full, or its home node is down)",
    PublishResult.INVALID: "{reason}",
    PublishResult.CHANNEL_ERROR: "the hub rejected it: {reason}",
}


def put_back(letter: DeadLetter, expiration: str | None) -> Outgoing:
    """The publish that puts a dead letter into the queue in which it failed, with this ``expiration`` property.

    It has what was the sender's: no header of the failure or of the broker. ``CC`` and ``BCC`` would send it elsewhere,
    too, and a transient message would be lost with the broker.
    """
    properties = letter.properties
    headers = senders_headers(properties.headers)
    if (letter.exchange, letter.routing_key) != (DEFAULT_EXCHANGE, letter.queue):
        headers |= {ORIGINAL_EXCHANGE: letter.exchange, ORIGINAL_ROUTING_KEY: letter.routing_key}
    if properties.user_id is not None:
        # As a header: the broker closes the channel (406) for a user_id that is not the connection's user.
        headers[ORIGINAL_USER_ID] = properties.user_id
    properties = dataclasses.replace(
        properties, user_id=None, delivery_mode=PERSISTENT, expiration=expiration, headers=headers
    )
    return Outgoing(DEFAULT_EXCHANGE, letter.queue, letter.body, properties, mandatory=True)
