"""A link and hosts that misbehave while it connects: the right error, in time, and nothing left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from mailing import mailing

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.rabbitmq import recovering_connection as module

MISBEHAVIOURS: dict[str, Callable[[socket.socket], None]] = {
    "says nothing": lambda peer: None,
    "closes at once": lambda peer: peer.close(),
    "speaks HTTP": lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "speaks another AMQP": lambda peer: peer.sendall(b"AMQP\x03\x01\x00\x00"),
    "answers like TLS": lambda peer: peer.sendall(b"\x15\x03\x03\x00\x02\x02\x46") or peer.close(),
}


class Host:
    """Accepts connections and misbehaves on each."""

    def __init__(self, misbehave: Callable[[socket.socket], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._misbehave = misbehave
        self._peers: list[socket.socket] = []
        self._changed = threading.Condition()
        self.attempts = 0
        self.url = f"amqp://reader:s3cret@127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                self._peers.append(peer)
                with contextlib.suppress(OSError):
                    self._misbehave(peer)
                with self._changed:
                    self.attempts += 1
                    self._changed.notify_all()

    def wait_for_attempts(self, count: int, timeout: float = 30) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.attempts >= count, timeout)

    def close(self) -> None:
        self._server.close()
        for peer in self._peers:
            peer.close()


@pytest.fixture
def host() -> Iterator[Callable[[str], Host]]:
    hosts: list[Host] = []

    def make(misbehaviour: str) -> Host:
        hosts.append(Host(MISBEHAVIOURS[misbehaviour]))
        return hosts[-1]

    yield make
    for each in hosts:
        each.close()


@pytest.fixture
def transport() -> Iterator[Callable[..., RabbitMQTransport]]:
    made: list[RabbitMQTransport] = []

    def make(url: Any, **settings: Any) -> RabbitMQTransport:
        made.append(RabbitMQTransport(ClientConfig(service_name="svc", address=parse_addresses(url), **settings)))
        return made[-1]

    yield make
    for each in made:
        each.close(time.monotonic() + 2)


def refused(transport: RabbitMQTransport, seconds: float) -> tuple[str, float]:
    began = time.monotonic()
    with pytest.raises(MessageHubConnectionError) as caught:
        transport.connect(began + seconds)
    assert "s3cret" not in str(caught.value)
    return str(caught.value), time.monotonic() - began


def refused_because(words: str, transport: RabbitMQTransport, seconds: float = 0.3) -> float:
    """As :func:`refused`, repeated until the reason is known: the time may be over before the first attempt."""
    deadline = time.monotonic() + 60
    while True:
        text, took = refused(transport, seconds)
        if words in text:
            return took
        assert time.monotonic() < deadline, text


def test_a_silent_host_takes_no_longer_than_the_caller_allows(host: Any, transport: Any) -> None:
    client = transport(host("says nothing").url, connect_timeout=60)
    assert refused_because("did not answer", client) < 30


def test_a_host_that_hangs_up_may_be_starting_and_is_asked_again(host: Any, transport: Any) -> None:
    hanging_up = host("closes at once")
    client, began = transport(hanging_up.url), time.monotonic()
    assert refused_because("closed the connection before it was open", client, 1.5) > 1.4
    while hanging_up.attempts < 3:
        refused(client, 1.5)
    # A pause between them, and a short one while somebody waits.
    assert hanging_up.attempts <= 4 + 6 * (time.monotonic() - began)


@pytest.mark.parametrize("misbehaviour", ["speaks HTTP", "speaks another AMQP", "answers like TLS"])
def test_a_host_that_speaks_something_else_is_named_at_once(host: Any, transport: Any, misbehaviour: str) -> None:
    text, took = refused(transport(host(misbehaviour).url, connect_timeout=60), 60)
    assert "does not speak AMQP 0-9-1" in text
    assert took < 30


def test_callers_after_a_refusal_get_it_at_once_and_the_host_is_left_alone(host: Any, transport: Any) -> None:
    speaks_http = host("speaks HTTP")
    client = transport(speaks_http.url)
    began = time.monotonic()
    for _ in range(100):
        refused(client, 60)
    took = time.monotonic() - began
    assert took < 60
    assert speaks_http.attempts <= 3 + took  # after a second a caller has the host tried again


def test_one_refusing_host_is_not_taken_for_all_of_them(host: Any, transport: Any) -> None:
    refusing, silent = host("speaks HTTP"), host("says nothing")
    client = transport([refusing.url, silent.url], connect_timeout=2, hosts_in_order=True)
    _, took = refused(client, 0.8)
    assert took > 0.7
    while not silent.attempts:
        refused(client, 0.8)
    assert refusing.attempts >= 1


def test_nobody_listening_is_said_so_and_tried_again_while_somebody_waits(transport: Any) -> None:
    assert refused_because("refuses connections", transport("amqp://127.0.0.1:1")) > 0.25


def test_health_tells_why_there_is_no_connection_and_since_when(transport: Any) -> None:
    closed = transport("amqp://127.0.0.1:1")
    before = time.time()

    refused_because("refuses connections", closed)

    (status,) = closed.status()
    assert "refuses connections" in status.last_error
    assert before <= status.last_error_at <= time.time()


class Usable:
    """A connection that is open until it is served, and lost then."""

    alive, usable, quiet, silent = True, True, True, False
    end_reason = ConnectionResetError("reset by peer")

    def on_blocked(self, listener: Callable[[bool], None]) -> None:
        pass

    def serve(self, until: float) -> None:
        self.alive = False

    def end(self, why: str) -> None:
        pass


class Refusing:
    def open(self, *_args: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")


def test_the_last_error_never_goes_back_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((100.0, 101.0, 102.0))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(time=lambda: next(now), monotonic=time.monotonic))
    seen: list[float | None] = []

    def look() -> None:
        seen.append(link.status().last_error_at)

    config = ClientConfig("character-service", parse_addresses("amqp://127.0.0.1:1"))
    link = module.RecoveringConnection(
        "publish", config, restore=lambda connection: [], restore_patience=0.0, keep_open=lambda: True, on_open=look
    )
    link._serve(Usable())  # type: ignore[arg-type]
    look()
    link._connect(Refusing())  # type: ignore[arg-type]
    look()
    link._serve(Usable())  # type: ignore[arg-type]
    look()

    assert seen == [None, 100.0, 101.0, 101.0, 102.0]
    assert "ConnectionResetError" in (link.status().last_error or "")


def test_a_name_that_does_not_resolve_is_said_so(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: Any, **_kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused_because("cannot be resolved", transport("amqp://nowhere.invalid"))


def test_a_resolver_that_hangs_holds_up_no_caller(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_args: Any, **_kwargs: Any) -> Any:
        release.wait(120)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    client = transport("amqp://nowhere.invalid", connect_timeout=120)
    _, took = refused(client, 0.2)
    assert took < 60
    began = time.monotonic()
    client.close(began + 0.2)
    assert time.monotonic() - began < 60
    release.set()


@pytest.mark.parametrize("misbehaviour", ["says nothing", "closes at once", "speaks HTTP"])
def test_closing_while_connecting_ends_every_wait_at_once(host: Any, transport: Any, misbehaviour: str) -> None:
    misbehaving = host(misbehaviour)
    client = transport(misbehaving.url, connect_timeout=120)
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            client.connect(time.monotonic() + 120)
        except MessageHubConnectionError as error:
            errors.append(error)

    callers = [threading.Thread(target=connect) for _ in range(4)]
    for caller in callers:
        caller.start()
    assert misbehaving.wait_for_attempts(1)
    began = time.monotonic()
    client.close(began + 120)
    for caller in callers:
        caller.join(120)
    assert time.monotonic() - began < 60
    assert len(errors) == 4
    assert {status.state for status in client.status()} <= {ConnectionState.CLOSED}


def test_a_client_that_never_connected_leaves_no_thread_and_no_descriptor(host: Any, transport: Any) -> None:
    hanging_up = host("closes at once")
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    clients = [transport(hanging_up.url) for _ in range(20)]
    for client in clients:
        refused(client, 0.01)
        client.close(time.monotonic() + 2)
    assert not [thread for thread in threading.enumerate() if thread.name == "message-hub-svc-publish-io"]
    hanging_up.close()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_closed_transport_says_so(transport: Any) -> None:
    client = transport("amqp://127.0.0.1:1")
    client.close(time.monotonic() + 1)
    client.close(time.monotonic() + 1)
    text, took = refused(client, 60)
    assert "closed" in text
    assert took < 30


def test_no_thread_at_the_interpreters_end_is_a_connection_error(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    client = transport("amqp://127.0.0.1:1")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        for _ in range(3):
            text, _ = refused(client, 60)
            assert "interpreter is exiting" in text
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    refused_because("refuses connections", client)  # it works as soon as there are threads


def test_a_signal_while_the_thread_starts_leaves_a_link_that_works(
    transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    client = transport("amqp://127.0.0.1:1")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.connect(time.monotonic() + 60)
    refused_because("refuses connections", client)


def test_a_fault_of_ours_on_the_io_thread_fails_the_waiters_and_is_survived(
    transport: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = transport("amqp://127.0.0.1:1")
    with monkeypatch.context() as patched:

        def broken(*_: Any) -> Any:
            raise ZeroDivisionError

        patched.setattr(module, "connect_failure", broken)
        while "failed in an unexpected way" not in caplog.text:
            refused(client, 0.2)
    refused_because("refuses connections", client)


def test_who_would_wait_for_a_connection_on_an_io_thread_is_told_so_at_once(transport: Any, host: Any) -> None:
    client = transport(host("speaks HTTP").url)
    told: SimpleQueue[tuple[BaseException | None, float]] = SimpleQueue()

    class Publishing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for work in (
                lambda: client.connect(time.monotonic() + 60),
                lambda: client._publish_connection.recovering.call(lambda connection: None, time.monotonic() + 60),
            ):
                began, error = time.monotonic(), None
                try:
                    work()
                except MessageHubConnectionError as caught:
                    error = caught
                told.put((error, time.monotonic() - began))

    ours, handler = logging.getLogger("message_hub_sync.rabbitmq"), Publishing()
    ours.addHandler(handler)
    try:
        refused(client, 60)
        answers = [told.get(timeout=30) for _ in range(2)]
    finally:
        ours.removeHandler(handler)
    for error, took in answers:
        assert "I/O thread" in str(error)
        assert took < 30


def test_a_logging_handler_that_raises_ends_no_io_thread(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = threading.Event()

    def fault(*_: Any) -> Any:
        broken.set()
        raise ZeroDivisionError

    client = transport("amqp://127.0.0.1:1")
    link = client._consume_connection.recovering
    monkeypatch.setattr(link, "_keep_open", lambda: True)  # as with consumers, which nobody would start it anew for
    with mailing():
        with monkeypatch.context() as patched:
            patched.setattr(module, "connect_failure", fault)
            with pytest.raises(MessageHubConnectionError):
                link.wait_open(time.monotonic() + 0.2)
            assert broken.wait(30)
        thread = link._thread
        assert thread is not None
        with pytest.raises(MessageHubConnectionError, match="refuses connections"):
            link.wait_open(time.monotonic() + 1)
        assert link._thread is thread
        assert thread.is_alive()
