"""A broker that always answers in the same way, so that the gate's counts do not depend on a real broker's timing.

It implements only what a client needs to connect, publish and consume over AMQP 0-9-1. pika encodes the frames.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pika import BasicProperties, frame, spec

from benchmarks.work import encoded, envelope, payload_of

__all__ = ["Counts", "Script", "ScriptedBroker"]

_PROTOCOL_HEADER = 8


@dataclass(frozen=True)
class Script:
    """How the broker answers.

    :param queue: the queue whose consumer gets deliveries.
    :param confirm_every: it sends one confirm for so many messages.
    :param batch: it sends so many deliveries at once, and the next ones when all of these are acknowledged.
    :param body_bytes: the size of each delivery's body.
    """

    queue: str
    confirm_every: int = 1
    batch: int = 64
    body_bytes: int = 256


@dataclass(frozen=True)
class Counts:
    """What the clients have written so far."""

    bytes: int
    frames: int


class ScriptedBroker:
    """Controls the broker's process from its parent."""

    def __init__(self, port: int, control: Any) -> None:
        self.url = f"amqp://guest:guest@127.0.0.1:{port}"
        self._control = control

    @classmethod
    @contextmanager
    def running(cls, script: Script) -> Iterator[ScriptedBroker]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(script, theirs), daemon=True)
        process.start()
        try:
            yield cls(ours.recv(), ours)
        finally:
            process.kill()
            process.join()

    def counts(self) -> Counts:
        """What the clients have written so far."""
        return self.deliver(0)

    def deliver(self, messages: int) -> Counts:
        """Deliver so many messages. Returns when all are acknowledged."""
        self._control.send(messages)
        found: Counts = self._control.recv()
        return found


class _Totals:
    """The state that all connections share."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.bytes = self.frames = 0  # guarded by changed
        self.to_deliver = self.unacknowledged = 0  # guarded by changed
        self.consumer: _Peer | None = None  # the connection that consumes; guarded by changed


def _serve(script: Script, control: Connection) -> None:
    totals = _Totals()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, script, totals), daemon=True).start()
    control.send(listener.getsockname()[1])
    while True:
        try:
            messages = control.recv()
        except EOFError:
            return  # the parent has ended
        with totals.changed:
            if messages:
                totals.changed.wait_for(lambda: totals.consumer is not None)
                assert totals.consumer is not None
                totals.to_deliver = messages
                totals.consumer.deliver()
                totals.changed.wait_for(lambda: not totals.to_deliver and not totals.unacknowledged)
            found = Counts(totals.bytes, totals.frames)
        control.send(found)


def _accept(listener: socket.socket, script: Script, totals: _Totals) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_Peer(connection, script, totals).serve, daemon=True).start()


class _Peer:
    """One client's connection. It has its own thread."""

    def __init__(self, connection: socket.socket, script: Script, totals: _Totals) -> None:
        self._socket = connection
        self._script = script
        self._totals = totals
        self._published: dict[int, int] = {}
        self._channel = 0
        self._consumer_tag = ""
        self._delivery_tag = 0

    def serve(self) -> None:
        buffer = b""
        started = False
        while data := self._socket.recv(1 << 20):
            buffer += data
            if not started:
                if len(buffer) < _PROTOCOL_HEADER:
                    continue
                buffer, started = buffer[_PROTOCOL_HEADER:], True
                self._send(0, spec.Connection.Start(server_properties={"capabilities": _CAPABILITIES}))
            buffer = self._taken(buffer, len(data))

    def _taken(self, buffer: bytes, received: int) -> bytes:
        frames = []
        position = 0
        while True:
            used, found = frame.decode_frame(buffer[position:])
            if found is None:
                break
            position += used
            frames.append(found)
        with self._totals.changed:
            # Count before answering: a client that has the answer finds its frames counted.
            self._totals.bytes += received
            self._totals.frames += len(frames)
        for found in frames:
            self._take(found)
        return buffer[position:]

    def _take(self, found: Any) -> None:
        channel = found.channel_number
        if isinstance(found, frame.Body):
            self._published[channel] = tag = self._published.get(channel, 0) + 1
            if tag % self._script.confirm_every == 0:
                self._send(channel, spec.Basic.Ack(tag, multiple=self._script.confirm_every > 1))
        elif isinstance(found, frame.Method):
            method = found.method
            if isinstance(method, spec.Basic.Ack):
                self._settle(method)
            elif isinstance(method, spec.Basic.Consume):
                self._send(channel, spec.Basic.ConsumeOk(method.consumer_tag))
                if method.queue == self._script.queue:
                    with self._totals.changed:
                        self._channel, self._consumer_tag = channel, method.consumer_tag
                        self._totals.consumer = self
                        self._totals.changed.notify_all()
            elif isinstance(method, spec.Queue.Declare):
                self._send(channel, spec.Queue.DeclareOk(method.queue, 0, 0))
            else:
                answer = _ANSWERS.get(type(method))
                if answer is not None:
                    self._send(channel, answer(method))

    def _settle(self, ack: Any) -> None:
        with self._totals.changed:
            # Tags come in order, because the client has one worker.
            settled = self._delivery_tag - self._totals.unacknowledged
            self._totals.unacknowledged -= ack.delivery_tag - settled if ack.multiple else 1
            if not self._totals.unacknowledged:
                self.deliver()
            self._totals.changed.notify_all()

    def deliver(self) -> None:
        """Send the next batch. The caller holds ``changed``."""
        body = encoded(payload_of(self._script.body_bytes))
        pieces = []
        for _ in range(min(self._script.batch, self._totals.to_deliver)):
            self._totals.to_deliver -= 1
            self._totals.unacknowledged += 1
            self._delivery_tag += 1
            properties, headers = envelope(self._script.queue.partition(".")[0])
            deliver = spec.Basic.Deliver(self._consumer_tag, self._delivery_tag, False, "", self._script.queue)
            pieces += [
                frame.Method(self._channel, deliver).marshal(),
                frame.Header(self._channel, len(body), BasicProperties(headers=headers, **properties)).marshal(),
                frame.Body(self._channel, body).marshal(),
            ]
        self._socket.sendall(b"".join(pieces))

    def _send(self, channel: int, method: Any) -> None:
        self._socket.sendall(frame.Method(channel, method).marshal())


_CAPABILITIES = dict.fromkeys(
    (
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
    ),
    True,
)
_ANSWERS: dict[Any, Any] = {
    spec.Connection.StartOk: lambda _: spec.Connection.Tune(2047, 131072, 60),
    spec.Connection.Open: lambda _: spec.Connection.OpenOk(),
    spec.Connection.Close: lambda _: spec.Connection.CloseOk(),
    spec.Channel.Open: lambda _: spec.Channel.OpenOk(),
    spec.Channel.Close: lambda _: spec.Channel.CloseOk(),
    spec.Confirm.Select: lambda _: spec.Confirm.SelectOk(),
    spec.Exchange.Declare: lambda _: spec.Exchange.DeclareOk(),
    spec.Queue.Bind: lambda _: spec.Queue.BindOk(),
    spec.Basic.Qos: lambda _: spec.Basic.QosOk(),
    spec.Basic.Cancel: lambda method: spec.Basic.CancelOk(method.consumer_tag),
}
