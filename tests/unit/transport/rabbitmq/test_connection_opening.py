"""Reaching a host, under a deadline, whatever it does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from message_hub_sync.config import parse_addresses
from message_hub_sync.transport.rabbitmq import connection_opening
from message_hub_sync.transport.rabbitmq.endpoints import Endpoints
from message_hub_sync.transport.rabbitmq.polling import new_selector


def await_socket(waiting: socket.socket, writable: bool, deadline: float) -> bool:
    with new_selector() as selector:
        selector.register(waiting, 2 if writable else 1)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        yield server


@pytest.fixture
def swallowing() -> Iterator[tuple[str, int]]:
    """An address that answers no attempt: the queue of its listener is full."""
    queued = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
            queued.append(waiting)
        yield server.getsockname()
        for waiting in queued:
            waiting.close()


def dial(url: str, seconds: float) -> socket.socket:
    endpoint = Endpoints(parse_addresses(url), seconds).next()  # type: ignore[arg-type]
    return connection_opening.dial(endpoint, time.monotonic() + seconds, await_socket)


def test_a_reached_host_gives_a_socket_that_does_not_block(listener: socket.socket) -> None:
    with dial(f"amqp://127.0.0.1:{listener.getsockname()[1]}", 2) as connected:
        assert connected.getblocking() is False
        with pytest.raises(BlockingIOError):
            connected.recv(1)


def test_a_listener_that_accepts_nobody_takes_no_longer_than_allowed(swallowing: tuple[str, int]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        dial(f"amqp://127.0.0.1:{swallowing[1]}", 0.3)
    assert 0.25 < time.monotonic() - began < 30


def test_a_silent_tls_handshake_takes_no_longer_than_allowed(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        dial(f"amqps://127.0.0.1:{listener.getsockname()[1]}", 0.3)
    assert 0.25 < time.monotonic() - began < 30


def test_a_refusing_address_raises_its_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            dial(f"amqp://127.0.0.1:{unused.getsockname()[1]}", 1.0)
