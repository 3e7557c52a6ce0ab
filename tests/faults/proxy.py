"""A TCP proxy that fails on command. It needs no network namespace, and counts connections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

__all__ = ["Proxy"]

_CHUNK = 65536


class Proxy:
    """A proxy before a broker: ``with Proxy(node.port) as proxy: MessageHubClient(…, proxy.url)``. Thread-safe."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = port
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()  # guarded by _lock
        self._accepted = 0  # guarded by _lock
        self._pumping = 0  # number of threads that copy bytes; guarded by _lock
        # Gates: a cleared event holds back everything in its direction, as a network that drops packets does.
        self._to_broker = _opened()
        self._to_client = _opened()
        self._closing = threading.Event()
        self._delay = 0.0
        threading.Thread(target=self._accept, name=f"message-hub-test-proxy-{self.port}", daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"amqp://guest:guest@{self.host}:{self.port}"

    @property
    def accepted(self) -> int:
        """Number of connections accepted so far."""
        with self._lock:
            return self._accepted

    @property
    def open(self) -> int:
        """Number of open connections."""
        with self._lock:
            return len(self._pairs)

    @property
    def pumps(self) -> int:
        """Number of threads that copy bytes: two per connection. They end after they have noticed its end."""
        with self._lock:
            return self._pumping

    def blackhole(self) -> None:
        """Hold back all bytes and new connections, without closing any connection."""
        self._to_broker.clear()
        self._to_client.clear()

    def swallow_answers(self) -> None:
        """Half-open connections: the broker receives from the client, but the client receives nothing."""
        self._to_client.clear()

    def heal(self) -> None:
        """Pass on everything that was held back."""
        self._delay = 0.0
        self._to_broker.set()
        self._to_client.set()

    def delay(self, seconds: float) -> None:
        """Delay each received chunk by so many seconds, in both directions."""
        self._delay = seconds

    def cut(self) -> int:
        """Reset (RST) both ends of every connection. Returns the number of connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for one in pair:
                _reset(one)
        return len(pairs)

    def close(self) -> None:
        """Close the listener and all connections."""
        self._closing.set()
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._to_broker.wait()
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                _reset(client)
                continue
            broker.settimeout(None)
            for one in (client, broker):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, broker)
            with self._lock:
                self._pairs.add(pair)
                self._accepted += 1
                self._pumping += 2
            for source, sink, gate in ((client, broker, self._to_broker), (broker, client, self._to_client)):
                threading.Thread(
                    target=self._pump,
                    args=(pair, source, sink, gate),
                    name=f"message-hub-test-proxy-{self.port}-pump",
                    daemon=True,
                ).start()

    def _pump(
        self,
        pair: tuple[socket.socket, socket.socket],
        source: socket.socket,
        sink: socket.socket,
        gate: threading.Event,
    ) -> None:
        try:
            while data := source.recv(_CHUNK):
                if self._delay:
                    self._closing.wait(self._delay)
                gate.wait()
                sink.sendall(data)
        except OSError:
            pass
        gate.wait()  # a closed connection is not noticed through a blackhole, either
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._lock:
            self._pairs.discard(pair)
            self._pumping -= 1


def _opened() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # shutdown() wakes the thread that is blocked in recv(): otherwise recv() keeps the descriptor open.
        one.shutdown(socket.SHUT_RD)
    one.close()
