"""Reaching a host, under a deadline, whatever it does."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from message_hub_sync.config import parse_addresses
from message_hub_sync.transport.rabbitmq import connection_opening
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
    addresses: Any = parse_addresses(url)
    return connection_opening.dial(addresses[0], time.monotonic() + seconds, await_socket)


def resolving_to(monkeypatch: pytest.MonkeyPatch, *targets: tuple[str, int]) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)


def test_a_reached_host_gives_a_socket_that_does_not_block(listener: socket.socket) -> None:
    with dial(f"amqp://127.0.0.1:{listener.getsockname()[1]}", 2) as connected:
        assert connected.getblocking() is False
        with pytest.raises(BlockingIOError):
            connected.recv(1)


def test_a_listener_that_accepts_nobody_takes_no_longer_than_allowed(swallowing: tuple[str, int]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        dial(f"amqp://127.0.0.1:{swallowing[1]}", 0.3)
    assert 0.25 < time.monotonic() - began < 1


def test_a_silent_tls_handshake_takes_no_longer_than_allowed(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        dial(f"amqps://127.0.0.1:{listener.getsockname()[1]}", 0.3)
    assert 0.25 < time.monotonic() - began < 1


def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    listener: socket.socket, swallowing: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving_to(monkeypatch, swallowing, listener.getsockname())
    began = time.monotonic()
    with dial("amqp://many-addresses", 1.0) as connected:
        assert connected.getpeername() == listener.getsockname()
    assert 0.4 < time.monotonic() - began < 0.9


def test_a_refusing_address_is_followed_by_the_next(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        resolving_to(monkeypatch, unused.getsockname(), listener.getsockname())
        with dial("amqp://two-addresses", 1.0) as connected:
            assert connected.getpeername() == listener.getsockname()


def test_the_last_error_is_the_one_that_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        resolving_to(monkeypatch, unused.getsockname())
        with pytest.raises(ConnectionRefusedError):
            dial("amqp://nobody", 1.0)
