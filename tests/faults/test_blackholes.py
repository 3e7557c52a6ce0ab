"""The network drops all packets without closing connections."""

from __future__ import annotations

import socket
import threading

import pytest
from faults.judging import CIRCUIT, CONNECTION, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.namespace import Namespace, why_no_namespace
from faults.oracle import Oracle
from faults.processes import Workers
from faults.proxy import Proxy
from faults.timing import TOLERANCE, in_thread, within

from message_hub_sync import MessageHubConnectionError, MessageHubDeliveryError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


def needs_namespace() -> None:
    """Skip the test, with the reason, if a network namespace is not possible. The tests with a proxy run anyway."""
    reason = why_no_namespace()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.faults
@pytest.mark.row(4)
def test_a_network_that_drops_everything_for_half_a_minute_loses_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    needs_namespace()
    # The consumer is outside the namespace: it shows which of the calls with an unknown outcome arrived.
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    with Namespace(node.port) as namespace:
        publisher = workers.publisher(
            *("--event", names.event, "--to", names.service, "--threads", "8", "--rate", "20"),
            url=namespace.url,
            within=namespace.command,
        )
        workers.consumer(
            "--service", names.service, "--event", names.event, url=namespace.url, within=namespace.command
        )
        oracle.wait(lambda counts: counts.handled >= 200, 20)
        before = len(oracle.calls())
        namespace.blackhole()
        threading.Event().wait(30)
        during = oracle.calls(before)
        namespace.heal()
        ok = oracle.counts().ok
        oracle.wait(lambda counts: counts.ok >= ok + 200, 20)
        assert publisher.stop() == 0
        assert {"unknown", "rejected"} <= {call.outcome for call in during}
        assert "ok" not in {call.outcome for call in during[10:]}, "the blackhole lets something through"
        judge(oracle, workers)
        only(oracle, CONNECTION, CIRCUIT, DELIVERY)


@pytest.mark.rabbitmq
@pytest.mark.row(4)
def test_a_silent_network_makes_calls_unknown_in_time_and_the_late_answers_settle_nothing_else(
    oracle: Oracle, new_client: NewClient, names: Names, proxy: Proxy
) -> None:
    client = new_client(names.service, proxy.url, delivery_timeout=2)
    handled_by = new_client(names.service)
    handled_by.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    def publish() -> object:
        return oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))

    assert publish() is None
    proxy.swallow_answers()
    with in_thread(publish), in_thread(publish):
        pass
    assert [call.outcome for call in oracle.calls()][1:] == ["unknown"] * 2
    assert oracle.wait(lambda counts: counts.handled == 3, 5).unknown == 2  # unknown, but the broker has them
    proxy.heal()
    assert publish() is None
    proxy.blackhole()
    with in_thread(publish), in_thread(publish):
        pass
    assert [call.outcome for call in oracle.calls()][4:] == ["unknown"] * 2
    proxy.heal()
    for _ in range(5):
        assert publish() is None
        error = oracle.ledger.call(lambda id: client.send_message("nobody-at-all", {}, message_id=id))
        assert isinstance(error, MessageHubDeliveryError)
        assert error.outcome == "rejected"
    judge(oracle, slowest=2)


@pytest.mark.faults
@pytest.mark.row(4)
def test_a_slow_network_is_only_slow(oracle: Oracle, new_client: NewClient, names: Names, proxy: Proxy) -> None:
    client = new_client(names.service, proxy.url)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    proxy.delay(0.3)
    for _ in range(5):
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    assert min(call.seconds for call in oracle.calls()) >= 0.5
    judge(oracle)


@pytest.mark.rabbitmq
@pytest.mark.row(5)
def test_connecting_to_a_stopped_broker_ends_in_time(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service, connect_timeout=2, delivery_timeout=2)
    node.suspend()
    with within(2), pytest.raises(MessageHubConnectionError):
        client.connect()
    with within(2), pytest.raises(MessageHubConnectionError):
        client.subscribe([names.event], lambda event: None)
    with within(2):
        error = oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
    assert isinstance(error, MessageHubConnectionError)
    node.resume()
    with within(2):
        client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle, slowest=2)


@pytest.mark.rabbitmq
@pytest.mark.row(5)
def test_several_silent_hosts_share_one_timeout(new_client: NewClient, names: Names) -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]  # accept connections, but send nothing
    try:
        urls = [f"amqp://guest:guest@127.0.0.1:{one.getsockname()[1]}" for one in listeners]
        client = new_client(names.service, urls, connect_timeout=3)
        with within(3), pytest.raises(MessageHubConnectionError):
            client.connect()
        with within(2):
            client.close(2)
    finally:
        for one in listeners:
            one.close()


@pytest.mark.rabbitmq
@pytest.mark.row(5)
def test_a_network_that_drops_everything_before_connecting_ends_in_time(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    needs_namespace()
    workers.consumer("--service", names.service, "--event", names.event)
    with Namespace(node.port) as namespace:
        namespace.blackhole()
        publisher = workers.publisher(
            *("--event", names.event, "--threads", "2", "--connect-timeout", "2", "--delivery-timeout", "2"),
            url=namespace.url,
            within=namespace.command,
        )
        oracle.wait(lambda counts: counts.rejected >= 2, 2 + 2 * TOLERANCE)
        assert {call.error for call in oracle.calls()} == {CONNECTION}
        namespace.heal()
        oracle.wait(lambda counts: counts.ok >= 20, 15)
        assert publisher.stop() == 0
        judge(oracle, workers, slowest=2)
