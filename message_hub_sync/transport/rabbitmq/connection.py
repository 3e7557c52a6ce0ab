"""pika's connection for threads: one non-blocking socket, any thread writes, one thread reads.

pika brings its own adapters for event loops; this one implements the same six ``_adapter_*`` methods
without one. Whoever has something to say encodes it, takes the lock and writes; the I/O thread polls,
parses, runs timers and flushes what the socket did not take at once. A caller that is alone reads for
itself (``turn``).

Rules, each learned the hard way:

* The lock is taken at the entry points only; the six methods assume it. pika sends an RPC before it
  registers the reply's callback, so parsing and RPC must share it.
* Under it no user code runs, logging handlers included. Callbacks settle receipts, put to unbounded queues,
  or append to ``after_unlock``, which runs once the lock is free.
* A failed send never ends the connection: the reader reads to the end first, since acknowledgements may
  still be readable after ECONNRESET.
* An exception while parsing ends the connection, it never ends the thread.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
from pika import exceptions as amqp

from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.transport.rabbitmq.frame_stream import FrameStream
from message_hub_sync.transport.rabbitmq.polling import Poller, Waker
from message_hub_sync.transport.rabbitmq.reader_role import ReaderRole
from message_hub_sync.transport.rabbitmq.timers import Timers
from message_hub_sync.transport.rabbitmq.translation import ConnectionEnded
from message_hub_sync.transport.threads import Waiter, Waiters, refuse_on_io_thread

__all__ = ["ThreadedConnection"]

logger = SafeLogger("message_hub_sync.rabbitmq")

#: Bytes waiting to be sent above which publishers wait for room.
OUT_BUFFER_BYTES = 8 * 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
#: TLS is read with the lock held: after so many records (of at most 16 KiB) the writers have their turn.
_TLS_TURN_RECORDS = 64
#: Seconds the reader has to find the end of a connection on which a send failed.
_END_AFTER_FAILED_SEND = 2.0


class ThreadedConnection(FrameStream):
    """One AMQP connection over an already connected socket.

    Mutable, guarded by ``lock``: ``_out``, ``_room``, ``_timers``, ``_ending``, ``_send_failed``, ``after_unlock``,
    ``frame_handlers``, ``ended``, ``end_reason`` and all that pika keeps. ``usable`` turns false once, by whoever
    sees why. ``_next_wake`` is the I/O thread's own, others only compare with it; ``_more``, ``_left`` and ``_torn``
    those of whoever reads.
    """

    def __init__(self, parameters: pika.ConnectionParameters, connected: socket.socket, waker: Waker) -> None:
        self.lock = threading.Lock()
        self._room = Waiters()
        self.after_unlock: list[Callable[[], None]] = []
        self.ended = False
        #: Whether something written now may still arrive. An attribute, as every publish asks for it.
        self.usable = True
        self.end_reason: BaseException | None = None
        self._socket = connected
        self._tls = isinstance(connected, ssl.SSLSocket)
        self._waker = waker
        self._out = bytearray()
        self._send_failed = False
        self._ending = False
        self._stream_error: Exception | None = None
        self._timers = Timers(self._timer_failed)
        self._timer_heap = self._timers.heap  # the same list: every step looks at it, with one lookup
        self._next_wake = 0.0
        self._more = False
        self._torn = False
        self._poller = Poller(connected, waker)
        #: Who reads. When something was parsed last, in monotonic seconds.
        self.reader_role = ReaderRole(self)
        self.read_at = 0.0
        #: The I/O thread's own: from when on it gives up what it asks the broker as soon as somebody waits for it.
        self.rpc_yield_at = math.inf
        self.rpc_yield_if: Callable[[], bool] = lambda: False
        super().__init__(parameters)

    # --- for any thread ------------------------------------------------------------------------

    @property
    def max_fragment(self) -> int:
        """The most bytes of a body that fit into one frame, as negotiated."""
        return int(self._body_max_length)

    @property
    def alive(self) -> bool:
        """Whether there may still be something to read."""
        return not self._ending and not self.ended

    def stop_writes(self) -> None:
        """The client closes: nothing new is begun, and what waits for an answer need not any more."""
        self.usable = False

    def write(self, data: bytes) -> None:
        """Send whole frames, or keep what the socket does not take. The caller holds the lock."""
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
            # A signal's exception: how much of it is on the wire nobody knows, so that nothing may follow.
            self.kill(amqp.StreamLostError("writing was interrupted"))
            raise

    @property
    def descriptor(self) -> int:
        """The socket's file descriptor, -1 when it is closed."""
        return self._socket.fileno()

    @property
    def needs_its_thread(self) -> bool:
        """Whether there is something to do that only the I/O thread does."""
        return bool(self._ending or self.after_unlock or self._out or self._more or self._left)

    def read_now(self) -> None:
        """In a caller's thread: take in whole acknowledgements, and leave all else to the I/O thread. The lock is held.

        So pika never runs here, and what is raised here is a signal's.
        """
        try:
            if not self._ending and (data := self._receive()):
                self.read_at = time.monotonic()
                self._on_data_available(data, answers_only=True)
        except BaseException:
            # What was read and not parsed is missing, so that nothing after it can be understood.
            self._torn = True
            self.kill(amqp.StreamLostError("reading was interrupted"))
            raise

    def wake(self) -> None:
        """End the I/O thread's wait."""
        self._waker.wake()

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until the out-buffer has room again; false when the deadline passes first."""
        if len(self._out) < OUT_BUFFER_BYTES:
            return True
        refuse_on_io_thread()
        waiter = Waiter()
        try:
            while True:
                with self.lock:
                    self._room.add(waiter)
                    if len(self._out) < OUT_BUFFER_BYTES or self.ended:
                        return True
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                waiter.wait(remaining)
        finally:
            with self.lock:
                self._room.remove(waiter)

    def call_later(self, seconds: float, callback: Callable[[], Any]) -> int:
        """Have the I/O thread call ``callback`` with the lock held. The caller holds the lock."""
        due = time.monotonic() + seconds
        number = self._timers.add(due, callback)
        if due < self._next_wake:
            self._waker.wake()
        return number

    def kill(self, reason: Exception) -> None:
        """End the connection: all that is in flight is unknown. The caller holds the lock."""
        if not self._ending:
            self._stream_error = reason
            self._adapter_disconnect_stream()

    def drop_socket(self) -> None:
        """In a forked child: close our copy of the socket without a word on it, and no lock taken."""
        descriptor = self._socket.detach()
        if descriptor >= 0:
            socket.close(descriptor)

    # --- for the I/O thread --------------------------------------------------------------------

    def begin(self) -> None:
        """Start the AMQP handshake."""
        with self.lock:
            self._on_stream_connected()
            self._flush()

    def serve(self, until: float) -> None:
        """Rounds, until somebody rings the waker, ``until`` has passed or the connection has ended."""
        while not (self.step(until) or self._ending):
            if self.reader_role.single_caller and self.reader_role.let_callers_read(until):
                return

    def step(self, until: float) -> bool:
        """One round: wait for the socket, a wake or a timer, at most until ``until``; then do what is due.

        :returns: whether the waker rang or ``until`` has passed.
        """
        timers = self._timer_heap
        # First this, then a look at the timers: whoever adds one in between sees that it must ring.
        self._next_wake = wake = until
        if timers and timers[0][0] < until:
            self._next_wake = wake = timers[0][0]
        more = self._more or self._left
        timeout = 0.0 if more or self._ending or self.after_unlock else wake - time.monotonic()
        readable, rung = self._poller.wait(timeout, bool(self._out) and not self._send_failed)
        self._next_wake = 0.0  # awake: nobody needs to ring
        readable = readable or more
        data = self._receive() if readable and not self._tls else b""
        with self.lock:
            if readable:
                self._parse(self._receive() if self._tls else data)
            now = time.monotonic()
            if timers and timers[0][0] <= now:
                self._timers.run_due(now)
            if self._out:
                self._flush()
        if self.after_unlock:
            self._run_after_unlock()
        if self._ending:
            self.finish()
        return rung or now >= until

    def step_without_socket(self, until: float) -> bool:
        """A round without the socket, which callers read: wait for a wake or a timer, and run what is due.

        :returns: whether the waker rang.
        """
        timers = self._timer_heap
        self._next_wake = wake = until
        if timers and timers[0][0] < until:
            self._next_wake = wake = timers[0][0]
        rung = self._poller.wait_rung(0.0 if self.needs_its_thread else wake - time.monotonic())
        self._next_wake = 0.0
        with self.lock:
            self._timers.run_due(time.monotonic())
            self._flush()
        return rung

    def on_blocked(self, announce: Callable[[bool], None]) -> None:
        """Have ``announce`` called, no lock held, when the broker stops (true) or resumes (false) taking messages."""
        self.add_on_connection_blocked_callback(lambda *_: self.after_unlock.append(lambda: announce(True)))
        self.add_on_connection_unblocked_callback(lambda *_: self.after_unlock.append(lambda: announce(False)))

    def say_goodbye(self) -> None:
        """Begin the orderly end; :attr:`alive` turns false once the broker has answered."""
        with self.lock:
            if self.is_open:
                self.close()
                self._flush()

    def end(self, why: str) -> None:
        """End it now, if it has not ended."""
        with self.lock:
            self.kill(amqp.StreamLostError(why))
        self.finish()

    def finish(self) -> None:
        """Close the socket and tell pika, which tells every channel. Once, by the I/O thread only."""
        with self.lock:
            if self.ended:
                return
            self._parse(b"")  # what a caller has read before the end and left
            self._flush()
            self.ended = True
            self._ending = True
            self.usable = False
            self._socket.close()
            self._out.clear()
            if self._stream_error is None and self._error is None:
                self._stream_error = amqp.StreamLostError("the connection was dropped")
            self.end_reason = self._why()
            try:
                self._on_stream_terminated(self._stream_error)
            except Exception as error:  # a callback's fault must not keep the thread from failing the waiters
                self._report("a channel could not be told that its connection ended", error)
            self._room.wake_all()
        self._run_after_unlock()

    def check_usable(self) -> None:
        """:raises ConnectionEnded: it is not usable any more."""
        if not self.usable:
            raise ConnectionEnded

    def _why(self) -> BaseException | None:
        """What ended it, before pika guesses at passwords from the state of the handshake."""
        reason: BaseException | None = self._error if self._stream_error is None else self._stream_error
        if self.frames_received == 0 and self._frame_buffer:
            reason = amqp.IncompatibleProtocolError("no frame of AMQP 0-9-1")
        return reason

    def _receive(self) -> bytes:
        """What can be read now; at the end of the stream, note why. TLS reads until it would wait."""
        received: list[bytes] = []
        self._more = False
        try:
            while data := self._socket.recv(_RECEIVE_BYTES):
                if not self._tls:
                    return data
                received.append(data)
                if len(received) == _TLS_TURN_RECORDS:
                    self._more = True
                    return b"".join(received)
            error: Exception = amqp.StreamLostError("end of stream")
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b"".join(received)
        except OSError as failed:
            error = amqp.StreamLostError(f"reading failed: {type(failed).__name__}")
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
            self._report("a frame could not be understood: the connection ends", error)
            self.kill(amqp.InvalidFrameError(type(error).__name__))

    def _timer_failed(self, error: Exception) -> None:
        self._report("a timer of the connection failed: the connection ends", error)
        self.kill(amqp.StreamLostError(f"a timer failed: {type(error).__name__}"))

    def _run_after_unlock(self) -> None:
        while self.after_unlock:
            with self.lock:
                calls, self.after_unlock = self.after_unlock, []
            for call in calls:
                try:
                    call()
                except Exception:
                    logger.exception("what followed from a frame failed: the connection ends")
                    with self.lock:
                        self.kill(amqp.StreamLostError("what followed from a frame failed"))

    def _report(self, what: str, error: Exception) -> None:
        """Log once the lock is free: a logging handler is a user's code, and may want to publish."""
        self.after_unlock.append(lambda: logger.error(what, exc_info=error))

    # --- sending, the lock held ----------------------------------------------------------------

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self._send_failed = True
            self.usable = False
            self._out.clear()
            self._room.wake_all()
            self.call_later(_END_AFTER_FAILED_SEND, self._end_after_failed_send)
            return 0

    def _end_after_failed_send(self) -> None:
        self.kill(amqp.StreamLostError("sending failed"))

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

    # --- what pika asks of an adapter, the lock held -------------------------------------------

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._send_failed:
            self._out += data  # sent when the entry point ends: the pieces of one method leave together

    def _adapter_call_later(self, delay: float, callback: Callable[[], Any]) -> object:
        return self.call_later(delay, callback)

    def _adapter_remove_timeout(self, timeout_id: Any) -> None:
        self._timers.cancel(timeout_id)

    def _adapter_add_callback_threadsafe(self, callback: Callable[..., Any]) -> None:
        self.call_later(0, callback)

    def _adapter_connect_stream(self) -> None:
        raise AssertionError("the socket is connected before this object is made")

    def _adapter_disconnect_stream(self) -> None:
        self._ending = True
        self.usable = False
        self._waker.wake()
