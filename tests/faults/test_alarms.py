"""The broker accepts no messages, because of a memory alarm or a disk alarm."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from faults.judging import CIRCUIT, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.test_connections_closed import unsettled
from faults.timing import TOLERANCE, eventually, in_thread, within

from message_hub_sync import (
    CircuitBreakerConfig,
    MessageHubCircuitBreakerError,
    MessageHubClient,
    MessageHubDeliveryError,
)
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

MEMORY = (("set_vm_memory_high_watermark", "0.000001"), ("set_vm_memory_high_watermark", "0.4"))
DISK = (("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "50MB"))


@pytest.fixture
def calm(node: RabbitMQNode) -> Iterator[None]:
    """Clear the alarms after the test, also if it fails."""
    yield
    node.ctl(*MEMORY[1])
    node.ctl(*DISK[1])


def publish(oracle: Oracle, client: MessageHubClient, names: Names) -> Any:
    return oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))


def handler_of(oracle: Oracle) -> Any:
    def handler(event: dict[str, Any], envelope: Any) -> None:
        oracle.ledger.handled(envelope.id)

    return handler


@pytest.mark.rabbitmq
@pytest.mark.row(7)
def test_a_call_during_a_short_memory_alarm_succeeds_late(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, calm: None
) -> None:
    client = new_client(names.service)
    client.subscribe([names.event], handler_of(oracle))
    assert publish(oracle, client, names) is None
    node.ctl(*MEMORY[0])
    started = time.monotonic()
    with in_thread(lambda: publish(oracle, client, names)), in_thread(lambda: publish(oracle, client, names)):
        threading.Event().wait(2)
        node.ctl(*MEMORY[1])
    assert time.monotonic() - started >= 2
    calls = oracle.calls()
    assert [call.outcome for call in calls] == ["ok"] * 3
    assert max(call.seconds for call in calls) >= 2, "the alarm was not felt"
    assert judge(oracle).counts.duplicates == 0


@pytest.mark.row(8)
@pytest.mark.parametrize(
    "alarm",
    [
        pytest.param(MEMORY, marks=pytest.mark.rabbitmq, id="memory"),
        pytest.param(DISK, marks=pytest.mark.faults, id="disk"),
    ],
)
def test_while_an_alarm_lasts_callers_learn_in_time_and_consumers_still_settle(
    alarm: tuple[tuple[str, ...], tuple[str, ...]],
    node: RabbitMQNode,
    oracle: Oracle,
    new_client: NewClient,
    names: Names,
    calm: None,
) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=100)
    client = new_client(names.service, delivery_timeout=2, circuit_breaker_config=breaker)
    go_on = threading.Event()
    handle = handler_of(oracle)

    def handler(event: dict[str, Any], envelope: Any) -> None:
        assert go_on.wait(20)
        handle(event, envelope)

    client.subscribe([names.event], handler)
    for _ in range(20):
        assert publish(oracle, client, names) is None
    node.ctl(*alarm[0])

    started = time.monotonic()
    error = publish(oracle, client, names)  # no confirm comes: the client learns of the alarm
    assert isinstance(error, MessageHubDeliveryError)
    health = client.get_health_status()
    assert health["status"] == "blocked"
    assert health["connected"]
    error = publish(oracle, client, names)
    assert isinstance(error, MessageHubDeliveryError)
    # The client knows by now that the broker accepts nothing: this message was not written at all.
    assert error.outcome == "rejected"
    assert 4 <= time.monotonic() - started <= 4 + 2 * TOLERANCE

    go_on.set()
    oracle.wait(lambda counts: counts.handled >= 20, 5)
    eventually(lambda: unsettled(node, names.event_queue) == (0, 0), 10)
    another = new_client(f"{names.service}-other", delivery_timeout=1)
    another.connect()
    publish(oracle, another, names)
    with within(2):
        another.close(2)
    node.ctl(*alarm[1])
    eventually(lambda: client.get_health_status()["status"] == "ok", 5)
    assert publish(oracle, client, names) is None
    judge(oracle, slowest=2)


@pytest.mark.rabbitmq
@pytest.mark.row(8)
def test_a_circuit_that_an_alarm_opened_tries_again_when_it_ends(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, calm: None
) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=2, reset_timeout=600)
    client = new_client(names.service, delivery_timeout=1, circuit_breaker_config=breaker)
    client.subscribe([names.event], handler_of(oracle))
    assert publish(oracle, client, names) is None
    node.ctl(*MEMORY[0])
    for _ in range(2):
        assert isinstance(publish(oracle, client, names), MessageHubDeliveryError)
    assert isinstance(publish(oracle, client, names), MessageHubCircuitBreakerError)
    node.ctl(*MEMORY[1])
    eventually(lambda: client.get_health_status()["status"] != "blocked", 5)
    eventually(lambda: client.get_health_status()["circuit_breaker_state"] == "half-open", 5)
    assert publish(oracle, client, names) is None
    judge(oracle, slowest=1)
    only(oracle, DELIVERY, CIRCUIT)


@pytest.mark.rabbitmq
@pytest.mark.row(8)
def test_a_message_whose_retry_an_alarm_holds_up_outlives_its_process(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names, calm: None
) -> None:
    consumer = ("--service", names.service, "--event", names.event)
    assert workers.consumer(*consumer).stop() == 0
    client = new_client(f"{names.service}-sender")
    for _ in range(20):
        assert publish(oracle, client, names) is None
    node.ctl(*MEMORY[0])
    failing = workers.consumer(*consumer, "--fail-first", "20")
    eventually(lambda: failing.log.count("could not be moved") >= 10, 15)
    failing.kill()
    node.ctl(*MEMORY[1])
    workers.consumer(*consumer)
    assert judge(oracle, workers).counts.handled == 20


@pytest.mark.faults
@pytest.mark.row(8)
def test_an_alarm_of_a_minute_loses_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names, calm: None
) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    publisher = workers.publisher("--event", names.event, "--to", names.service, "--threads", "8", "--rate", "10")
    oracle.wait(lambda counts: counts.handled >= 100, 10)
    node.ctl(*MEMORY[0])
    threading.Event().wait(60)
    node.ctl(*MEMORY[1])
    # The connection was open all the time: only reset_timeout decides when an open circuit permits the next trial.
    ok = oracle.counts().ok
    oracle.wait(lambda counts: counts.ok >= ok + 100, 70)
    assert publisher.stop() == 0
    judge(oracle, workers)
    only(oracle, DELIVERY, CIRCUIT)
