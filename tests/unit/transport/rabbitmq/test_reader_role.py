"""Who reads, the I/O thread or the one caller who waits; and who writes for whom. Over a socket pair, with a script."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from locking import held
from pika import frame, spec
from waiting import eventually

from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq import confirm_channel as module
from message_hub_sync.transport.rabbitmq.confirm_channel import ConfirmChannel
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.polling import Waker
from message_hub_sync.transport.rabbitmq.reader_role import ReaderRole

NUMBER = 1
MESSAGE = b"a message's frames."


class InterruptedBySignal(BaseException):
    """What a signal handler raises."""


class Line:
    """A confirm channel on a connection with its I/O thread, and the broker's end of the socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.settimeout(5)
        self.waker = Waker()
        self.connection = ThreadedConnection(pika.ConnectionParameters(), ours, self.waker)
        self.connection._body_max_length = 100_000  # as negotiated
        channel: Any = SimpleNamespace(connection=self.connection, number=NUMBER)
        #: Where each answer to somebody who had given up is told.
        self.late: list[threading.Thread] = []
        self.channel = ConfirmChannel(channel, lambda: self.late.append(threading.current_thread()))
        #: Which thread took each batch of answers.
        self.readers: list[threading.Thread] = []
        self.connection.frame_handlers[NUMBER] = self
        self.stopping = False
        self.rung = 0
        self.io = threading.Thread(target=self._serve, name="io", daemon=True)
        self.io.start()

    def take(self, data: bytes, position: int) -> int:
        """As the channel, noting who reads."""
        self.readers.append(threading.current_thread())
        return self.channel.take(data, position)

    def _serve(self) -> None:
        while self.connection.alive and not self.stopping:
            self.connection.serve(time.monotonic() + 600)
            self.rung += 1
        # As a link does: the channel is told.
        self.connection.end("the test is over")
        with held(self.connection.lock):
            self.channel._fail(ConnectionResetError())

    def submit(self, reply_to: str | None = None) -> Receipt:
        receipt = Receipt()
        self.channel.submit(receipt, Outgoing("", "q", b"", SimpleNamespace(reply_to=reply_to)), MESSAGE)  # type: ignore[arg-type]
        return receipt

    def got(self, messages: int) -> None:
        """The broker's end has got so many more."""
        left = messages * len(MESSAGE)
        while left:
            data = self.peer.recv(left)
            assert data
            left -= len(data)

    def ack(self, tag: int, multiple: bool = False) -> None:
        self.peer.sendall(frame.Method(NUMBER, spec.Basic.Ack(tag, multiple)).marshal())

    def confirmed(self) -> Receipt:
        """One message, confirmed."""
        receipt = self.submit()
        self.got(1)
        self.ack(self.channel._outstanding._next_tag - 1)
        assert receipt.wait(soon()) is PublishResult.CONFIRMED
        return receipt

    def offer(self) -> None:
        """Publish alone until callers may read for themselves."""
        turn = self.connection.reader_role
        deadline = soon()
        while not turn.callers_may_read:
            assert time.monotonic() < deadline
            self.confirmed()
        self.readers.clear()

    def close(self) -> None:
        self.stopping = True
        self.waker.wake()
        self.io.join(30)
        self.peer.close()
        self.waker.close()


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O thread does not take the socket back for want of a reader, however late that one comes."""
    monkeypatch.setattr("message_hub_sync.transport.rabbitmq.reader_role._TICK", 30.0)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def lone_caller(line: Line) -> tuple[threading.Thread, list[Any]]:
    """In a thread of its own: publishes, and reads for itself."""
    thread, results = in_thread(lambda: line.submit().wait(soon()))
    line.got(1)
    assert eventually(lambda: not line.channel._draining)
    return thread, results


# --- who reads -----------------------------------------------------------------------------------


def test_a_caller_that_is_alone_reads_its_own_answer(line: Line) -> None:
    line.offer()
    deadline = soon()
    while line.readers[-1:] != [threading.current_thread()]:  # between two calls the I/O thread may take it back
        assert time.monotonic() < deadline
        line.offer()
        line.confirmed()


def test_what_comes_unasked_is_read_when_nobody_publishes(line: Line) -> None:
    line.offer()
    line.ack(999)
    assert eventually(lambda: line.readers == [line.io])
    assert not line.connection.reader_role.callers_may_read


def test_a_wake_of_the_io_thread_is_heard_while_a_caller_reads(line: Line) -> None:
    line.offer()
    thread, results = lone_caller(line)
    before = line.rung
    line.waker.wake()
    assert eventually(lambda: line.rung > before, 1)
    line.ack(line.channel._outstanding._next_tag - 1)
    thread.join(30)
    assert results == [PublishResult.CONFIRMED]


@pytest.mark.parametrize("first_answered", ["the reader's", "the other's", "both at once"])
def test_callers_that_meet_while_one_reads_all_get_their_answers(line: Line, first_answered: str) -> None:
    line.offer()
    reader, results = lone_caller(line)
    tag = line.channel._outstanding._next_tag - 1
    other, others = in_thread(lambda: line.submit().wait(soon()))
    line.got(1)
    if first_answered == "both at once":
        line.ack(tag + 1, multiple=True)
    else:
        one, two = (tag, tag + 1) if first_answered == "the reader's" else (tag + 1, tag)
        line.ack(one)
        assert eventually(lambda: len(results) + len(others) == 1)
        line.ack(two)
    reader.join(30)
    other.join(30)
    assert results + others == [PublishResult.CONFIRMED] * 2


@pytest.fixture
def long_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that reads sleeps until its socket is readable, however long that takes."""
    monkeypatch.setattr("message_hub_sync.transport.rabbitmq.reader_role._SLICE", 60.0)


def test_a_caller_that_reads_is_not_left_asleep_by_another_one_that_publishes(
    lasting: None, long_slice: None, line: Line
) -> None:
    # The I/O thread would take both answers, and the reader would sleep until its slice ends.
    line.offer()
    reader, results = lone_caller(line)
    tag = line.channel._outstanding._next_tag - 1
    other = line.submit()
    line.got(1)
    line.ack(tag + 1, multiple=True)
    reader.join(20)
    assert results == [PublishResult.CONFIRMED]
    assert other.result is PublishResult.CONFIRMED


def test_the_io_thread_gets_the_socket_back_from_the_caller_that_reads(
    lasting: None, long_slice: None, line: Line
) -> None:
    line.offer()
    thread, results = lone_caller(line)
    before = line.rung
    line.waker.wake()
    assert eventually(lambda: line.connection.reader_role._wanted)
    line.ack(line.channel._outstanding._next_tag - 1)
    thread.join(20)
    assert results == [PublishResult.CONFIRMED]
    assert eventually(lambda: line.rung > before, 20)


def test_the_caller_of_a_request_does_not_read(lasting: None, line: Line) -> None:
    # It waits for the reply too, which comes on another connection.
    line.offer()
    receipt = line.submit(reply_to="svc.replies.1")
    assert receipt.read_until_resolved is None
    assert not line.connection.reader_role.callers_may_read
    line.got(1)
    line.ack(line.channel._outstanding._next_tag - 1)
    assert eventually(lambda: receipt.result is PublishResult.CONFIRMED)


@pytest.mark.parametrize(("count", "others", "single"), [(1, 0, True), (2, 0, False), (1, 1, False), (0, 0, True)])
def test_callers_may_read_after_answers_to_one_message_at_a_time(
    line: Line, count: int, others: int, single: bool
) -> None:
    role = ReaderRole(line.connection)
    for _ in range(10):
        role.answered(1, 0)
    role.answered(count, others)
    assert role.single_caller is single


def test_a_caller_that_writes_for_another_one_does_not_read(
    lasting: None, long_slice: None, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The I/O thread takes the answers then, so a caller that slept until its socket is readable would not be woken.
    write, others = line.connection.write, []

    def while_another_comes(data: bytes) -> None:
        write(data)
        if not others:
            others.append(None)
            thread, others[:] = in_thread(line.submit)  # leaves its message to the one that writes
            thread.join(30)

    line.offer()
    monkeypatch.setattr(line.connection, "write", while_another_comes)
    reader, results = in_thread(lambda: line.submit().wait(soon(50)))
    line.got(2)
    assert eventually(lambda: not line.channel._draining)
    line.ack(line.channel._outstanding._next_tag - 1, multiple=True)
    reader.join(20)
    assert results == [PublishResult.CONFIRMED]


def test_a_caller_that_has_its_answer_hands_the_socket_back_if_others_wait_for_theirs(
    lasting: None, long_slice: None, line: Line
) -> None:
    line.offer()
    reader, results = lone_caller(line)
    tag = line.channel._outstanding._next_tag - 1
    other = line.submit()
    line.got(1)
    line.ack(tag)
    reader.join(20)
    assert results == [PublishResult.CONFIRMED]
    line.ack(tag + 1)
    assert other.wait(soon(20)) is PublishResult.CONFIRMED


def test_a_bulk_between_two_lone_calls_is_answered(line: Line) -> None:
    line.offer()
    receipts = [Receipt() for _ in range(3)]
    outgoing: Any = Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    line.channel.submit_many([(receipt, outgoing, MESSAGE) for receipt in receipts])
    assert eventually(lambda: not line.connection.reader_role.callers_may_read, 1)
    line.got(3)
    line.ack(line.channel._outstanding._next_tag - 1, multiple=True)
    assert [receipt.wait(soon()) for receipt in receipts] == [PublishResult.CONFIRMED] * 3
    line.confirmed()


def test_who_gives_up_leaves_its_tag_and_the_socket_behind(lasting: None, line: Line) -> None:
    line.offer()
    abandoned = line.submit()
    line.got(1)
    thread, results = in_thread(lambda: abandoned.wait(soon(0.2)))
    thread.join(20)
    assert results == [None]
    assert eventually(lambda: not line.connection.reader_role.callers_may_read)
    late = line.channel._outstanding._next_tag - 1
    following = line.submit()
    line.got(1)
    line.ack(late)
    assert eventually(lambda: abandoned.result is PublishResult.CONFIRMED)
    assert following.result is None
    line.ack(late + 1)
    assert following.wait(soon()) is PublishResult.CONFIRMED


def test_whoever_was_to_read_and_never_came_is_missed_soon(line: Line) -> None:
    line.offer()
    vanished = line.submit()  # its caller does not wait for it
    line.got(1)
    line.ack(line.channel._outstanding._next_tag - 1)
    assert eventually(lambda: vanished.result is PublishResult.CONFIRMED, 1)


def test_the_end_of_the_stream_fails_the_caller_that_reads(line: Line) -> None:
    line.offer()
    thread, results = lone_caller(line)
    line.peer.shutdown(socket.SHUT_RDWR)
    thread.join(30)
    assert results == [PublishResult.LOST]


def test_after_an_exception_between_reading_and_parsing_nothing_more_is_parsed(
    lasting: None, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.offer()
    thread, results = lone_caller(line)
    take_in, kill = line.connection._on_data_available, line.connection.kill
    tag = line.channel._outstanding._next_tag - 1
    receipt = line.channel._outstanding.in_flight[tag][0]

    def interrupted(data: bytes, **options: bool) -> None:
        if threading.current_thread() is thread:
            raise InterruptedBySignal
        take_in(data, **options)

    def parsed_once_more(reason: Exception) -> None:  # as by the I/O thread, if it is at it just then
        kill(reason)
        line.connection._parse(frame.Method(NUMBER, spec.Basic.Ack(tag, False)).marshal())

    monkeypatch.setattr(line.connection, "_on_data_available", interrupted)
    monkeypatch.setattr(line.connection, "kill", parsed_once_more)
    # It is lost that this was returned: the acknowledgement behind it would say that it was accepted.
    line.peer.sendall(frame.Method(NUMBER, spec.Basic.Return(312, "NO_ROUTE", "", "q")).marshal())
    thread.join(30)
    assert [type(result) for result in results] == [InterruptedBySignal]
    assert eventually(lambda: line.connection.ended)
    assert eventually(lambda: receipt.result is PublishResult.LOST)


def test_an_exception_while_the_caller_sleeps_hands_the_socket_back(
    lasting: None, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int, seconds: float) -> bool:
        raise InterruptedBySignal

    line.offer()
    receipt = line.submit()
    line.got(1)
    with monkeypatch.context() as patch:
        patch.setattr("message_hub_sync.transport.rabbitmq.reader_role.wait_readable", interrupted)
        with pytest.raises(InterruptedBySignal):
            receipt.wait(soon())
    assert eventually(lambda: not line.connection.reader_role.callers_may_read, 1)
    line.ack(line.channel._outstanding._next_tag - 1)
    assert eventually(lambda: receipt.result is PublishResult.CONFIRMED)
    line.confirmed()


def test_an_answer_to_somebody_who_gave_up_is_told_once_on_the_io_thread(line: Line) -> None:
    abandoned = [line.submit() for _ in range(3)]
    line.got(3)
    for receipt in abandoned[:2]:
        assert receipt.wait(time.monotonic()) is None
        receipt.abandoned = True
    both = (frame.Method(NUMBER, spec.Basic.Ack(tag, False)).marshal() for tag in (1, 2))
    line.peer.sendall(b"".join(both))
    assert eventually(lambda: line.late)
    line.ack(3)
    assert abandoned[2].wait(soon()) is PublishResult.CONFIRMED
    line.confirmed()
    assert line.late == [line.io]


def test_what_is_no_answer_is_left_to_the_io_thread(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    process, seen = line.connection._process_frame, []

    def noting(value: Any) -> None:
        seen.append((threading.current_thread(), line.channel._outstanding.in_flight.copy()))
        process(value)

    monkeypatch.setattr(line.connection, "_process_frame", noting)
    deadline = soon()
    reader = threading.current_thread()
    while reader not in line.readers:  # between two calls the I/O thread may take it back
        assert time.monotonic() < deadline
        line.offer()
        seen.clear()
        reader, results = lone_caller(line)
        tag = line.channel._outstanding._next_tag - 1
        # A method that pika is to have, between two answers; the second one in two pieces.
        answers = [frame.Method(NUMBER, spec.Basic.Ack(number, False)).marshal() for number in (tag - 1, tag)]
        method = frame.Method(0, spec.Connection.Unblocked()).marshal()
        line.peer.sendall(answers[0] + method + answers[1][:9])
        assert eventually(lambda: seen)
        line.peer.sendall(answers[1][9:])
        reader.join(30)
        assert results == [PublishResult.CONFIRMED]
        assert [(thread, list(in_flight)) for thread, in_flight in seen] == [(line.io, [tag])]


@pytest.mark.parametrize("tls", [False, True])
def test_what_a_caller_has_read_before_the_end_and_left_is_parsed(lasting: None, line: Line, tls: bool) -> None:
    line.offer()
    line.connection._tls = tls  # then one read takes in all there is, and the end with it
    receipt, tag = line.submit(), line.channel._outstanding._next_tag - 1
    line.got(1)
    answer = frame.Method(NUMBER, spec.Basic.Ack(tag, False)).marshal()
    line.peer.sendall(frame.Method(0, spec.Connection.Unblocked()).marshal() + answer)
    line.peer.shutdown(socket.SHUT_RDWR)
    assert receipt.wait(soon()) is PublishResult.CONFIRMED


class RaisedByHandler(Exception):
    """What a signal handler may raise, too."""


def test_an_exception_while_an_answer_is_taken_in_reaches_the_caller_and_leaves_no_receipt_behind(
    lasting: None, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = line.channel._outstanding.ack
    line.offer()
    thread, results = lone_caller(line)
    receipt = line.channel._outstanding.in_flight[line.channel._outstanding._next_tag - 1][0]

    class Interrupted(dict[int, Any]):
        def __delitem__(self, tag: int) -> None:
            raise RaisedByHandler

    def interrupted(tag: int, multiple: bool) -> int:
        if threading.current_thread() is thread:
            monkeypatch.setattr(
                line.channel._outstanding, "in_flight", Interrupted(line.channel._outstanding.in_flight)
            )
        return acknowledged(tag, multiple)

    monkeypatch.setattr(line.channel._outstanding, "ack", interrupted)
    line.ack(line.channel._outstanding._next_tag - 1)
    thread.join(30)
    assert [type(result) for result in results] == [RaisedByHandler]
    assert eventually(lambda: line.connection.ended)
    assert receipt.result is PublishResult.CONFIRMED


def test_what_the_socket_does_not_take_is_the_io_threads(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"x" * 8_000_000
    line.offer()
    with held(line.connection.lock):
        line.connection.reader_role.callers_may_read = True  # whatever happened since
    receipt, outgoing = Receipt(), Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    line.channel.submit(receipt, outgoing, large)
    assert receipt.read_until_resolved is None
    left = len(large)
    while left:
        left -= len(line.peer.recv(left))
    line.ack(line.channel._outstanding._next_tag - 1)
    assert receipt.wait(soon()) is PublishResult.CONFIRMED


# --- who writes ----------------------------------------------------------------------------------


@pytest.fixture
def writes(line: Line, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes out in one write each."""
    found: list[bytes] = []
    write = line.connection.write

    def noting(data: bytes) -> None:
        found.append(data)
        write(data)

    monkeypatch.setattr(line.connection, "write", noting)
    return found


@pytest.fixture
def patient(line: Line, monkeypatch: pytest.MonkeyPatch) -> Line:
    """Three callers were answered just now, and whoever is back waits for the others as long as it takes."""
    monkeypatch.setattr(module, "_BACK_WITHIN", 30.0)
    monkeypatch.setattr(module, "_BACK_EACH", 30.0)
    line.connection.read_at = time.monotonic()
    line.channel._returning = 3
    return line


def test_callers_that_were_answered_together_share_one_write(patient: Line, writes: list[bytes]) -> None:
    callers = [in_thread(lambda: patient.submit().wait(soon())) for _ in range(2)]
    assert eventually(lambda: len(patient.channel._pending) == 2)
    assert writes == []
    callers.append(in_thread(lambda: patient.submit().wait(soon())))
    patient.got(3)
    assert writes == [MESSAGE * 3]
    patient.ack(3, multiple=True)
    for thread, results in callers:
        thread.join(30)
        assert results == [PublishResult.CONFIRMED]


def test_nobody_waits_long_for_callers_that_do_not_come_back(
    patient: Line, writes: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = patient
    monkeypatch.setattr(module, "_BACK_EACH", 0.05)
    began = time.monotonic()
    line.submit()
    assert writes == [MESSAGE]
    assert 0.09 < time.monotonic() - began < 30  # for two others
    line.got(1)
    line.submit()
    assert writes == [MESSAGE] * 2


def test_nobody_waits_for_callers_that_were_answered_long_ago(patient: Line, writes: list[bytes]) -> None:
    patient.connection.read_at = time.monotonic() - 100
    patient.submit()
    assert writes == [MESSAGE]


def test_a_signal_handler_writes_by_itself_while_its_own_thread_waits_for_others(
    patient: Line, writes: list[bytes]
) -> None:
    nested: list[Receipt] = []
    seen: list[list[bytes]] = []

    class InterruptedWait(Receipt):
        __slots__ = ()

        def wait(self, deadline: float) -> PublishResult | None:
            nested.append(patient.submit())  # as a signal handler does that publishes during this wait
            seen.append(list(writes))
            return None

    outgoing: Any = Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    first = InterruptedWait()
    patient.channel.submit(first, outgoing, MESSAGE)
    assert seen == [[MESSAGE * 2]]
    patient.got(2)
    patient.ack(2, multiple=True)
    assert nested[0].wait(soon()) is PublishResult.CONFIRMED
    assert first.result is PublishResult.CONFIRMED


def test_an_exception_in_the_one_that_waits_for_others_leaves_no_message_unwritten(
    patient: Line, writes: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    class Interrupted(Receipt):
        __slots__ = ()

        def wait(self, deadline: float) -> PublishResult | None:
            waiting.set()
            go_on.wait(30)
            raise InterruptedBySignal

    outgoing: Any = Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    first, results = in_thread(lambda: patient.channel.submit(Interrupted(), outgoing, MESSAGE))
    assert waiting.wait(30)
    second = patient.submit()  # relies on the first
    assert writes == []
    go_on.set()
    first.join(30)
    assert [type(result) for result in results] == [InterruptedBySignal]
    patient.got(2)
    patient.ack(2, multiple=True)
    assert second.wait(soon()) is PublishResult.CONFIRMED


def test_an_exception_in_a_bulk_call_leaves_no_message_unwritten(
    line: Line, writes: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, interruptions = line.channel._drain, [InterruptedBySignal]

    def interrupted(*arguments: Any) -> None:
        if interruptions:
            raise interruptions.pop()
        drain(*arguments)

    monkeypatch.setattr(line.channel, "_drain", interrupted)
    outgoing: Any = Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    with pytest.raises(InterruptedBySignal):
        line.channel.submit_many([(Receipt(), outgoing, MESSAGE)])
    assert writes == [MESSAGE]


def test_who_comes_while_another_one_writes_has_it_written_by_that_one(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, later, written = line.connection.write, [module._ROUNDS], []

    def while_another_comes(data: bytes) -> None:
        written.append(threading.current_thread())
        write(data)
        if later[0]:
            later[0] -= 1
            thread, _ = in_thread(line.submit)
            thread.join(30)
            assert not thread.is_alive()  # it did not wait for the lock

    monkeypatch.setattr(line.connection, "write", while_another_comes)
    line.submit()
    line.got(1 + module._ROUNDS)
    # Nobody is kept at it for ever: what came during the last round is written by the I/O thread.
    assert written == [threading.current_thread()] * module._ROUNDS + [line.io]


def test_messages_left_to_the_io_thread_after_the_channel_closed_are_not_written(line: Line) -> None:
    receipt, outgoing = Receipt(), Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    with held(line.connection.lock):
        line.channel._fail(ConnectionResetError())
        line.channel._pending.append((receipt, outgoing, MESSAGE))
        line.channel._leave_the_rest()
        assert receipt.result is PublishResult.NOT_WRITTEN


def test_nothing_is_written_once_the_connection_is_not_usable(line: Line, writes: list[bytes]) -> None:
    line.connection.stop_writes()
    assert line.submit().result is PublishResult.NOT_WRITTEN
    assert writes == []


def test_messages_left_to_the_io_thread_are_not_written_if_the_channel_closes_first(line: Line) -> None:
    left, outgoing = [Receipt(), Receipt()], Outgoing("", "q", b"", SimpleNamespace(reply_to=None))  # type: ignore[arg-type]
    with held(line.connection.lock):
        line.channel._pending.extend((receipt, outgoing, MESSAGE) for receipt in left)
        line.channel._leave_the_rest()
        line.channel._fail(ConnectionResetError())  # before the timer that writes them
        assert [receipt.result for receipt in left] == [PublishResult.NOT_WRITTEN] * 2


def test_a_tag_is_what_the_frames_say(line: Line) -> None:
    ack = struct.pack(">BHILQBB", 1, NUMBER, 13, 60 << 16 | 80, 1, 0, 0xCE)
    assert ack == frame.Method(NUMBER, spec.Basic.Ack(1, False)).marshal()
