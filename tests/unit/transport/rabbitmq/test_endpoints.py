"""Every IP address of every host is tried in turn, whichever layer failed, and a slow resolver prevents nothing."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pika import frame, spec
from scripted_broker import CAPABILITIES, ScriptedBroker

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError
from message_hub_sync.runtime.deadlines import MAX_TIMEOUT
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq import RabbitMQTransport, backoff


def closes(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_RDWR)


def speaks_http(peer: socket.socket) -> None:
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def refuses_the_login(peer: socket.socket) -> None:
    peer.sendall(frame.Method(0, spec.Connection.Close(403, "ACCESS_REFUSED", 10, 11)).marshal())


def says_nothing(peer: socket.socket) -> None:
    pass


@pytest.fixture
def broker() -> Iterator[Callable[..., ScriptedBroker]]:
    made: list[ScriptedBroker] = []

    def make(**answers: Callable[[socket.socket], None]) -> ScriptedBroker:
        made.append(ScriptedBroker({name.replace("_", "."): answer for name, answer in answers.items()}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def transport() -> Iterator[Callable[..., RabbitMQTransport]]:
    made: list[RabbitMQTransport] = []

    def make(url: Any, **settings: Any) -> RabbitMQTransport:
        made.append(RabbitMQTransport(ClientConfig(**{
            "service_name": "svc", "address": parse_addresses(url), "hosts_in_order": True, **settings
        })))  # fmt: skip
        return made[-1]

    yield make
    for each in made:
        each.close(time.monotonic() + 2)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By the name of a host: its addresses, or a callable that returns them. Other names are looked up as usual."""
    known: dict[str, Any] = {}
    look_up = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        if host not in known:
            return look_up(host, *arguments, **options)
        found = known[host]
        targets = found() if callable(found) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


@pytest.fixture
def dead() -> Iterator[Callable[[], tuple[str, int]]]:
    """Addresses that answer no attempt to connect: the queues of their listeners are full."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[str, int]:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(server.getsockname())
            address: tuple[str, int] = server.getsockname()
            return address

        yield make


def url_of(*targets: tuple[str, int]) -> list[str]:
    return [f"amqp://{host}:{port}" for host, port in targets]


def state_of(transport: RabbitMQTransport) -> ConnectionState:
    return transport.status()[0].state


def connected_within(transport: RabbitMQTransport, seconds: float) -> bool:
    try:
        transport.connect(time.monotonic() + seconds)
    except MessageHubConnectionError:
        return False
    return True


# --- a name with several addresses -----------------------------------------------------------------


@pytest.mark.parametrize("layer", ["header", "Connection_StartOk", "Connection_Open", "Channel_Open"])
@pytest.mark.parametrize("fault", [closes, speaks_http, says_nothing])
def test_the_second_address_of_a_name_is_tried_whatever_the_first_one_does(
    broker: Any, transport: Any, names: dict[str, Any], layer: str, fault: Any
) -> None:
    first, second = broker(**{layer: fault}), broker()
    names["rabbit"] = [first.address, second.address]
    # 60 s: a restore waits 10 s for a silent broker.
    transport("amqp://rabbit", connect_timeout=2).connect(time.monotonic() + 60)
    assert first.connections >= 1
    assert second.connections >= 1


def test_one_refusal_of_the_login_is_not_final_while_another_address_is_left(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    names["rabbit"] = [broker(Connection_StartOk=refuses_the_login).address, broker().address]
    for _ in range(5):
        client = transport("amqp://rabbit")
        client.connect(time.monotonic() + 30)
        client.close(time.monotonic() + 5)


def test_a_login_that_every_address_of_every_host_refuses_is_told_at_once(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    refusing = [broker(Connection_StartOk=refuses_the_login) for _ in range(3)]
    names["one"] = [refusing[0].address, refusing[1].address]
    names["two"] = [refusing[2].address]
    with pytest.raises(MessageHubAuthorizationError):
        transport(["amqp://one", "amqp://two"], connect_timeout=60).connect(time.monotonic() + 60)
    assert [each.connections for each in refusing] == [1, 1, 1]


def test_an_address_of_a_family_that_the_machine_lacks_is_followed_by_the_next(
    broker: Any, transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = broker()
    found = [
        (socket.AF_INET6 + 12_345, socket.SOCK_STREAM, 6, "", ("::1", sound.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", sound.address),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    transport("amqp://rabbit").connect(time.monotonic() + 30)


def test_a_first_address_whose_broker_ends_each_connection_does_not_keep_the_second_from_its_turn(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    """It opens the connection and closes it when the channel is opened: a node that is starting or broken."""
    names["rabbit"] = [broker(Channel_Open=closes).address, broker().address]
    client = transport("amqp://rabbit")
    client.connect(time.monotonic() + 30)
    assert state_of(client) is ConnectionState.OPEN


# --- a slow resolver -------------------------------------------------------------------------------


def test_a_lookup_that_outlasts_the_timeout_is_used_when_it_comes(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    sound, found = broker(), threading.Event()

    def late() -> list[Any]:
        assert found.wait(30)
        return [sound.address]

    names["rabbit"] = late
    client = transport("amqp://rabbit", connect_timeout=0.2)
    assert not connected_within(client, 0.2)
    found.set()
    assert sound.wait_for(lambda: "Channel.Open" in sound.answered)
    assert connected_within(client, 30)
    assert sound.connections == 1


def test_slow_lookups_of_several_hosts_do_not_keep_the_last_one_from_being_reached(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    sound, lookups = broker(), []

    def slow(targets: list[Any]) -> Callable[[], list[Any]]:
        def look_up() -> list[Any]:
            lookups.append(1)
            threading.Event().wait(0.3)  # longer than the share of a host
            return targets

        return look_up

    names.update(one=slow([("127.0.0.1", 1)]), two=slow([("127.0.0.1", 1)]), three=slow([sound.address]))
    client = transport(["amqp://one", "amqp://two", "amqp://three"], connect_timeout=0.5)
    deadline = time.monotonic() + 60
    while not connected_within(client, 0.5):
        assert time.monotonic() < deadline
    assert len(lookups) == 3


def test_a_name_that_does_not_resolve_is_followed_by_the_next_host(
    broker: Any, transport: Any, names: dict[str, Any]
) -> None:
    def unknown() -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names.update(nowhere=unknown, rabbit=[broker().address])
    transport(["amqp://nowhere", "amqp://rabbit"]).connect(time.monotonic() + 30)


# --- the time is shared ----------------------------------------------------------------------------


def test_two_dead_hosts_leave_time_for_the_third_within_one_timeout(broker: Any, transport: Any, dead: Any) -> None:
    client = transport(url_of(dead(), dead(), broker().address), connect_timeout=3)
    client.connect(time.monotonic() + 3)


def test_a_timeout_shorter_than_a_second_is_shared_too(broker: Any, transport: Any, dead: Any) -> None:
    sound = broker()
    client = transport(url_of(dead(), dead(), dead(), sound.address), connect_timeout=0.4)
    deadline = time.monotonic() + 60
    while not connected_within(client, 0.4):
        assert time.monotonic() < deadline


def test_a_next_call_goes_on_where_the_last_one_ended(broker: Any, transport: Any, dead: Any) -> None:
    sound = broker()
    client = transport(url_of(dead(), dead(), sound.address), connect_timeout=1.5)
    calls = 1
    while not connected_within(client, 0.1):  # less than the share of one host
        calls += 1
        assert calls < 600
    assert sound.connections == 1


@pytest.mark.parametrize("layer", ["header", "Connection_StartOk", "Connection_Open"])
def test_hosts_whose_handshake_takes_longer_than_their_share_are_given_more_time(
    broker: Any, transport: Any, layer: str
) -> None:
    answers: dict[str, Any] = {
        "header": spec.Connection.Start(server_properties={"capabilities": CAPABILITIES}),
        "Connection_StartOk": spec.Connection.Tune(2047, 131072, 60),
        "Connection_Open": spec.Connection.OpenOk(),
    }  # fmt: skip

    def slowly(peer: socket.socket) -> None:
        threading.Event().wait(0.5)  # the share is 0.25 s
        peer.sendall(frame.Method(0, answers[layer]).marshal())

    hosts = [broker(**{layer: slowly}) for _ in range(4)]
    client = transport([host.url for host in hosts], connect_timeout=1)
    deadline = time.monotonic() + 60
    while not connected_within(client, 1):
        assert time.monotonic() < deadline


# --- the order of the hosts ------------------------------------------------------------------------


def test_clients_with_several_hosts_spread_over_them(broker: Any, transport: Any) -> None:
    hosts = [broker() for _ in range(3)]
    for _ in range(60):
        client = transport([host.url for host in hosts], hosts_in_order=False)
        client.connect(time.monotonic() + 30)
        client.close(time.monotonic() + 5)
    assert all(host.connections >= 2 for host in hosts), [host.connections for host in hosts]


def test_hosts_in_order_are_tried_in_the_order_of_the_url(broker: Any, transport: Any) -> None:
    hosts = [broker() for _ in range(3)]
    for _ in range(10):
        client = transport([host.url for host in hosts])
        client.connect(time.monotonic() + 30)
        client.close(time.monotonic() + 5)
    assert [host.connections for host in hosts] == [10, 0, 0]


def test_after_the_loss_of_a_host_the_next_one_is_taken(broker: Any, transport: Any) -> None:
    hosts = [broker() for _ in range(3)]
    client = transport([host.url for host in hosts])
    client.connect(time.monotonic() + 30)
    hosts[0].close()
    assert hosts[1].wait_for(lambda: "Channel.Open" in hosts[1].answered)


# --- round trips -----------------------------------------------------------------------------------


def test_a_client_that_publishes_waits_for_four_answers_until_it_is_connected(broker: Any, transport: Any) -> None:
    sound = broker()
    transport(sound.url).connect(time.monotonic() + 30)
    assert sound.answered == ["header", "Connection.StartOk", "Connection.Open", "Channel.Open"]


def test_connecting_again_after_a_loss_takes_no_more_answers_than_the_first_time(broker: Any, transport: Any) -> None:
    sound = broker()
    client = transport(sound.url)
    client.connect(time.monotonic() + 30)
    sound.cut()
    assert sound.wait_for(lambda: sound.answered.count("Channel.Open") == 2)
    assert len(sound.answered) == 8


# --- the longest timeout ---------------------------------------------------------------------------


def test_the_longest_timeout_that_is_allowed_can_be_waited_for(broker: Any, transport: Any) -> None:
    longest = MAX_TIMEOUT
    client = transport(broker().url, connect_timeout=longest, delivery_timeout=longest, close_timeout=longest)
    client.connect(time.monotonic() + longest)
    client.close(time.monotonic() + longest)


# --- a handshake that is no AMQP -------------------------------------------------------------------


def sends(data: bytes) -> Callable[[socket.socket], None]:
    return lambda peer: peer.sendall(data)


def method(*numbers: int, channel: int = 0) -> bytes:
    return struct.pack(">BHIHH", 1, channel, 4, *numbers) + b"\xce"


def start(properties: dict[str, Any]) -> bytes:
    return bytes(frame.Method(0, spec.Connection.Start(server_properties=properties)).marshal())


def refused_until(client: RabbitMQTransport, tried: Callable[[], bool]) -> float:
    """Try to connect three times at least, and until ``tried()``. Returns the seconds."""
    began, calls = time.monotonic(), 0
    while calls < 3 or not tried():
        calls += 1
        with pytest.raises(MessageHubConnectionError):
            client.connect(time.monotonic() + 0.5)
        assert time.monotonic() - began < 60
    return time.monotonic() - began


def told_once(caplog: pytest.LogCaptureFixture) -> bool:
    deadline = time.monotonic() + 30
    while True:  # the I/O thread logs after it has woken the callers
        told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        if told or time.monotonic() > deadline:
            assert len(told) == 1, told
            return True
        threading.Event().wait(0.02)


MALFORMED = {
    "a frame without its end": {"header": sends(method(10, 10)[:-1] + b"X")},
    "an unknown method": {"header": sends(method(10, 99))},
    "a method without its arguments": {"header": sends(method(10, 10))},
    "a tuning without its arguments": {"Connection_StartOk": sends(method(10, 30))},
    "an answer without its end": {"Connection_Open": sends(method(10, 41)[:-1] + b"X")},
    "many of them": {"header": sends((method(10, 10)[:-1] + b"X") * 1000)},
    "no capabilities": {"header": sends(start({}))},
    "strange capabilities": {"header": sends(start({"capabilities": "x"}))},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_handshake_is_logged_once_and_tried_again_with_pauses(
    broker: Any, transport: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    malformed = broker(**MALFORMED[name])
    client = transport(malformed.url)
    took = refused_until(client, lambda: malformed.connections >= 1)
    assert malformed.connections <= 5 + 6 * took
    assert told_once(caplog)


def test_a_broker_that_breaks_every_connection_at_its_first_channel_is_logged_once(
    broker: Any, transport: Any, caplog: pytest.LogCaptureFixture
) -> None:
    malformed = broker(Channel_Open=sends(method(20, 99, channel=1)))
    client = transport(malformed.url)
    took = refused_until(client, lambda: malformed.connections >= 1)
    assert malformed.connections <= 5 + 10 * took
    assert told_once(caplog)


# --- a login that is right again -------------------------------------------------------------------


def refusing_at_first(broker: Any) -> tuple[ScriptedBroker, threading.Event]:
    right = threading.Event()

    def answer(peer: socket.socket) -> None:
        if right.is_set():
            peer.sendall(frame.Method(0, spec.Connection.Tune(2047, 131072, 60)).marshal())
        else:
            refuses_the_login(peer)

    return broker(Connection_StartOk=answer), right


def test_a_caller_has_a_refused_login_tried_again_although_the_pause_is_long(
    broker: Any, transport: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_LONGEST_REFUSED_PAUSE", 600.0)
    refusing, right = refusing_at_first(broker)
    client = transport(refusing.url)
    with pytest.raises(MessageHubAuthorizationError):
        client.connect(time.monotonic() + 30)
    recovering = client._publish_connection.recovering
    recovering._keep_open = lambda: True  # as with consumers: the thread goes on without a caller
    recovering._backoff._rounds = 10  # the next pause is four minutes or more
    assert refusing.wait_for(lambda: refusing.connections >= 2)
    right.set()
    began = time.monotonic()
    while True:
        try:
            client.connect(time.monotonic() + 30)
            break
        except MessageHubAuthorizationError:
            assert time.monotonic() - began < 60
            threading.Event().wait(0.1)


def test_callers_have_a_refused_login_tried_again_at_most_once_a_second(broker: Any, transport: Any) -> None:
    refusing, _ = refusing_at_first(broker)
    client = transport(refusing.url)
    began = time.monotonic()
    while time.monotonic() - began < (3 if refusing.connections >= 2 else 60):
        with pytest.raises(MessageHubAuthorizationError):
            client.connect(time.monotonic() + 30)
        threading.Event().wait(0.01)
    assert 2 <= refusing.connections <= 2 + (time.monotonic() - began) / 0.5


# --- a frozen broker -------------------------------------------------------------------------------


def test_a_broker_whose_heartbeat_is_overdue_is_silent(broker: Any, transport: Any) -> None:
    client = transport(broker().url, heartbeat=1)
    client.connect(time.monotonic() + 30)
    assert not client.status()[0].silent
    deadline = time.monotonic() + 60
    while not client.status()[0].silent:
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


# --- closing under an alarm ------------------------------------------------------------------------


def test_closing_does_not_wait_for_a_broker_that_reads_nothing_under_its_alarm(broker: Any, transport: Any) -> None:
    blocked = frame.Method(1, spec.Channel.OpenOk()).marshal() + frame.Method(0, spec.Connection.Blocked("x")).marshal()
    alarmed = broker(Channel_Open=sends(blocked), Connection_Close=says_nothing)
    client = transport(alarmed.url)
    client.connect(time.monotonic() + 30)
    deadline = time.monotonic() + 30
    while state_of(client) is not ConnectionState.BLOCKED:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    began = time.monotonic()
    client.close(began + 60)
    assert time.monotonic() - began < 30
    assert state_of(client) is ConnectionState.CLOSED


def test_closing_after_an_alarm_waits_for_the_broker_again(broker: Any, transport: Any) -> None:
    over = b"".join(
        frame.Method(channel, method).marshal()
        for channel, method in (
            (1, spec.Channel.OpenOk()), (0, spec.Connection.Blocked("x")), (0, spec.Connection.Unblocked()),
        )
    )  # fmt: skip
    sound = broker(Channel_Open=sends(over))
    client = transport(sound.url)
    client.connect(time.monotonic() + 30)
    client.close(time.monotonic() + 30)
    assert sound.wait_for(lambda: "Connection.Close" in sound.answered)
