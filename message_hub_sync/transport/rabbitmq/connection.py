"""pika's connection for threads: one non-blocking socket, any thread writes, one thread reads.

pika brings adapters for event loops. This one implements the same six ``_adapter_*`` methods without an event loop.
A calling thread encodes its frames, takes the lock and writes. The I/O thread polls, parses, runs timers, and sends
what the socket did not take at once. If a single caller waits for the broker, it reads by itself (``reader_role``).

Rules:

* Every entry point takes the lock, and the six methods assume that it is held. pika sends an RPC before it registers
  the callback for the reply, so parsing and RPC must share one lock.
* No user code runs with the lock held, logging handlers included. Callbacks resolve receipts, put into unbounded
  queues, or append to ``after_unlock``, which the I/O thread runs after it released the lock.
* A failed send does not end the connection: acknowledgements may still be readable after ECONNRESET, so the reader
  reads up to the end of the stream first.
* An exception while parsing ends the connection, and never the thread.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pika
from pika import exceptions as amqp

from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.frame_stream import FrameStream
from message_hub_sync.transport.rabbitmq.polling import Poller, Waker
from message_hub_sync.transport.rabbitmq.reader_role import ReaderRole
from message_hub_sync.transport.rabbitmq.timers import Timers
from message_hub_sync.transport.rabbitmq.translation import ConnectionEnded
from message_hub_sync.transport.threads import Condition

__all__ = ["ThreadedConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

#: Publishers wait while the out-buffer has this number of bytes or more.
OUT_BUFFER_BYTES = 8 * 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
#: TLS is read with the lock held. After this number of records (of at most 16 KiB each) the lock is released for the
#: writers.
_TLS_RECORDS_PER_LOCK = 64
#: The seconds that a heartbeat may be late at least.
_LATE_HEARTBEAT = 2.0
#: Seconds that the reader has, after a failed send, to read up to the end of the stream.
_END_AFTER_FAILED_SEND = 2.0


class ThreadedConnection(FrameStream):
    """One AMQP connection over a socket that is already connected.

    ``lock`` also guards pika's own state.

    :param waker: wakes the I/O thread that calls :meth:`step`.
    """

    def __init__(self, parameters: pika.ConnectionParameters, connected: socket.socket, waker: Waker) -> None:
        self.lock = Lock()
        self._room = Condition(self.lock)
        self.after_unlock: list[Callable[[], None]] = []  # guarded by lock
        self.ended = False  # guarded by lock
        #: Whether something written now may still arrive. An attribute, because every publish reads it.
        self.usable = True  # any thread sets it to False, and it stays so
        self.end_reason: BaseException | None = None  # guarded by lock
        self._socket = connected
        self._tls = isinstance(connected, ssl.SSLSocket)
        self._waker = waker
        self._out = bytearray()  # guarded by lock
        self._send_failed = False  # guarded by lock
        self._ending = False  # set with the lock held, or by the reading thread
        self._stream_error: Exception | None = None  # set with the lock held, or by the reading thread
        self._timers = Timers(self._timer_failed)  # guarded by lock
        self._timer_heap = self._timers.heap  # the same list, for the I/O thread's look in every step: one lookup less
        self._next_wake = 0.0  # I/O thread only; others compare with it
        self._more = False  # reading thread only; whether TLS may hold more that can be read at once
        self.quiet = False  # I/O thread only; whether errors are not logged
        self._torn = False  # reading thread only; whether bytes of the stream are missing
        self._poller = Poller(connected, waker)
        self.reader_role = ReaderRole(self)
        self.read_at = 0.0  # when something was last parsed (monotonic); written with the lock held, read without
        super().__init__(parameters)

    # --- for any thread ------------------------------------------------------------------------

    @property
    def max_fragment(self) -> int:
        """The largest part of a body that fits into one frame, in bytes, as negotiated."""
        return int(self._body_max_length)

    @property
    def alive(self) -> bool:
        """Whether there may still be something to read."""
        return not self._ending and not self.ended

    @property
    def silent(self) -> bool:
        """Whether a heartbeat of the broker is overdue. The connection ends only after two heartbeat timeouts."""
        timeout = self.params.heartbeat
        if not isinstance(timeout, int) or not timeout:
            return False
        # Brokers send one every half of the timeout.
        return time.monotonic() - self.read_at > timeout / 2 + max(timeout / 4, _LATE_HEARTBEAT)

    def stop_writes(self) -> None:
        """The client is closing: start nothing new, and stop waiting for answers."""
        self.usable = False

    def write(self, data: bytes) -> None:
        """Send whole frames; the out-buffer keeps what the socket does not take. The caller holds the lock."""
        if self._send_failed:
            return
        try:
            self.bytes_sent += len(data)
            if self._out:
                self._out += data
                return
            sent = self._send(data)
            if sent < len(data) and not self._send_failed:
                self._out += memoryview(data)[sent:]
                self._waker.wake()  # the I/O thread must wait for the socket to become writable
        except BaseException:
            # A signal handler raised. It is unknown how many bytes were sent, so nothing may follow them.
            self.kill(amqp.StreamLostError("writing was interrupted"))
            raise

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor, -1 when it is closed."""
        return self._socket.fileno()

    @property
    def needs_its_thread(self) -> bool:
        """Whether there is work that only the I/O thread may do."""
        return bool(self._ending or self.after_unlock or self._out or self._more or self._left)

    def read_now(self) -> None:
        """In a caller's thread: handle whole acknowledgements, leave everything else to the I/O thread.

        The caller holds the lock. pika never runs here: only a signal handler or a gevent timeout raises.
        """
        try:
            if not self._ending and (data := self._receive()):
                self.read_at = time.monotonic()
                self._on_data_available(data, answers_only=True)
        except BaseException:
            # Bytes that were read and not parsed are lost, so what follows them cannot be parsed.
            self._torn = True
            self.kill(amqp.StreamLostError("reading was interrupted"))
            raise

    def wake(self) -> None:
        """End the I/O thread's wait."""
        self._waker.wake()

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until the out-buffer has room or the connection has ended. No lock held.

        :param deadline: monotonic seconds.
        :returns: ``False`` if the deadline passes first.
        :raises MessageHubConnectionError: on an I/O thread, which would wait for itself.
        """
        if len(self._out) < OUT_BUFFER_BYTES:
            return True
        return self._room.wait_for(lambda: len(self._out) < OUT_BUFFER_BYTES or self.ended, deadline)

    def call_later(self, seconds: float, callback: Callable[[], Any]) -> int:
        """Have the I/O thread call ``callback``, with the lock held, after ``seconds``. The caller holds the lock."""
        due = time.monotonic() + seconds
        number = self._timers.add(due, callback)
        if due < self._next_wake:
            self._waker.wake()
        return number

    def kill(self, reason: Exception) -> None:
        """End the connection; the outcome of all that is in flight is unknown. The caller holds the lock."""
        if not self._ending:
            self._stream_error = reason
            self._adapter_disconnect_stream()

    def drop_socket(self) -> None:
        """In a forked child: close the child's copy of the socket. Sends nothing and takes no lock."""
        descriptor = self._socket.detach()
        if descriptor >= 0:
            socket.close(descriptor)

    @property
    def unanswered_login(self) -> int:
        """The size of the login in bytes if it was sent and not answered, else 0."""
        return int(self.bytes_sent) if self.frames_received == 1 else 0

    @property
    def offers_confirms(self) -> bool:
        """Whether the broker can confirm and reject messages."""
        offered = self.server_capabilities
        return isinstance(offered, dict) and bool(offered.get("publisher_confirms") and offered.get("basic.nack"))

    @property
    def broker_version(self) -> tuple[int, ...]:
        """RabbitMQ's version, as far as it is known: ``(3, 10)``. Empty for another broker."""
        found = self.server_properties if isinstance(self.server_properties, dict) else {}
        numbers = re.match(r"(\d{1,4})\.(\d{1,4})", str(found.get("version")))
        return tuple(map(int, numbers.groups())) if numbers and found.get("product") == "RabbitMQ" else ()

    # --- for the I/O thread --------------------------------------------------------------------

    def begin(self) -> None:
        """Start the AMQP handshake."""
        self.lock.run(self._on_stream_connected)
        self.lock.run(self._flush)

    def serve(self, until: float) -> None:
        """Serve the connection until the waker is woken, ``until`` (monotonic seconds) has passed or it is ending."""
        while not (self.step(until) or self._ending):
            if self.reader_role.single_caller and self.reader_role.let_callers_read(until):
                return

    def step(self, until: float) -> bool:
        """One round: wait for the socket, the waker or a timer, then read, parse, run timers and send.

        :param until: the longest wait, in monotonic seconds.
        :returns: whether the waker was woken or ``until`` has passed.
        """
        timers = self._timer_heap
        # Set _next_wake before reading the timers: a thread that adds one in between then wakes this one.
        self._next_wake = wake = until
        if timers and timers[0][0] < until:
            self._next_wake = wake = timers[0][0]
        more = self._more or self._left
        timeout = 0.0 if more or self._ending or self.after_unlock else wake - time.monotonic()
        readable, rung = self._poller.wait(timeout, bool(self._out) and not self._send_failed)
        self._next_wake = 0.0  # awake: a thread that adds a timer need not wake it
        readable = readable or more
        data = self._receive() if readable and not self._tls else b""
        now = self.lock.run(self._work_of_one_round, readable, data)
        if self.after_unlock:
            self._run_after_unlock()
        if self._ending:
            self.finish()
        return rung or now >= until

    def _work_of_one_round(self, readable: bool, data: bytes) -> float:
        """Parse what was read, run timers and send. The caller holds the lock. Returns the current monotonic time."""
        if readable:
            self._parse(self._receive() if self._tls else data)
        now = time.monotonic()
        timers = self._timer_heap
        if timers and timers[0][0] <= now:
            self._timers.run_due(now)
        if self._out:
            self._flush()
        return now

    def step_without_socket(self, until: float) -> bool:
        """One round while callers read the socket: wait for the waker or a timer, then run timers and send.

        :param until: the longest wait, in monotonic seconds.
        :returns: whether the waker was woken.
        """
        timers = self._timer_heap
        self._next_wake = wake = until
        if timers and timers[0][0] < until:
            self._next_wake = wake = timers[0][0]
        rung = self._poller.wait_for_waker(0.0 if self.needs_its_thread else wake - time.monotonic())
        self._next_wake = 0.0
        self.lock.run(self._work_of_one_round, False, b"")
        return rung

    def on_blocked(self, announce: Callable[[bool], None]) -> None:
        """Call ``announce``, without a lock, when the broker stops (true) or resumes (false) accepting messages."""
        self.add_on_connection_blocked_callback(lambda *_: self.after_unlock.append(lambda: announce(True)))
        self.add_on_connection_unblocked_callback(lambda *_: self.after_unlock.append(lambda: announce(False)))

    def send_close(self) -> None:
        """Send ``connection.close``. :attr:`alive` turns false when the broker has answered."""
        self.lock.run(self._send_close)

    def _send_close(self) -> None:
        if self.is_open:
            self.close()
            self._flush()

    def end(self, why: str) -> None:
        """End the connection now. Nothing happens if it has ended already."""
        self.lock.run(self.kill, amqp.StreamLostError(why))
        self.finish()

    def finish(self) -> None:
        """Close the socket and tell pika, which closes every channel. I/O thread only; the second call does nothing."""
        self.lock.run(self._finish)
        self._run_after_unlock()

    def _finish(self) -> None:
        if self.ended:
            return
        self._parse(b"")  # frames that a caller has read and left to the I/O thread
        self._flush()
        self.ended = True
        self._ending = True
        self.usable = False
        self._socket.close()
        self._out.clear()
        if self._stream_error is None and self._error is None:
            self._stream_error = amqp.StreamLostError("the connection was dropped")
        # The actual cause. pika would report a stream lost during the handshake as an authentication, access or
        # protocol error.
        self.end_reason = self._error if self._stream_error is None else self._stream_error
        if self.frames_received == 0 and self._frame_buffer:
            self.end_reason = amqp.IncompatibleProtocolError("no frame of AMQP 0-9-1")
        try:
            self._on_stream_terminated(self._stream_error)
        except Exception as error:  # an error in a callback must not stop the thread: waiters are failed next
            self._report("a channel could not be closed after the connection ended; continuing", error)
        self._room.wake_all()

    def check_usable(self) -> None:
        """:raises ConnectionEnded: the connection is no longer usable."""
        if not self.usable:
            raise ConnectionEnded

    def _receive(self) -> bytes:
        """Read what is there, without waiting. At the end of the stream, record why it ended.

        Plain TCP is read once. TLS is read until it would wait: decrypted bytes do not make the socket readable.
        """
        received: list[bytes] = []
        self._more = False
        try:
            while data := self._socket.recv(_RECEIVE_BYTES):
                if not self._tls:
                    return data
                received.append(data)
                if len(received) == _TLS_RECORDS_PER_LOCK:
                    self._more = True
                    return b"".join(received)
            error: Exception = amqp.StreamLostError("end of stream")
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b"".join(received)
        except OSError as failed:
            error = amqp.StreamLostError(f"reading failed: {type(failed).__name__}")
            if isinstance(failed, ssl.SSLError) and not isinstance(failed, ssl.SSLEOFError):
                error = failed  # an alert: with TLS 1.3 the broker checks the client after the client's handshake ended
        if self._stream_error is None:
            self._stream_error = error
        self._ending = True
        self.usable = False
        return b"".join(received)

    def _parse(self, data: bytes) -> None:
        if self._torn or not (data or self._left):
            return
        self.read_at = time.monotonic()
        try:
            self._on_data_available(data)
        except amqp.IncompatibleProtocolError as error:
            self.kill(error)
        except Exception as error:
            self._report("a received frame cannot be parsed; closing the connection", error)
            self.kill(amqp.InvalidFrameError(type(error).__name__))

    def _timer_failed(self, error: Exception) -> None:
        self._report("a timer of the connection failed; closing the connection", error)
        self.kill(amqp.StreamLostError(f"a timer failed: {type(error).__name__}"))

    def _run_after_unlock(self) -> None:
        while self.after_unlock:
            for call in self.lock.run(self._take_after_unlock):
                try:
                    call()
                except Exception:
                    logger.exception("a callback of a received frame failed; closing the connection")
                    self.lock.run(self.kill, amqp.StreamLostError("a callback of a received frame failed"))

    def _take_after_unlock(self) -> list[Callable[[], None]]:
        calls, self.after_unlock = self.after_unlock, []
        return calls

    def _report(self, what: str, error: Exception) -> None:
        # A logging handler is user code and may publish, so it runs after the lock is released.
        level = logging.DEBUG if self.quiet else logging.ERROR
        self.after_unlock.append(lambda: logger.log(level, what, exc_info=error))

    # --- sending, the lock held ----------------------------------------------------------------

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self._send_failed = True
            self.usable = False
            self._out.clear()  # _flush() wakes those that wait for room
            self.call_later(_END_AFTER_FAILED_SEND, lambda: self.kill(amqp.StreamLostError("sending failed")))
            return 0

    def _flush(self) -> None:
        if not self._out:
            return
        full = len(self._out) >= OUT_BUFFER_BYTES
        while self._out and not self._send_failed:
            sent = self._send(self._out)
            if not sent:
                break
            del self._out[:sent]
        if full and len(self._out) < OUT_BUFFER_BYTES:
            self._room.wake_all()

    # --- the methods of a pika adapter, the lock held ------------------------------------------

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._send_failed:
            self._out += data  # the entry point sends it at its end: all frames of a method in one write

    def _adapter_call_later(self, delay: float, callback: Callable[[], Any]) -> object:
        return self.call_later(delay, callback)

    def _adapter_remove_timeout(self, timeout_id: Any) -> None:
        self._timers.cancel(timeout_id)

    def _adapter_add_callback_threadsafe(self, callback: Callable[..., Any]) -> None:
        self.call_later(0, callback)

    def _adapter_connect_stream(self) -> None:
        raise AssertionError("the socket is connected before this object is created")

    def _adapter_disconnect_stream(self) -> None:
        self._ending = True
        self.usable = False
        self._waker.wake()
