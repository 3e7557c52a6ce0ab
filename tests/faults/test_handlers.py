"""Handlers that take long, fail, hang, or crash their process."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from collector import Collector
from faults.dead_letters import dead_letters
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.raw import kill
from faults.test_connections_closed import unsettled
from faults.timing import TOLERANCE, eventually, within

from message_hub_sync import MessageHubRetryError, RetryPolicy
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


def publish(oracle: Oracle, client: Any, names: Names, payload: dict[str, Any] | None = None) -> None:
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, payload or {}, message_id=id)) is None


@pytest.mark.rabbitmq
@pytest.mark.row(18)
def test_a_handler_that_outlives_three_heartbeats_keeps_its_connection(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service, heartbeat=2)

    def handler(event: dict[str, Any], envelope: Any) -> None:
        time.sleep(7)  # longer than the two missed heartbeats after which both sides close the connection
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)
    publish(oracle, client, names)
    counts = judge(oracle).counts
    assert (counts.handled, counts.duplicates) == (1, 0)
    assert client.get_health_status()["last_error"] is None
    eventually(lambda: unsettled(node, names.event_queue) == (0, 0), 5)


@pytest.mark.rabbitmq
@pytest.mark.row(18)
def test_a_handler_that_outlives_consumer_timeout_finishes_and_nothing_of_its_channel_counts_as_a_crash(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    node.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    try:
        client = new_client(names.service)
        lost = Collector()
        go_on = threading.Event()
        runs: list[tuple[int, Any]] = []

        def handler(event: dict[str, Any], envelope: Any) -> None:
            runs.append((event["number"], envelope.headers.get("x-crashes")))
            if not go_on.is_set():
                eventually(lambda: not subscription.active, 15)
                lost("its channel was closed")
                go_on.set()
                eventually(lambda: subscription.active, 10)
            oracle.ledger.handled(envelope.id)

        # attempts=1: a redelivery that counted as a crash would be dead-lettered at once.
        subscription = client.subscribe([names.event], handler, retry=RetryPolicy(attempts=1))
        for number in range(5):
            publish(oracle, client, names, {"number": number})
        lost.wait(1, 20)
        counts = judge(oracle).counts
        assert (counts.handled, counts.duplicates) == (5, 1)
        # The first one is redelivered, because it was not acknowledged in time. All are handled in order.
        assert runs == [(number, None) for number in (0, 0, 1, 2, 3, 4)]
        assert client.get_health_status()["connected"]
        assert client.get_health_status()["last_error"] is None, "the connection outlives one channel"
        eventually(lambda: unsettled(node, names.event_queue) == (0, 0), 5)
    finally:
        node.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
        node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 60000).")


@pytest.mark.rabbitmq
@pytest.mark.row(30)
def test_a_handler_that_always_raises_runs_as_often_as_the_policy_says_and_no_message_waits_for_another(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    runs = Collector()

    def handler(event: dict[str, Any], envelope: Any) -> None:
        runs((event["bad"], str(envelope.id), time.monotonic()))
        if event["bad"]:
            raise ValueError("always")
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler, retry=RetryPolicy(attempts=3, delays=(1,)))
    for number in range(30):
        bad = number % 3 == 0
        assert (
            oracle.ledger.call(lambda id, bad=bad: client.publish_event(names.event, {"bad": bad}, message_id=id))
            is None
        )
    oracle.wait(lambda counts: counts.handled == 20, 0.9)  # before any retry was due
    for properties, _ in dead_letters(node, names.event_queue, 10, timeout=15):
        oracle.ledger.dead(properties.message_id)
        headers = properties.headers
        assert headers["x-attempts"] == 3
        assert headers["x-error-type"] == "ValueError"
        assert headers["x-error-message"].endswith("; its text is in the log")
        assert headers["x-error-traceback"].endswith("ValueError")
        assert headers["x-service"] == names.service
        assert headers["x-original-exchange"] == "events"
        assert headers["x-original-routing-key"] == names.event
    assert len(runs.stays(20 + 30)) == 50
    times: dict[str, list[float]] = {}
    for bad, message_id, moment in runs.items:
        if bad:
            times.setdefault(message_id, []).append(moment)
    for moments in times.values():
        first, second, third = moments
        assert 0.9 <= second - first <= 1 + 2 * TOLERANCE
        assert 0.9 <= third - second <= 1 + 2 * TOLERANCE
    judge(oracle)


@pytest.mark.rabbitmq
@pytest.mark.row(30)
def test_a_hanging_handler_holds_up_neither_close_nor_the_message(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service)
    hangs, never = threading.Event(), threading.Event()

    def handler(event: dict[str, Any]) -> None:
        hangs.set()
        never.wait(60)

    client.subscribe([names.event], handler)
    sender = new_client(f"{names.service}-sender")
    for _ in range(3):
        publish(oracle, sender, names)
    assert hangs.wait(30)
    with within(2):
        client.close(2)
    another = new_client(names.service)
    another.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    judge(oracle)
    never.set()


@pytest.mark.rabbitmq
@pytest.mark.row(30)
def test_a_move_under_way_when_the_broker_is_killed_is_not_lost(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service, delivery_timeout=30)
    failed: set[str] = set()

    def handler(event: dict[str, Any], envelope: Any) -> None:
        if str(envelope.id) not in failed:
            failed.add(str(envelope.id))
            raise MessageHubRetryError("the first time", delay=1)
        oracle.ledger.handled(envelope.id)

    client.subscribe([names.event], handler)
    # RabbitMQ 3.10 loses a quorum queue that was created less than half a second before a kill.
    publish(oracle, client, names)
    assert oracle.drained(10)
    for _ in range(300):
        publish(oracle, client, names)
    assert len(failed) > 1
    kill(node)
    node.start()
    judge(oracle, drain=40, slowest=30)
