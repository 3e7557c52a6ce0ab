"""Consuming from a real node: nothing is lost, nothing acknowledged that was not, nothing left behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from faults.proxy import Proxy
from locking import held

from message_hub_sync import MessageHubClient, MessageHubRejectError
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.base import ConnectionState
from message_hub_sync.transport.rabbitmq import consume_connection
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_ack
from message_hub_sync.transport.topology import event_subscription, inbox_subscription

pytestmark = pytest.mark.rabbitmq


def unacknowledged(bench: Any) -> tuple[int, int]:
    """Ready and unacknowledged messages of the inbox."""
    for line in bench.node.ctl("list_queues", "name", "messages_ready", "messages_unacknowledged").splitlines():
        name, ready, unacked = line.split("\t")
        if name == f"{bench.service}.messages":
            return int(ready), int(unacked)
    raise AssertionError("there is no inbox")


def consumers(bench: Any) -> int:
    return sum(f"{bench.service}." in line for line in bench.node.ctl("list_consumers").splitlines())


def test_what_is_settled_is_gone_and_what_is_not_goes_back_in_order(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    for number in range(10):
        bench.confirmed(transport, bench.message(str(number)))
    deliveries = [bench.take(consumer) for _ in range(10)]
    for number in (0, 1, 4, 7):
        consumer.ack(deliveries[number])
    consumer.close(bench.within())
    again = bench.consume(transport)
    bodies = [bench.take(again).body for _ in range(6)]
    assert bodies == [b'{"text":"%d"}' % number for number in (2, 3, 5, 6, 8, 9)]


def test_settling_is_told_without_another_call_although_others_are_still_waiting(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    for _ in range(3):
        bench.confirmed(transport)
    first = bench.take(consumer)
    consumer.ack(first)  # two others are in the queue, so that this one waits for company
    assert eventually(lambda: bench.depth() == 2)


def test_a_released_delivery_comes_again(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    first = bench.take(consumer)
    consumer.requeue(first)
    consumer.requeue(first)
    consumer.ack(first)
    second = bench.take(consumer)
    assert (second.redelivered, second.delivery_tag) == (True, first.delivery_tag + 1)
    consumer.ack(second)
    consumer.flush()
    assert consumer.active


def test_after_a_cancel_no_delivery_is_added_and_what_was_taken_can_be_settled(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    delivery = bench.take(consumer)
    consumer.cancel(bench.within())
    assert not consumer.active
    bench.confirmed(transport)
    with pytest.raises(Empty):
        consumer.deliveries.get(timeout=0.2)
    consumer.ack(delivery)
    consumer.close(bench.within())
    consumer.close(bench.within())
    assert bench.depth() == 1


def test_a_killed_broker_that_comes_back_is_consumed_from_again(bench: Any, eventually: Callable[..., bool]) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport, prefetch=5)
    for number in range(20):
        bench.confirmed(transport, bench.message(str(number)))
    stale = [bench.take(consumer) for _ in range(2)]
    bench.kill()
    assert eventually(lambda: not consumer.active, timeout=5)
    bench.node.start()
    started = time.monotonic()
    assert eventually(lambda: bool(consumer.active), timeout=10)
    back_after = time.monotonic() - started
    for delivery in stale:
        consumer.ack(delivery)  # of the old connection: must acknowledge nothing on the new one
        consumer.requeue(delivery)
    bodies = []
    for _ in range(20):
        delivery = bench.take(consumer)
        assert delivery.channel_generation == 2
        bodies.append(delivery.body)
        consumer.ack(delivery)
    assert bodies == [b'{"text":"%d"}' % number for number in range(20)]
    logging.getLogger(__name__).info("consuming again %.2f s after the broker was", back_after)
    assert back_after < 10


def test_what_lay_waiting_when_the_connection_died_is_not_handed_out_twice(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    for number in range(10):
        bench.confirmed(transport, bench.message(str(number)))
    first = bench.take(consumer)
    consumer.deliveries.put(None)  # somebody's call to look up, which must survive
    assert eventually(lambda: consumer.deliveries.qsize() == 10)
    bench.node.ctl("close_all_connections", "test")
    assert eventually(lambda: bool(consumer.active))
    taken = [consumer.deliveries.get(timeout=30) for _ in range(11)]
    assert taken.count(None) == 1
    deliveries = [delivery for delivery in taken if delivery is not None]
    assert [delivery.body for delivery in deliveries] == [b'{"text":"%d"}' % number for number in range(10)]
    assert {delivery.channel_generation for delivery in deliveries} == {2}
    consumer.ack(first)
    assert consumer.deliveries.empty()


def test_a_deleted_queue_is_declared_and_consumed_again(bench: Any, eventually: Callable[..., bool]) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    stale = bench.take(consumer)
    for _ in range(3):
        intake = consumer._consumer_channel
        with bench.raw() as other:
            other.channel().queue_delete(f"{bench.service}.messages")
        assert eventually(lambda intake=intake: consumer.active and consumer._consumer_channel is not intake, timeout=5)
    consumer.ack(stale)
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))
    consumer.close(bench.within())
    assert bench.depth() == 0


def test_a_channel_that_the_broker_closes_is_opened_again(bench: Any, eventually: Callable[..., bool]) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    delivery = bench.take(consumer)
    intake = delivery.origin
    with held(intake.connection.lock):
        intake.pending_acks.mark_handled(99)  # an acknowledgement of what was never delivered: 406
        intake.flush()
    assert eventually(lambda: consumer.active and consumer._consumer_channel is not intake)
    assert transport.status()[-1].state is ConnectionState.OPEN  # the connection stayed
    again = bench.take(consumer)
    assert (again.body, again.redelivered) == (delivery.body, True)


def test_a_consumer_given_up_while_it_is_being_made_takes_no_messages(
    bench: Any, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    begun: list[consume_connection.RabbitMQConsumer] = []
    establish = consume_connection.RabbitMQConsumer.establish
    declare = transport._declarations.topology

    def note(consumer: consume_connection.RabbitMQConsumer, *arguments: Any) -> Any:
        begun.append(consumer)
        return establish(consumer, *arguments)

    def give_up_meanwhile(*arguments: Any) -> Any:
        # As a caller does whose deadline passes: there is no channel yet that could be closed.
        caller = threading.Thread(target=begun[0].close, args=(bench.within(-1),))
        caller.start()
        caller.join()
        return declare(*arguments)

    monkeypatch.setattr(consume_connection.RabbitMQConsumer, "establish", note)
    monkeypatch.setattr(transport._declarations, "topology", give_up_meanwhile)
    consumer = bench.consume(transport)
    assert not consumer.active
    assert eventually(lambda: consumers(bench) == 0 and unacknowledged(bench) == (1, 0), timeout=5)


def test_a_consumer_whose_broker_does_not_answer_is_given_up_in_time_and_leaves_nothing(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    transport.consume(event_subscription(bench.service, "character.created"), prefetch=1, deadline=bench.within())
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    bench.node.suspend()
    try:
        began = time.monotonic()
        with pytest.raises(MessageHubConnectionError):
            transport.consume(inbox_subscription(bench.service), prefetch=10, deadline=bench.within(0.5))
        assert time.monotonic() - began < 30
    finally:
        bench.node.resume()
    # Whatever of it reached the broker is taken back: the message is there for somebody who wants it.
    assert eventually(lambda: consumers(bench) == 1 and unacknowledged(bench) == (1, 0), timeout=20)
    assert bench.take(bench.consume(transport)).body == b'{"text":"x"}'


def test_closing_a_consumer_too_late_still_frees_its_messages(bench: Any, eventually: Callable[..., bool]) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    bench.take(consumer)
    consumer.close(bench.within(-1))
    assert eventually(lambda: unacknowledged(bench) == (1, 0))


def test_what_a_closed_channel_gave_back_comes_on_the_second_intake(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    for number in range(3):
        bench.confirmed(transport, bench.message(str(number)))
    first = bench.take(consumer)
    intake, connection = first.origin, first.origin.connection
    with held(connection.lock):
        connection.write(encode_ack(intake.number, 999, False))  # 406: the channel is closed, the connection lives
    assert eventually(lambda: consumer._consumer_channel is not intake and bool(consumer.active))
    assert consumer._consumer_channel.connection is connection
    again = [bench.take(consumer) for _ in range(3)]
    assert [delivery.body for delivery in again] == [b'{"text":"%d"}' % number for number in range(3)]
    assert [(delivery.redelivered, delivery.channel_generation) for delivery in again] == [(True, 2)] * 3


def test_a_consumer_made_after_the_connection_was_lost_still_is_on_its_first_intake(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    other = transport.consume(
        event_subscription(bench.service, "character.created"), prefetch=1, deadline=bench.within()
    )
    bench.node.ctl("close_all_connections", "test")
    assert eventually(lambda: other._consumer_channel.channel_generation == 2 and bool(other.active))
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    assert bench.take(consumer).channel_generation == 1


def test_a_passing_queue_gets_a_new_name_at_each_connection_and_one_per_connection(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    topology = event_subscription(bench.service, "character.created", durable=False)
    consumer = transport.consume(topology, prefetch=10, deadline=bench.within())
    names = [consumer.queue]
    for _ in range(2):
        bench.node.ctl("close_all_connections", "test")
        assert eventually(lambda: consumer.active and consumer.queue not in names)
        names.append(consumer.queue)
    assert len(set(names)) == 3
    assert all(name.startswith(f"{bench.service}.character.created.") for name in names)
    event = bench.message()
    event.exchange, event.routing_key, event.mandatory = "events", "character.created", False
    bench.confirmed(transport, event)
    consumer.ack(bench.take(consumer))
    held = [name for name in bench.node.ctl("list_queues", "name").split() if name.startswith(bench.service)]
    assert held == [names[-1]]


def test_a_queue_that_cannot_be_restored_does_not_hold_up_the_others(
    bench: Any, eventually: Callable[..., bool], caplog: pytest.LogCaptureFixture
) -> None:
    node = bench.node
    node.ctl("add_user", bench.service, "password")
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    url = node.url.replace("guest:guest", f"{bench.service}:password")
    transport = bench.transport(url)
    allowed = transport.consume(
        event_subscription(bench.service, "character.created", durable=False), prefetch=1, deadline=bench.within()
    )
    forbidden = transport.consume(
        event_subscription(bench.service, "campaign.started", durable=False), prefetch=1, deadline=bench.within()
    )
    node.ctl("set_permissions", bench.service, r".*character\.created.*|events", ".*", ".*")
    with caplog.at_level(logging.ERROR, "message_hub_sync"):
        node.ctl("close_all_connections", "test")
        assert eventually(lambda: bool(allowed.active))
        assert not forbidden.active
        node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
        assert eventually(lambda: bool(forbidden.active), timeout=15)
    complaints = [record.getMessage() for record in caplog.records if "cannot be restored" in record.getMessage()]
    assert len(complaints) == 1
    assert "403" in complaints[0]


def test_a_binding_that_is_forbidden_leaves_no_heap_of_queues_behind(
    bench: Any, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume_connection, "_FIRST_RETRY", 0.02)
    node = bench.node
    node.ctl("add_user", bench.service, "password")
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    transport = bench.transport(node.url.replace("guest:guest", f"{bench.service}:password"))
    topology = event_subscription(bench.service, "character.created", durable=False)
    consumer = transport.consume(topology, prefetch=1, deadline=bench.within())
    node.ctl("set_permissions", bench.service, ".*", ".*", "nothing-to-read")
    node.ctl("close_all_connections", "test")
    assert eventually(lambda: consumer._failures >= 4)
    held = [name for name in node.ctl("list_queues", "name").split() if name.startswith(bench.service)]
    assert len(held) <= 1


def test_a_new_connection_is_a_new_chance_for_what_could_not_be_restored(
    bench: Any, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume_connection, "_FIRST_RETRY", 600.0)
    monkeypatch.setattr(consume_connection, "_LONGEST_RETRY", 600.0)
    node = bench.node
    node.ctl("add_user", bench.service, "password")
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    transport = bench.transport(node.url.replace("guest:guest", f"{bench.service}:password"))
    consumer = bench.consume(transport)
    node.ctl("set_permissions", bench.service, ".*", ".*", "nothing-to-read")
    node.ctl("close_all_connections", "test")
    assert eventually(lambda: consumer._failures == 1)
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    assert not consumer.active
    node.ctl("close_all_connections", "test")
    assert eventually(lambda: bool(consumer.active), timeout=5)


def test_consumers_acknowledge_although_publishing_is_blocked(
    bench: Any, in_thread: Callable[..., SimpleQueue[Any]], eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    for _ in range(5):
        bench.confirmed(transport)
    deliveries = [bench.take(consumer) for _ in range(5)]
    bench.node.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        late = transport.publish(bench.message(), bench.within())
        assert eventually(lambda: transport.status()[0].state is ConnectionState.BLOCKED)
        began = time.monotonic()
        refused = transport.publish(bench.message(), bench.within(0.3))
        assert refused.result is not None
        assert "memory or disk alarm" in refused.reason
        alone = transport.publish(bench.message(), bench.within(0.3), own_channel=True)
        assert "memory or disk alarm" in alone.reason
        assert time.monotonic() - began < 30
        for delivery in deliveries:
            consumer.ack(delivery)
        consumer.flush()
        assert unacknowledged(bench) == (0, 0)
        # Questions go over the connection that is not blocked.
        assert transport.queue_stats([f"{bench.service}.messages"], bench.within())
        waiting = in_thread(lambda: transport.publish(bench.message(), bench.within(60)).wait(bench.within(60)))
        publisher = bench.transport()
        publisher.connect(bench.within())
        publisher.publish(bench.message(), bench.within())
        assert eventually(lambda: publisher.status()[0].state is ConnectionState.BLOCKED)
        # This one consumes nothing: another connection is made for its question.
        assert publisher.queue_stats([f"{bench.service}.messages"], bench.within())
        began = time.monotonic()
        publisher.close(bench.within(120))
        assert time.monotonic() - began < 60
    finally:
        bench.node.ctl("set_vm_memory_high_watermark", "0.4")
    assert late.wait(bench.within(60)).value == "confirmed"
    assert waiting.get(timeout=60).value == "confirmed"


def silence(bench: Any, queue: str, *, silent: bool = True) -> None:
    """Have the broker's process of one queue answer nobody, as a quorum queue without its majority does."""
    call = "suspend" if silent else "resume"
    resource = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
    bench.node.ctl("eval", f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}), sys:{call}(amqqueue:get_pid(Q)).")


@pytest.fixture
def silent(bench: Any) -> Any:
    """Two consumers whose queues answer nobody, one whose queue does, and the transport, whose connection is lost."""
    transport = bench.transport()
    events = ("character.created", "campaign.started", "image.requested")
    consumers = [
        transport.consume(event_subscription(bench.service, event), prefetch=5, deadline=bench.within())
        for event in events
    ]
    queues = [f"{bench.service}.{event}" for event in events[:2]]
    for queue in queues:
        silence(bench, queue)
    transport._consume_connection.recovering.interrupt()
    yield transport, consumers
    for queue in queues:
        silence(bench, queue, silent=False)


def test_queues_that_do_not_answer_hold_up_neither_the_others_nor_whoever_asks(
    bench: Any, silent: Any, eventually: Callable[..., bool]
) -> None:
    transport, (first, second, healthy) = silent
    # Two seconds for each of the silent ones, which come first as nothing is known of them yet.
    assert eventually(lambda: bool(healthy.active))
    assert not first.active
    assert not second.active
    for _ in range(3):
        assert transport.queue_stats([healthy.queue], bench.within())[healthy.queue]


def test_queues_that_do_not_answer_do_not_keep_the_others_from_being_closed_in_order(
    bench: Any, silent: Any, eventually: Callable[..., bool]
) -> None:
    transport, (first, second, healthy) = silent
    others = [bench.consume(transport), healthy]
    assert eventually(lambda: all(consumer.active for consumer in others))
    bench.confirmed(transport)
    delivery = bench.take(others[0])
    began = time.monotonic()
    for consumer in (first, second, *others):
        consumer.cancel(began + 120)
    others[0].ack(delivery)
    for consumer in (first, second, *others):
        consumer.close(began + 120)
    assert time.monotonic() - began < 60
    transport.close(bench.within(2))  # the broker's goodbye cannot come: its channels wait for those queues
    for queue in (first.queue, second.queue):
        silence(bench, queue, silent=False)  # rabbitmqctl waits for them, too
    assert bench.depth() == 0


def depths(node: Any, queue: str) -> tuple[str | None, str | None]:
    """The messages in a queue and in its dead-letter queue, as the broker counts them."""
    lines = node.ctl("list_queues", "name", "messages").splitlines()
    found = dict(line.split("\t") for line in lines if "\t" in line)
    return found.get(queue), found.get(f"{queue}.dead")


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_stop_over_a_slow_network_acknowledges_what_was_moved(
    node: Any, how: str, eventually: Callable[..., bool]
) -> None:
    service = f"slow-{how}-{uuid4().hex[:6]}"
    handled = Collector()

    def handle(event: dict[str, int]) -> None:
        handled(event)
        raise MessageHubRejectError("no")

    with Proxy(node.port) as proxy, MessageHubClient(f"{service}-sender", node.url) as sender:
        client = MessageHubClient(service, proxy.url)
        subscription = client.subscribe(["quest.started"], handle)
        (queue,) = subscription.queues
        sender.publish_event("quest.started", {"n": 0})  # opens the connection and declares the queue
        handled.wait(1, 30)
        assert eventually(lambda: depths(node, queue) == ("0", "1"), 30)
        proxy.delay(0.2)
        sender.publish_events(("quest.started", {"n": n}) for n in range(1, 11))
        handled.wait(11, 30)

        if how == "cancel":
            subscription.cancel(20)
        else:
            client.close(20)

        assert eventually(lambda: depths(node, queue) == ("0", "11"), 30)
        proxy.heal()
        client.close()
