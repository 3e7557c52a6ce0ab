"""Read dead-letter queues, remove messages from them, and requeue dead letters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

from message_hub_sync.catalogue import catalogue
from message_hub_sync.dead_letters.letter import DeadLetter, why_incomplete
from message_hub_sync.dead_letters.reading import (
    LetterReader,
    Patience,
    ReadingIsNotFree,
    ReadingLost,
    check_reading_is_free,
    never,
)
from message_hub_sync.dead_letters.requeueing import NO_QUEUE, Requeue, Requeued, put_back
from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.errors import (
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageValidationError,
)
from message_hub_sync.transport.base import PublishResult, QueueStats, Transport
from message_hub_sync.transport.topology import (
    DEAD_LETTER_SUFFIX,
    QueueSpec,
    event_queue_name,
    inbox_name,
)

__all__ = [
    "Gathered",
    "dead_letter_queues",
    "each_dead_letter",
    "existing",
    "fetch_dead_letter",
    "gathered",
    "requeue_dead_letters",
    "requeue_selected",
    "send_again",
    "take_dead_letters",
]


def fetch_dead_letter(
    transport: Transport,
    queue: str,
    message_id: UUID | str | None,
    save: Callable[[DeadLetter], object],
    *,
    remove: bool = False,
    wait: bool = False,
    deadline: float,
    force: bool = False,
) -> DeadLetter:
    """Read one message of a dead-letter queue.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param message_id: the message's id; ``None`` means the oldest.
    :param save: called with the message before it is removed. If it raises, the message stays.
    :param remove: remove the message. Otherwise it stays; all other messages stay in any case.
    :param wait: wait until the deadline for the message to be dead-lettered. A missing queue is declared.
    :param deadline: monotonic seconds.
    :param force: read the queue even if it drops a message that is read too often.
    :returns: the message.
    :raises MessageValidationError: the queue does not exist, is empty, or does not hold that message.
    :raises MessageHubConfigurationError: the queue drops a message that is read too often, and ``force`` is false.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    found: list[DeadLetter] = []

    def keep(letter: DeadLetter) -> None:
        save(letter)
        found.append(letter)

    name, patience = _dead(queue), Patience(deadline)
    if wait and _stats(transport, name, deadline) is None:
        transport.declare_queue(QueueSpec(name), deadline)
    only = Selection(message_id=message_id)
    seen = take_dead_letters(transport, queue, keep, patience, only=only, most=1, remove=remove, wait=wait, force=force)
    if not found:
        raise _missing(name, only, seen)
    return found[0]


def each_dead_letter(
    transport: Transport,
    queue: str,
    seen: Callable[[DeadLetter], object],
    deadline: float,
    *,
    force: bool = False,
) -> None:
    """Read the messages that are in a dead-letter queue now, oldest first. All of them stay.

    They are read in pages, so any number of them needs little memory.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param seen: called with each message.
    :param deadline: monotonic seconds.
    :param force: read the queue even if it drops a message that is read too often.
    :raises MessageValidationError: the queue does not exist or is empty.
    :raises MessageHubConfigurationError: the queue drops a message that is read too often, and ``force`` is false.
    :raises MessageHubConnectionError: the hub did not deliver all of them in time, or the connection was lost.
    """
    take_dead_letters(transport, queue, seen, Patience(deadline), force=force)


def take_dead_letters(
    transport: Transport,
    queue: str,
    act: Callable[[DeadLetter], object],
    patience: Patience,
    *,
    only: Selection | None = None,
    most: int = sys.maxsize,
    remove: bool = False,
    wait: bool = False,
    force: bool = False,
    stop: Callable[[], bool] = never,
) -> int:
    """Read messages, oldest first, and remove those that are meant if ``remove`` is true. Others stay.

    :param act: called with each message that is meant, before it is removed. If it raises, the message stays.
    :param only: which messages are meant; by default all.
    :param most: end after so many.
    :param wait: wait for new messages until the deadline.
    :param force: read the queue even if it drops a message that is read too often.
    :param stop: asked before each message. If it returns true, the reading ends in order.
    :returns: the number of messages that were read.
    :raises MessageValidationError: the queue does not exist or is empty.
    :raises MessageHubConfigurationError: the queue drops a message that is read too often, and ``force`` is false.
    :raises MessageHubConnectionError: the hub did not answer in time, or the connection was lost.
    """
    name, only = _dead(queue), only or Selection()
    count = sys.maxsize if wait else _depth(transport, name, patience.next())
    if not force:
        check_reading_is_free(transport, name, patience.next())
    wanted = min(count, most) if only.takes_all else count
    everything = wanted == count and not wait
    reader = LetterReader(transport, name, wanted, patience, everything=everything, stop=stop, wait=wait)
    acted = 0
    try:
        with reader:
            for held in reader.read():
                if not only.fits(held.letter):
                    continue
                act(held.letter)
                acted += 1
                if remove:
                    reader.settle(held)
                    reader.release()
                if acted == most:
                    break
            if remove:
                reader.release(everything=True)
    except ReadingLost:
        raise MessageHubConnectionError(
            f"the connection to the hub was lost after {reader.seen} messages of {name}; "
            + (f"{reader.removed} were removed, and of the next ones some may be: " if remove else "all are there: ")
            + "repeat it"
        ) from None
    return reader.seen


def requeue_dead_letters(
    transport: Transport,
    queue: str,
    message_id: UUID | str | None,
    done: Callable[[DeadLetter], object],
    *,
    every: bool = False,
    deadline: float,
    force: bool = False,
) -> int:
    """Publish messages to the queue in which they failed, and remove them from the dead-letter queue.

    A requeued message gets all its attempts again, and no longer expires. One that cannot be requeued stays, and the
    others are requeued. If the connection is lost, the work goes on when it is back.

    :param transport: the connection to the hub.
    :param queue: the queue, with or without ``.dead``.
    :param message_id: the message's id; ``None`` means the oldest.
    :param done: called with each message after the hub has confirmed it.
    :param every: requeue all messages that are there at the beginning; ``message_id`` is then ignored.
    :param deadline: monotonic seconds, for all messages together.
    :param force: read the queue even if it drops a message that is read too often.
    :returns: the number of requeued messages.
    :raises MessageValidationError: the queue does not exist, is empty, or does not hold that message.
    :raises MessageHubDeliveryError: messages could not be requeued, and stay. The text names the first ones.
    :raises MessageHubConfigurationError: the queue drops a message that is read too often, and ``force`` is false.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    only = Selection() if every else Selection(message_id=message_id)
    most = sys.maxsize if every else 1
    result = requeue_selected(transport, queue, Patience(deadline), only=only, most=most, done=done, force=force)
    if result.error is not None:
        raise result.error
    if result.left:
        names = "; ".join(f"message {one.message_id}: {one.reason}" for one in result.left[:5])
        raise MessageHubDeliveryError(
            f"{len(result.left)} dead letters stay in {_dead(queue)}, {result.count} were put back; {names}",
            outcome="rejected",
            reason=result.left[0].reason,
        )
    if not result.count:
        raise _missing(_dead(queue), only, result.found - result.missed)
    return result.count


def requeue_selected(
    transport: Transport,
    queue: str,
    patience: Patience,
    *,
    only: Selection,
    most: int = sys.maxsize,
    done: Callable[[DeadLetter], object],
    force: bool = False,
    stop: Callable[[], bool] = never,
) -> Requeued:
    """Requeue the messages that are meant. See :func:`requeue_dead_letters`.

    :param only: which messages are meant.
    :param most: end after so many.
    :param stop: asked before each message. If it returns true, the work ends in order.
    :returns: what has become of them, also if the hub does not answer any more.
    :raises MessageValidationError: the dead-letter queue does not exist or is empty.
    :raises MessageHubDeliveryError: the queue to which they go back does not exist.
    :raises MessageHubConfigurationError: the queue drops a message that is read too often, and ``force`` is false.
    """
    name = _dead(queue)
    found = _depth(transport, name, patience.next())
    target = name.removesuffix(DEAD_LETTER_SUFFIX)
    if _stats(transport, target, patience.next()) is None:
        raise MessageHubDeliveryError(NO_QUEUE.format(queue=target), outcome="rejected")
    if not force:
        check_reading_is_free(transport, name, patience.next())
    wanted = min(found, most) if only.takes_all else found
    return Requeue(transport, name, wanted, patience, only=only, most=most, done=done, stop=stop).run()


def dead_letter_queues(service: str) -> list[str]:
    """The dead-letter queues that a service may have.

    They belong to its inbox, the events of the catalogue, their patterns (``character.*``) and ``#``.
    """
    names = [event_type.name for event_type in catalogue]
    families = [f"{family}.*" for family in dict.fromkeys(name.partition(".")[0] for name in names)]
    queues = [inbox_name(service), *(event_queue_name(service, name) for name in (*names, *families, "#"))]
    return [_dead(queue) for queue in queues]


@dataclass(frozen=True)
class Gathered:
    """The state of one dead-letter queue.

    :param queue: its name, with ``.dead``.
    :param depth: the number of messages in it that no consumer holds.
    :param oldest: the oldest of them; ``None`` if it was not asked for, or if reading it is not free.
    :param consumers: how many consumers it has. Each may hold messages that ``depth`` does not count.
    :param reading_is_free: false if the queue drops a message that is read too often.
    """

    queue: str
    depth: int
    oldest: DeadLetter | None
    consumers: int = 0
    reading_is_free: bool = True


def gathered(
    transport: Transport, queues: Iterable[str], deadline: float, *, with_oldest: bool = True, force: bool = False
) -> list[Gathered]:
    """The state of each of these dead-letter queues that has messages or consumers. A missing queue counts as empty.

    :param transport: the connection to the hub.
    :param queues: their names, with or without ``.dead``.
    :param deadline: monotonic seconds.
    :param with_oldest: read the oldest message of each queue, too. It returns to its old position at once.
    :param force: read it even if the queue drops a message that is read too often.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    names = list(dict.fromkeys(_dead(queue) for queue in queues))
    found = transport.queue_stats(names, deadline)
    return [
        _gathered(transport, name, stats, deadline, with_oldest, force)
        for name, stats in found.items()
        if stats is not None and (stats.depth or stats.consumers)
    ]


def _gathered(
    transport: Transport, name: str, stats: QueueStats, deadline: float, with_oldest: bool, force: bool
) -> Gathered:
    oldest, free = None, True
    if with_oldest and stats.depth:
        try:
            oldest = fetch_dead_letter(transport, name, None, lambda found: None, deadline=deadline, force=force)
        except ReadingIsNotFree:
            free = False
        except MessageValidationError:  # the queue has been emptied or deleted meanwhile
            pass
    return Gathered(name, stats.depth, oldest, stats.consumers, free)


def existing(transport: Transport, queues: Iterable[str], deadline: float) -> list[str]:
    """The names, without ``.dead``, of those queues that exist or have a dead-letter queue that exists.

    :param transport: the connection to the hub.
    :param queues: their names, with or without ``.dead``.
    :param deadline: monotonic seconds.
    :raises MessageHubConnectionError: the hub did not answer in time.
    """
    names = list(dict.fromkeys(queue.removesuffix(DEAD_LETTER_SUFFIX) for queue in queues))
    found = transport.queue_stats([*names, *map(_dead, names)], deadline)
    return [name for name in names if (found[name] or found[_dead(name)]) is not None]


def send_again(transport: Transport, letter: DeadLetter, deadline: float) -> None:
    """Publish a dead letter to the queue in which it failed, without the headers of its failure.

    :param transport: the connection to the hub.
    :param letter: the dead letter.
    :param deadline: monotonic seconds.
    :raises MessageHubDeliveryError: the queue does not exist, or the hub did not confirm in time.
    :raises MessageValidationError: its headers or its body were lost before it was dead-lettered.
    """
    if lost := why_incomplete(letter):
        raise MessageValidationError(f"the dead letter {letter.message_id} cannot be sent again: {lost}")
    receipt = transport.publish(put_back(letter, letter.properties.expiration), deadline)
    result = receipt.wait(deadline)
    if result is PublishResult.RETURNED:
        raise MessageHubDeliveryError(NO_QUEUE.format(queue=letter.queue), outcome="rejected")
    if result is not PublishResult.CONFIRMED:
        reason = receipt.reason or "no confirm in time"
        raise MessageHubDeliveryError(
            f"the hub did not confirm the dead letter {letter.message_id}: {reason}", outcome="unknown"
        )


def _dead(queue: str) -> str:
    return queue.removesuffix(DEAD_LETTER_SUFFIX) + DEAD_LETTER_SUFFIX


def _missing(name: str, only: Selection, seen: int) -> MessageValidationError:
    return MessageValidationError(f"the queue {name} has {only}; messages read: {seen}")


def _stats(transport: Transport, name: str, deadline: float) -> QueueStats | None:
    return transport.queue_stats([name], deadline)[name]


def _depth(transport: Transport, name: str, deadline: float) -> int:
    stats = _stats(transport, name, deadline)
    if stats is None:
        raise MessageValidationError(f"there is no queue {name}: nothing was dead-lettered there")
    if not stats.depth:
        held = f"; it has {stats.consumers} consumers, which may hold messages" if stats.consumers else ""
        raise MessageValidationError(f"the queue {name} is empty, or another consumer holds what is in it{held}")
    return stats.depth
