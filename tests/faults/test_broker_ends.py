"""The broker is killed, stopped, or not started yet."""

from __future__ import annotations

import threading

import pytest
from faults.judging import CIRCUIT, CONNECTION, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.raw import kill
from faults.timing import TOLERANCE, in_thread, within

from message_hub_sync import MessageHubConnectionError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


@pytest.mark.rabbitmq
@pytest.mark.row(1)
def test_a_broker_killed_while_publishing_loses_nothing_and_every_caller_learns_in_time(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    workers.publisher("--event", names.event, "--to", names.service, "--threads", "12", "--rate", "15")
    oracle.wait(lambda counts: counts.handled >= 200, 20)

    kill(node)
    dead_from = len(oracle.calls())
    # Twelve threads wait until their deadlines pass. Then the circuits are open, and all calls fail at once.
    oracle.wait(lambda counts: counts.rejected >= 200, 20)
    while_dead = oracle.calls(dead_from)
    node.start()
    ok = oracle.counts().ok
    oracle.wait(lambda counts: counts.ok >= ok + 200, 20)

    assert [call for call in while_dead if call.error == CIRCUIT], "no circuit opened while the broker was down"
    judge(oracle, workers)
    only(oracle, CONNECTION, CIRCUIT, DELIVERY)


@pytest.mark.rabbitmq
@pytest.mark.row(1)
def test_a_call_under_way_when_the_broker_is_killed_is_published_again_with_the_same_id(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--deduplicate")
    publisher = workers.publisher("--event", names.event, "--threads", "8", "--rate", "50", "--delivery-timeout", "40")
    oracle.wait(lambda counts: counts.handled >= 200, 20)

    kill(node)
    node.start()
    ok = oracle.counts().ok
    oracle.wait(lambda counts: counts.ok >= ok + 200, 20)
    assert publisher.stop() == 0

    counts = judge(oracle, workers, slowest=40).counts
    assert (counts.unknown, counts.rejected) == (0, 0)
    # At most eight messages were published or delivered twice. The subscription dropped the duplicates.
    assert counts.duplicates == 0


@pytest.mark.rabbitmq
@pytest.mark.row(2)
def test_a_broker_stopped_and_started_inside_its_vm_is_consumed_again_within_ten_seconds(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    stop_and_start(1, node, oracle, workers, names)


@pytest.mark.faults
@pytest.mark.row(2)
def test_ten_stops_and_starts_in_a_row_lose_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    stop_and_start(10, node, oracle, workers, names)


def stop_and_start(times: int, node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    workers.publisher("--event", names.event, "--to", names.service)
    for _ in range(times):
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 50, 20)
        node.ctl("stop_app")
        node.ctl("start_app")
        # The publisher may have to wait for its open circuit, and the consumer for its next attempt to connect.
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 10, 10 + TOLERANCE)
    judge(oracle, workers)
    only(oracle, CONNECTION, CIRCUIT, DELIVERY)


@pytest.mark.rabbitmq
@pytest.mark.row(3)
def test_a_client_used_before_the_broker_is_up_says_so_in_time_and_works_once_it_is(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    node.kill()
    client = new_client(names.service, connect_timeout=1, delivery_timeout=1)
    with within(1), pytest.raises(MessageHubConnectionError):
        client.connect()
    threads = ours()
    for _ in range(3):
        with within(1):
            error = oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
        assert isinstance(error, MessageHubConnectionError)
        assert ours() == threads, "threads pile up while there is no broker"
    with within(1), pytest.raises(MessageHubConnectionError):
        client.subscribe([names.event], lambda event: None)

    node.start()
    with within(1):
        client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    judge(oracle, slowest=1)


def ours() -> int:
    """The library's threads."""
    return sum(thread.name.startswith("message-hub-fault") for thread in threading.enumerate())


@pytest.mark.rabbitmq
@pytest.mark.row(6)
def test_the_late_answer_of_a_stopped_broker_settles_no_other_call(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    client = new_client(names.service, delivery_timeout=2)
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    client.connect()

    def publish() -> object:
        return oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))

    def send_nowhere() -> object:
        return oracle.ledger.call(lambda id: client.send_message("nobody-at-all", {}, message_id=id))

    assert publish() is None
    node.suspend()
    with in_thread(publish), in_thread(send_nowhere), in_thread(publish):
        pass
    assert [call.outcome for call in oracle.calls()][1:] == ["unknown"] * 3
    node.resume()
    # The late answers to those three calls arrive now. They must not be taken for answers to the following calls.
    outcomes = []
    for send in (send_nowhere, publish) * 10:
        send()
        outcomes.append(oracle.calls()[-1].outcome)
    assert outcomes == ["rejected", "ok"] * 10
    oracle.wait(lambda counts: counts.handled == 13, 5)
    counts = judge(oracle, slowest=2).counts
    assert (counts.unknown, counts.duplicates) == (3, 0)
    assert client.get_health_status()["connected"]


@pytest.mark.faults
@pytest.mark.row(6)
def test_a_broker_stopped_for_longer_than_a_heartbeat_loses_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    workers.consumer("--service", names.service, "--event", names.event, "--inbox")
    workers.publisher("--event", names.event, "--to", names.service, "--threads", "4", "--repeat-unknown")
    for _ in range(2):
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 100, 20)
        node.suspend()
        threading.Event().wait(14)
        node.resume()
    handled = oracle.counts().handled
    oracle.wait(lambda counts: counts.handled >= handled + 100, 20)
    judge(oracle, workers)
    only(oracle, CONNECTION, CIRCUIT, DELIVERY)
