"""No resource leaks, and memory does not grow with the number of messages in the broker."""

from __future__ import annotations

import functools
import gc
import threading
from pathlib import Path

import pytest
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.proxy import Proxy
from faults.raw import raw_channel
from faults.timing import eventually
from faults.usage import memory_mib, usage

from message_hub_sync import MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


@pytest.mark.rabbitmq
@pytest.mark.row(27)
def test_fifty_clients_made_and_closed_leave_nothing(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    make_and_close(50, node, oracle, new_client, names)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.row(27)
def test_a_thousand_clients_made_and_closed_leave_nothing(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    make_and_close(1_000, node, oracle, new_client, names)


def make_and_close(times: int, node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names) -> None:
    handled = new_client(names.service)
    handled.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    def one() -> None:
        with MessageHubClient(f"{names.service}-one", node.url) as client:
            client.subscribe_messages(lambda message: None)
            assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None

    for _ in range(times // 10):
        one()
    before, memory = usage(), memory_mib()
    for _ in range(times):
        one()
    eventually(lambda: usage() <= before, 5)
    assert usage() == before
    gc.collect()
    assert memory_mib() - memory < 5
    judge(oracle)


@pytest.mark.rabbitmq
@pytest.mark.row(27)
def test_thirty_reconnects_leave_the_same_threads_and_descriptors(
    oracle: Oracle, new_client: NewClient, names: Names, proxy: Proxy
) -> None:
    reconnect(5, 3, oracle, new_client, names, proxy)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.row(27)
def test_a_thousand_reconnects_leave_the_same_threads_and_descriptors(
    oracle: Oracle, new_client: NewClient, names: Names, proxy: Proxy
) -> None:
    reconnect(10, 50, oracle, new_client, names, proxy)


def reconnect(clients: int, rounds: int, oracle: Oracle, new_client: NewClient, names: Names, proxy: Proxy) -> None:
    """Close the two connections of every client in each round."""
    all_clients = [new_client(names.service, proxy.url) for _ in range(clients)]
    subscriptions = [
        client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
        for client in all_clients
    ]

    def publish() -> None:
        for client in all_clients:
            assert oracle.ledger.call(lambda id, c=client: c.publish_event(names.event, {}, message_id=id)) is None

    def one_round() -> None:
        # A connection that was open for less than 1 s counts as one more failure in a row: the next attempt waits.
        threading.Event().wait(1.1)
        assert proxy.cut() == 2 * clients
        publish()
        eventually(lambda: all(subscription.active for subscription in subscriptions), 10)
        # The proxy runs in this process: wait for the end of its threads for the old connections.
        eventually(lambda: proxy.pumps == 2 * proxy.open == 4 * clients, 5)

    publish()
    for _ in range(2):
        one_round()
    before, memory = usage(), memory_mib()
    for _ in range(rounds):
        one_round()
    eventually(lambda: usage() <= before, 5)
    assert usage() == before
    assert memory_mib() - memory < 10
    assert proxy.accepted >= 2 * clients * rounds
    judge(oracle)


@pytest.mark.rabbitmq
@pytest.mark.row(28)
def test_a_process_out_of_descriptors_is_told_so_and_recovers(oracle: Oracle, workers: Workers, names: Names) -> None:
    workers.consumer("--service", names.service, "--event", names.event)
    program = workers.script("descriptors", names.service, names.event)
    try:
        oracle.told("recovered", timeout=25)
    except AssertionError:
        pytest.fail(program.log[-3000:])
    judge(oracle, workers)
    assert {call.outcome for call in oracle.calls()} == {"ok", "rejected"}
    assert program.stop() == 0, program.log


@pytest.mark.faults
@pytest.mark.row(29)
def test_a_slow_consumer_of_a_backlog_of_big_messages_holds_no_more_than_its_prefetch(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    slow_consumer(100, node, oracle, workers, new_client, names)


@pytest.mark.faults
@pytest.mark.row(29)
def test_a_slow_consumer_of_a_backlog_of_a_gigabyte_holds_no_more_than_its_prefetch(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    slow_consumer(1_000, node, oracle, workers, new_client, names)


def slow_consumer(
    backlog_mib: int, node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    prefetch, seconds = 8, 8
    with raw_channel(node.url) as channel:
        channel.queue_declare(names.inbox, durable=True)
    client = new_client(f"{names.service}-sender", delivery_timeout=30)
    send = functools.partial(client.send_message, names.service, {"text": "x" * (1024 * 1024 - 100)}, ttl=None)
    arguments = ("--service", names.service, "--inbox", "--prefetch", str(prefetch), "--heartbeat", "2")
    consumer = workers.consumer(*arguments, "--seconds", "0.5")
    empty = memory_mib(consumer.process.pid)
    for _ in range(backlog_mib):
        assert oracle.ledger.call(lambda id: send(message_id=id)) is None
    most = 0.0

    def slow_for_long_enough() -> bool:
        nonlocal most
        most = max(most, memory_mib(consumer.process.pid))
        return len(oracle.handled()) >= 2 * seconds

    eventually(slow_for_long_enough, seconds * 3)
    # Each prefetched body is kept as bytes. The one that is decoded also exists as text and as a dict.
    assert most - empty <= prefetch + 3 + 40, f"{most - empty:.0f} MiB"
    assert "recovering" not in consumer.log, "its heartbeats stopped"
    consumer.kill()
    workers.consumer("--service", names.service, "--inbox", "--prefetch", str(prefetch))  # a fast consumer for the rest
    counts = judge(oracle, workers, drain=120, slowest=30).counts
    assert counts.handled == backlog_mib
    assert counts.duplicates <= prefetch
    with raw_channel(node.url) as channel:
        channel.queue_delete(names.inbox)
