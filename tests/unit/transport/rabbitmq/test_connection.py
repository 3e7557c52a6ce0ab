"""The adapter of pika for threads, over a socket pair instead of a broker."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from locking import held
from pika import exceptions as amqp
from pika import frame, spec

from message_hub_sync.transport.rabbitmq import connection as module
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.polling import Waker


class Wire:
    """A connection and the peer's end of its socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.waker = Waker()
        self.connection = ThreadedConnection(pika.ConnectionParameters(), ours, self.waker)

    def read(self, size: int) -> bytes:
        data = b""
        self.peer.settimeout(5)
        while len(data) < size:
            data += self.peer.recv(size - len(data))
        return data

    def close(self) -> None:
        self.connection.end("the test is over")
        self.peer.close()
        self.waker.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


class Racing(list[Any]):
    """Timers to which another thread adds one just after the I/O thread saw that there are none."""

    def __init__(self, add: Any) -> None:
        super().__init__()
        self._add = add

    def __bool__(self) -> bool:
        before = len(self) > 0
        if self._add is not None:
            add, self._add = self._add, None
            add()
        return before


def test_a_timer_added_while_the_io_thread_falls_asleep_is_not_overslept(wire: Wire) -> None:
    connection = wire.connection
    connection._timer_heap = connection._timers.heap = Racing(lambda: connection.call_later(0.01, lambda: None))
    began = time.monotonic()
    connection.step(soon(60))
    assert time.monotonic() - began < 30


def test_a_timer_of_another_thread_ends_a_long_wait(wire: Wire) -> None:
    ran = threading.Event()

    def add() -> None:
        with held(wire.connection.lock):
            wire.connection.call_later(0.01, ran.set)

    threading.Timer(0.05, add).start()
    deadline = soon()
    while not ran.is_set():
        assert time.monotonic() < deadline
        wire.connection.step(deadline)


def test_a_timer_that_was_taken_back_does_not_run(wire: Wire) -> None:
    ran: list[int] = []
    with held(wire.connection.lock):
        number = wire.connection._adapter_call_later(0.01, lambda: ran.append(1))
        wire.connection._adapter_call_later(0.02, lambda: ran.append(2))
        wire.connection._adapter_remove_timeout(number)
        wire.connection._adapter_remove_timeout(number + 100)
    deadline = soon()
    while not ran:
        wire.connection.step(deadline)
    assert ran == [2]


def test_what_the_socket_does_not_take_is_kept_in_order_and_flushed(wire: Wire) -> None:
    connection = wire.connection
    pieces = [bytes([number % 256]) * 10_000 for number in range(200)]
    with held(connection.lock):
        for piece in pieces:
            connection.write(piece)
        assert connection._out
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(wire.read(2_000_000)))
    reader.start()
    deadline = soon()
    while connection._out:
        assert time.monotonic() < deadline
        connection.step(deadline)
    reader.join(30)
    assert received == [b"".join(pieces)]


def waiting_for_room(connection: ThreadedConnection) -> tuple[threading.Thread, list[bool]]:
    """A thread that waits for room and looks again only when it is woken, or after ten minutes; and what it got."""
    waited: list[bool] = []
    thread = threading.Thread(target=lambda: waited.append(connection.wait_for_room(soon(600))), daemon=True)
    thread.start()
    deadline, pause = soon(30), threading.Event()
    while not len(connection._room._waiters):
        assert time.monotonic() < deadline
        pause.wait(0.002)
    return thread, waited


def test_whoever_waits_for_room_is_told_when_there_is_some(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUT_BUFFER_BYTES", 100_000)
    connection = wire.connection
    with held(connection.lock):
        connection.write(b"x" * 2_000_000)
    assert not connection.wait_for_room(soon(0.05))
    waiter, waited = waiting_for_room(connection)
    reader = threading.Thread(target=lambda: wire.read(2_000_000))
    reader.start()
    deadline = soon(30)
    while connection._out:
        connection.step(deadline)
    waiter.join(30)
    reader.join(30)
    assert waited == [True]


def test_whoever_waits_for_room_is_told_when_the_connection_dies(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUT_BUFFER_BYTES", 100_000)
    with held(wire.connection.lock):
        wire.connection.write(b"x" * 2_000_000)
    waiter, waited = waiting_for_room(wire.connection)
    wire.connection.end("killed")
    waiter.join(30)
    assert waited == [True]


def test_whoever_waits_for_room_is_told_when_a_send_fails(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUT_BUFFER_BYTES", 100_000)
    with held(wire.connection.lock):
        wire.connection.write(b"x" * 2_000_000)
    waiter, waited = waiting_for_room(wire.connection)
    wire.connection._socket.shutdown(socket.SHUT_WR)
    wire.connection.lock.run(wire.connection._flush)
    waiter.join(30)
    assert waited == [True]
    assert not wire.connection.ended


def test_a_failed_send_leaves_the_reader_its_turn_and_nothing_is_written_any_more(wire: Wire) -> None:
    connection = wire.connection
    connection._socket.shutdown(socket.SHUT_WR)
    with held(connection.lock):
        connection.write(b"x")
    assert connection.alive
    assert not connection.usable
    wire.peer.send(frame.Heartbeat().marshal())
    connection.step(soon(0.2))
    assert connection.frames_received == 1
    wire.peer.close()
    deadline = soon(1)
    while connection.alive:
        assert time.monotonic() < deadline
        connection.step(deadline)
    assert isinstance(connection.end_reason, amqp.StreamLostError)


def test_a_send_that_failed_ends_the_connection_though_the_peer_says_nothing(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_END_AFTER_FAILED_SEND", 0.05)
    wire.connection._socket.shutdown(socket.SHUT_WR)
    with held(wire.connection.lock):
        wire.connection.write(b"x")
    deadline = soon(2)
    while wire.connection.alive:
        assert time.monotonic() < deadline
        wire.connection.step(deadline)


def test_an_exception_in_the_midst_of_writing_ends_the_connection(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_data: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(wire.connection, "_send", interrupted)
    with pytest.raises(KeyboardInterrupt), held(wire.connection.lock):
        wire.connection.write(b"x")
    assert not wire.connection.usable
    with held(wire.connection.lock):
        pass  # it was released


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64])
def test_frames_are_recognised_wherever_the_stream_is_cut(wire: Wire, size: int) -> None:
    taken: list[Any] = []
    wire.connection._process_frame = taken.append  # type: ignore[method-assign]
    returned = frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "gone"))
    content = [returned, frame.Header(1, 5, spec.BasicProperties()), frame.Body(1, b"abc"), frame.Body(1, b"de")]
    frames = [frame.Heartbeat(), *content, frame.Method(2, spec.Basic.Ack(1)), frame.Heartbeat()]
    data = b"".join(each.marshal() for each in frames)
    with held(wire.connection.lock):
        for start in range(0, len(data), size):
            wire.connection._on_data_available(data[start : start + size])
    assert [type(each) for each in taken] == [type(each) for each in frames]
    assert wire.connection.bytes_received == len(data)  # else heartbeats would kill the connection


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\0\x09\1", b"\x15\x03\x03\0\2\2\x46"])
def test_a_peer_that_speaks_something_else_is_recognised(wire: Wire, data: bytes) -> None:
    wire.peer.send(data)
    wire.peer.close()
    deadline = soon(2)
    while wire.connection.alive:
        wire.connection.step(deadline)
    assert isinstance(wire.connection.end_reason, amqp.IncompatibleProtocolError)


def test_a_frame_that_is_not_understood_ends_the_connection_and_is_logged_with_no_lock_held(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    locked: list[bool] = []

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            locked.append(wire.connection.lock._is_owned())

    handler = Looking()
    logging.getLogger("message_hub_sync.rabbitmq").addHandler(handler)
    try:
        wire.peer.send(struct.pack(">BHI", spec.FRAME_METHOD, 0, 4) + b"\xff\xff\xff\xff\xce")
        deadline = soon(2)
        while wire.connection.alive:
            wire.connection.step(deadline)
    finally:
        logging.getLogger("message_hub_sync.rabbitmq").removeHandler(handler)
    assert "a received frame cannot be parsed" in caplog.text
    assert locked == [False]


def test_what_follows_from_a_frame_may_fail_without_ending_the_thread(wire: Wire) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of ours")

    wire.connection.after_unlock.append(fail)
    wire.connection.step(soon(1))
    assert not wire.connection.usable


def test_the_first_reason_for_an_end_is_told(wire: Wire) -> None:
    first, second = amqp.StreamLostError("the cause"), amqp.StreamLostError("what follows from it")
    wire.connection.lock.run(wire.connection.kill, first)
    wire.connection.lock.run(wire.connection.kill, second)
    wire.connection.finish()
    assert wire.connection.end_reason is first


def test_the_end_is_told_once_and_frees_the_socket(wire: Wire) -> None:
    wire.connection.end("one")
    wire.connection.end("two")
    assert wire.connection.ended
    assert wire.connection._socket.fileno() == -1
    assert wire.peer.recv(1) == b""


def test_a_forked_child_drops_the_socket_without_a_word_on_it(wire: Wire) -> None:
    with held(wire.connection.lock):  # held by a thread that does not exist in the child
        wire.connection.drop_socket()
    assert wire.peer.recv(100) == b""
