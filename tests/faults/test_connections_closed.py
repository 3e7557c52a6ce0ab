"""Connections are closed while messages are in flight, and while a handler runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from faults.judging import CIRCUIT, CONNECTION, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.proxy import Proxy
from faults.timing import eventually

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


@pytest.mark.rabbitmq
@pytest.mark.row(9)
def test_all_connections_closed_again_and_again_lose_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    close_connections(3, node, oracle, workers, names)


@pytest.mark.faults
@pytest.mark.row(9)
def test_all_connections_closed_for_a_minute_lose_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    close_connections(25, node, oracle, workers, names)


def close_connections(times: int, node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    publisher = workers.publisher("--event", names.event, "--to", names.service, "--threads", "4", "--rate", "40")
    for _ in range(times):
        ok = oracle.counts().ok
        oracle.wait(lambda counts, ok=ok: counts.ok >= ok + 100, 10)
        threading.Event().wait(1.5)
        node.ctl("close_all_connections", "a fault test")
    ok = oracle.counts().ok
    oracle.wait(lambda counts: counts.ok >= ok + 100, 10)
    assert publisher.stop() == 0
    counts = judge(oracle, workers).counts
    only(oracle, CONNECTION, CIRCUIT, DELIVERY)
    # No call failed: the connection was restored before their deadlines, and unconfirmed messages were published again.
    assert (counts.rejected, counts.unknown) == (0, 0)


@pytest.mark.rabbitmq
@pytest.mark.row(9)
def test_connections_reset_by_the_network_lose_nothing(
    oracle: Oracle, workers: Workers, proxy: Proxy, names: Names
) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox", url=proxy.url)
    publisher = workers.publisher(
        *("--event", names.event, "--to", names.service, "--threads", "4", "--rate", "40"), url=proxy.url
    )
    for _ in range(10):
        ok = oracle.counts().ok
        oracle.wait(lambda counts, ok=ok: counts.ok >= ok + 50, 10)
        assert proxy.cut()
    assert publisher.stop() == 0
    counts = judge(oracle, workers).counts
    assert (counts.rejected, counts.unknown) == (0, 0)


@pytest.mark.rabbitmq
@pytest.mark.row(19)
def test_the_settling_of_a_message_whose_connection_died_settles_no_other(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    running, go_on = threading.Event(), threading.Event()

    def handler(event: dict[str, Any], envelope: Any) -> None:
        running.set()
        assert go_on.wait(20)
        oracle.ledger.handled(envelope.id)

    client = new_client(names.service)
    sender = new_client(f"{names.service}-sender")
    subscription = client.subscribe([names.event], handler, prefetch=5)
    sent = [str(sender.publish_event(names.event, {})) for _ in range(20)]
    for one in sent:
        oracle.ledger.write("invoke", one)
        oracle.ledger.write("ok", one, "0", "")
    assert running.wait(30)

    node.ctl("close_all_connections", "a fault test")
    eventually(lambda: subscription.active, 10)
    go_on.set()
    oracle.wait(lambda counts: counts.handled == 20, 10)
    # The message that was being handled is redelivered first, and all others follow in order.
    assert oracle.handled() == [sent[0], *sent]
    assert judge(oracle).counts.duplicates == 1
    eventually(lambda: unsettled(node, names.event_queue) == (0, 0), 5)


def unsettled(node: RabbitMQNode, queue: str) -> tuple[int, int]:
    """The numbers of ready and of unacknowledged messages in a queue."""
    for line in node.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged").splitlines():
        name, *counts = line.split("\t")
        if name == queue:
            return int(counts[0]), int(counts[1])
    raise AssertionError(f"there is no queue {queue}")
