"""Queues as they are declared, adopted, owned, deleted; hubs, and the life of a client on one."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any
from uuid import uuid4

import pytest
from locking import held

from message_hub_sync.config import BrokerAddress, ClientConfig, MemoryAddress
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubConnectionError
from message_hub_sync.transport.base import ConnectionState, Outgoing, PublishResult, QueueStats
from message_hub_sync.transport.memory import MemoryTransport, VirtualClock, drop_hub, open_hub
from message_hub_sync.transport.topology import (
    EVENT_EXCHANGE,
    Binding,
    ExchangeSpec,
    QueueSpec,
    Topology,
    event_subscription,
    reply_topology,
    retry_queue,
)

EXCLUSIVE = {"durable": False, "exclusive": True, "auto_delete": True}


def test_a_queue_with_other_arguments_is_adopted_with_one_warning(
    client: Any, caplog: pytest.LogCaptureFixture, bodies: Any
) -> None:
    client.declare("inbox", arguments={"x-max-priority": 9})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            client.declare("inbox")
        consumer = client.consume("inbox")
    (record,) = caplog.records
    assert "inequivalent arg 'x-max-priority' for queue 'inbox'" in record.getMessage()
    client.publish("inbox", b"1")
    assert bodies(consumer) == [b"1"]


def test_an_exchange_is_declared_without_a_queue(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert client.publish("a.b", exchange="events").code == 404
    client.transport.declare_exchange(EVENT_EXCHANGE, 0)
    assert client.publish("a.b", exchange="events").result is PublishResult.CONFIRMED
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            client.transport.declare_exchange(ExchangeSpec("events", durable=False), 0)
    assert len(caplog.records) == 1


def test_declaring_the_same_again_says_nothing(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            client.declare("inbox", arguments={"x-queue-type": "classic"})
            client.declare("inbox")
            client.transport.declare_queue(retry_queue("inbox", 1000), 0)
    assert caplog.records == []


def test_an_exchange_with_other_durability_is_adopted_with_one_warning(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.transport.declare(Topology(QueueSpec("q"), EVENT_EXCHANGE), 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            client.transport.declare(Topology(QueueSpec("q"), ExchangeSpec("events", durable=False)), 0)
    assert [r.getMessage().split(" exists")[0] for r in caplog.records] == ["the exchange 'events'"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-message-ttl": -1},
        {"x-message-ttl": "1000"},
        {"x-max-priority": 256},
        {"x-max-priority": True},
        {"x-max-length": -1},
        {"x-overflow": "explode"},
        {"x-queue-type": "stream"},
        {"x-dead-letter-routing-key": "alone"},
        {"x-queue-type": "quorum", "x-max-priority": 9},
        {"x-expires": 0},
        {"x-max-length-bytes": 1000},
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(client: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(MessageHubConfigurationError, match="queue 'inbox'"):
        client.declare("inbox", arguments=arguments)
    assert client.depth("inbox") is None


def test_a_binding_to_a_missing_exchange_is_refused(client: Any) -> None:
    with pytest.raises(MessageHubConfigurationError, match="404 NOT_FOUND"):
        client.transport.declare(Topology(QueueSpec("q"), None, (Binding("nope", "#"),)), 0)


def test_an_exclusive_queue_is_locked_for_others(connect: Any) -> None:
    owner, other = connect(), connect()
    owner.declare("mine", **EXCLUSIVE)
    owner.declare("mine", **EXCLUSIVE)
    for attempt in (
        lambda: other.declare("mine", **EXCLUSIVE),
        lambda: other.declare("mine"),
        lambda: other.consume("mine"),
        lambda: other.depth("mine"),
        lambda: other.delete("mine"),
        lambda: owner.declare("mine"),
    ):
        with pytest.raises(MessageHubConfigurationError, match="405 RESOURCE_LOCKED"):
            attempt()
    assert other.publish("mine", mandatory=True).result is PublishResult.CONFIRMED
    assert owner.depth("mine") == 1


def test_an_exclusive_queue_vanishes_with_its_client(connect: Any) -> None:
    owner, other = connect(), connect()
    owner.declare("mine", durable=False, exclusive=True)
    owner.close()
    assert other.depth("mine") is None
    assert other.publish("mine", mandatory=True).result is PublishResult.RETURNED


def test_an_auto_delete_queue_vanishes_with_its_last_consumer(connect: Any) -> None:
    first, second = connect(), connect()
    topology = Topology(QueueSpec("shared", auto_delete=True), EVENT_EXCHANGE, (Binding("events", "#"),))
    first.transport.declare(topology, 0)
    one, other = first.consume(topology), second.consume(topology)
    one.cancel(0)
    assert first.depth("shared") == 0
    other.close(0)
    assert first.depth("shared") is None
    assert first.publish("a.b", exchange="events", mandatory=True).result is PublishResult.RETURNED


def test_a_random_suffix_is_new_at_each_consume(client: Any, bodies: Any) -> None:
    topology = event_subscription("svc", "a.b", durable=False)
    first, second = client.consume(topology), client.consume(topology)
    assert first.queue != second.queue
    assert all(consumer.queue.startswith("svc.a.b.") for consumer in (first, second))
    client.publish("a.b", b"1", exchange="events")
    assert bodies(first) == bodies(second) == [b"1"]


def test_a_reply_queue_is_reached_by_its_present_name(connect: Any, bodies: Any) -> None:
    consumer = connect().consume(reply_topology("svc", "42"))
    assert connect().publish(consumer.queue, b"reply", mandatory=True).result is PublishResult.CONFIRMED
    assert bodies(consumer) == [b"reply"]


def test_a_queue_deleted_under_its_consumer_is_declared_and_consumed_again(
    connect: Any, taken: Any, bodies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client, other = connect(), connect()
    topology = Topology(QueueSpec("inbox"), EVENT_EXCHANGE, (Binding("events", "a.*"),))
    consumer = client.consume(topology, prefetch=1)
    client.publish("inbox", b"before")
    (stale,) = taken(consumer)
    with caplog.at_level(logging.WARNING):
        other.delete("inbox")
    assert "declared and consumed again" in caplog.text
    assert consumer.active
    client.publish("a.b", b"after", exchange="events")
    client.publish("inbox", b"more")
    (delivery,) = taken(consumer)
    assert delivery.body == b"after"
    consumer.ack(stale)
    consumer.requeue(stale)
    assert taken(consumer) == []
    consumer.ack(delivery)
    assert bodies(consumer) == [b"more"]


def test_a_cancelled_consumer_does_not_bring_its_queue_back(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox")
    client.publish("inbox")
    (delivery,) = taken(consumer)
    consumer.cancel(0)
    client.delete("inbox")
    consumer.requeue(delivery)
    consumer.close(0)
    assert client.depth("inbox") is None


def test_a_consumer_cancelled_while_its_queue_is_deleted_stays_so(client: Any) -> None:
    consumer = client.consume("inbox")
    (subscriber,) = client.transport._hub._queues["inbox"].subscribers
    restart = subscriber.lost
    subscriber.lost = lambda: (consumer.cancel(0), restart())
    client.delete("inbox")
    assert client.depth("inbox") is None


def test_a_consumer_that_cannot_be_restored_says_so(connect: Any, caplog: pytest.LogCaptureFixture) -> None:
    client, other = connect(), connect()
    consumer = client.consume("inbox")
    # The other client is quicker: it takes the name for itself while the consumer is being told.
    hub = client.transport._hub
    restart = consumer._queue_deleted
    hub._queues["inbox"].subscribers[0].lost = lambda: (other.declare("inbox", **EXCLUSIVE), restart())
    with caplog.at_level(logging.WARNING):
        client.delete("inbox")
    assert "cannot be consumed again" in caplog.text
    assert not consumer.active


def test_deleting_unbinds_and_a_missing_queue_is_fine(client: Any) -> None:
    client.transport.declare(event_subscription("svc", "a.b"), 0)
    client.delete("svc.a.b")
    client.delete("svc.a.b")
    assert client.publish("a.b", exchange="events", mandatory=True).result is PublishResult.RETURNED


def test_stats_count_what_is_ready_and_who_consumes(client: Any) -> None:
    client.consume("inbox", prefetch=1)
    for _ in range(3):
        client.publish("inbox")
    stats = client.transport.queue_stats(["inbox", "missing"], 0)
    assert stats == {"inbox": QueueStats(depth=2, consumers=1), "missing": None}


def test_hubs_of_other_names_share_nothing(connect: Any, hub: str) -> None:
    other_name = uuid4().hex
    client, other = connect(), connect(other_name)
    try:
        client.declare("inbox")
        assert other.publish("inbox", mandatory=True).result is PublishResult.RETURNED
        assert client.publish("inbox", mandatory=True).result is PublishResult.CONFIRMED
    finally:
        other.close()
        drop_hub(other_name)


def test_a_hub_outlives_its_clients(connect: Any, bodies: Any) -> None:
    first = connect()
    first.declare("inbox")
    first.publish("inbox", b"kept")
    first.close()
    assert bodies(connect().consume("inbox")) == [b"kept"]


def test_a_dropped_hub_is_forgotten(connect: Any, hub: str) -> None:
    first = connect()
    consumer = first.consume("inbox")
    drop_hub(hub)
    assert not consumer.active
    assert connect().depth("inbox") is None
    assert first.publish("inbox", mandatory=True).result is PublishResult.RETURNED
    drop_hub(hub)


def test_a_hub_keeps_the_clock_it_was_opened_with(hub: str) -> None:
    clock = VirtualClock()
    assert open_hub(hub, clock) is open_hub(hub) is open_hub(hub, clock)
    with pytest.raises(MessageHubConfigurationError, match="another clock"):
        open_hub(hub, VirtualClock())


def test_closing_a_client_returns_its_messages_and_ends_its_calls(connect: Any, taken: Any) -> None:
    client, other = connect(), connect()
    consumers = [client.consume("inbox"), client.consume("inbox")]
    for n in range(4):
        client.publish("inbox", b"%d" % n)
    client.close()
    client.close()
    assert [len(taken(consumer)) for consumer in consumers] == [2, 2], "none went from one to the other"
    assert not any(consumer.active for consumer in consumers)
    assert [d.body for d in taken(other.consume("inbox"))] == [b"0", b"1", b"2", b"3"]
    for call in (lambda: client.publish("inbox"), lambda: client.consume("inbox"), lambda: client.declare("inbox")):
        with pytest.raises(MessageHubConnectionError, match="is closed"):
            call()


def test_status_names_the_connections_needed_so_far(client: Any, hub: str) -> None:
    transport, called = client.transport, []
    transport.on_connected(lambda: called.append(1))
    assert list(transport.status()) == []
    transport.connect(0)
    transport.connect(0)
    assert called == [1]
    client.consume("inbox")
    states = {found.role: found for found in transport.status()}
    assert {role: found.state for role, found in states.items()} == {
        "publish": ConnectionState.OPEN,
        "consume": ConnectionState.OPEN,
    }
    assert states["publish"].address == f"memory://{hub}"
    client.close()
    assert {found.state for found in transport.status()} == {ConnectionState.CLOSED}


def test_another_kind_of_address_is_refused() -> None:
    with pytest.raises(MessageHubConfigurationError, match="memory://name"):
        MemoryTransport(ClientConfig("svc", (BrokerAddress("localhost", 5672),)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_an_empty_hub_though_the_parents_locks_were_held(client: Any, hub: str) -> None:
    consumer = client.consume("inbox")
    client.publish("inbox", b"1")
    delivery = consumer.deliveries.get_nowait()
    with held(client.transport._hub._lock), held(client.transport._lock), held(consumer._lock):
        child = os.fork()
        if child == 0:  # pragma: no cover - seen by its exit status alone
            try:
                client.transport.after_fork_in_child()
                consumer.ack(delivery)
                consumer.close(0)
                fresh = MemoryTransport(ClientConfig("svc", MemoryAddress(hub)))
                empty = fresh.queue_stats(["inbox"], 0)["inbox"] is None
                fresh.publish(Outgoing("", "inbox", b"", Properties()), 0)
                try:
                    client.transport.connect(0)
                except MessageHubConnectionError:
                    os._exit(0 if empty else 1)
                os._exit(2)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert consumer.active
    client.publish("inbox", b"2")
    assert consumer.deliveries.get_nowait().body == b"2"
