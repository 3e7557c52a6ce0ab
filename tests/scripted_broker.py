"""A broker in a thread of the test: it opens connections and channels, and misbehaves where the test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pika import frame, spec

__all__ = ["CAPABILITIES", "USUAL", "ScriptedBroker"]

_PROTOCOL_HEADER = 8
CAPABILITIES = dict.fromkeys(("authentication_failure_close", "basic.nack", "connection.blocked"), True) | {
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}
#: See ``answers``.
USUAL = "usual"


class ScriptedBroker:
    """Answers what a client needs to connect, to publish and to consume.

    :param answers: by the name of a method (``Connection.StartOk``; ``header`` for the protocol header), or of a method
        and its queue (``Queue.Declare svc.messages``), what is sent instead of the usual answer: called with the
        socket. If it returns ``USUAL``, the usual answer is sent.
    :param host: the IP address to listen on.
    """

    def __init__(self, answers: Mapping[str, Callable[[socket.socket], object]] | None = None, host: str = "127.0.0.1"):
        self._script = dict(answers or {})
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family)
        self._peers: list[socket.socket] = []
        self.changed = threading.Condition()
        self.connections = 0  # guarded by changed
        self.answered: list[str] = []  # guarded by changed; the methods that a client waited for, over all connections
        self.address: tuple[Any, ...] = self._server.getsockname()
        self.port: int = self.address[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"amqp://{shown}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 30.0) -> bool:
        """Wait until ``condition`` holds."""
        with self.changed:
            return self.changed.wait_for(condition, timeout)

    def cut(self) -> None:
        """End all connections."""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections and accept no more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # else a thread in accept() would still take one
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._peers.append(peer)
                with self.changed:
                    self.connections += 1
                    self.changed.notify_all()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        buffer, started = b"", False
        with contextlib.suppress(OSError):
            while data := peer.recv(1 << 16):
                buffer += data
                if not started:
                    if len(buffer) < _PROTOCOL_HEADER:
                        continue
                    buffer, started = buffer[_PROTOCOL_HEADER:], True
                    start = spec.Connection.Start(server_properties={"capabilities": CAPABILITIES})
                    self._answer(peer, "header", 0, start)
                while True:
                    used, found = frame.decode_frame(buffer)
                    if found is None:
                        break
                    buffer = buffer[used:]
                    if isinstance(found, frame.Method):
                        self._take(peer, found)
        peer.close()

    def _take(self, peer: socket.socket, found: Any) -> None:
        method = found.method
        usual = None if getattr(method, "nowait", False) else _ANSWERS.get(type(method))
        of_queue = f"{method.NAME} {getattr(method, 'queue', '')}"
        name = of_queue if of_queue in self._script else method.NAME
        if usual is not None or name in self._script:
            self._answer(peer, name, found.channel_number, usual(method) if usual else None)

    def _answer(self, peer: socket.socket, name: str, channel: int, usual: Any) -> None:
        with self.changed:
            self.answered.append(name)
            self.changed.notify_all()
        if name in self._script and self._script[name](peer) != USUAL:
            return
        if usual is not None:
            peer.sendall(frame.Method(channel, usual).marshal())


_ANSWERS: dict[Any, Callable[[Any], Any]] = {
    spec.Connection.StartOk: lambda _: spec.Connection.Tune(2047, 131072, 60),
    spec.Connection.Open: lambda _: spec.Connection.OpenOk(),
    spec.Connection.Close: lambda _: spec.Connection.CloseOk(),
    spec.Channel.Open: lambda _: spec.Channel.OpenOk(),
    spec.Channel.Close: lambda _: spec.Channel.CloseOk(),
    spec.Confirm.Select: lambda _: spec.Confirm.SelectOk(),
    spec.Basic.Qos: lambda _: spec.Basic.QosOk(),
    spec.Basic.Consume: lambda method: spec.Basic.ConsumeOk(method.consumer_tag),
    spec.Exchange.Declare: lambda _: spec.Exchange.DeclareOk(),
    spec.Queue.Declare: lambda method: spec.Queue.DeclareOk(method.queue, 0, 0),
    spec.Queue.Delete: lambda _: spec.Queue.DeleteOk(0),
}
