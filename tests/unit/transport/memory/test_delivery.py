"""From publish to settle: receipts, order, prefetch, giving back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.topology import EVENT_EXCHANGE, Binding, QueueSpec, Topology


def events(name: str, *patterns: str) -> Topology:
    return Topology(QueueSpec(name), EVENT_EXCHANGE, tuple(Binding("events", pattern) for pattern in patterns))


def test_a_publish_to_a_queue_is_confirmed_and_waits_there(client: Any, bodies: Any) -> None:
    client.declare("inbox")
    receipt = client.publish("inbox", b"1", mandatory=True)
    assert (receipt.result, receipt.reason, receipt.code) == (PublishResult.CONFIRMED, "", 0)
    assert client.depth("inbox") == 1
    assert bodies(client.consume("inbox")) == [b"1"]


def test_a_mandatory_message_without_a_queue_is_returned(client: Any) -> None:
    receipt = client.publish("nowhere", mandatory=True)
    assert (receipt.result, receipt.reason, receipt.code) == (PublishResult.RETURNED, "NO_ROUTE", 312)


def test_an_event_nobody_takes_is_confirmed(client: Any) -> None:
    client.transport.declare(events("mine", "a.b"), 0)
    assert client.publish("c.d", exchange="events").result is PublishResult.CONFIRMED
    assert client.depth("mine") == 0


@pytest.mark.parametrize("own_channel", [False, True])
def test_a_missing_exchange_closes_the_channel(client: Any, own_channel: bool) -> None:
    receipt = client.transport.publish(Outgoing("nope", "k", b"", Properties()), 0, own_channel=own_channel)
    assert (receipt.result, receipt.code) == (PublishResult.CHANNEL_ERROR, 404)
    assert "no exchange 'nope'" in receipt.reason


def test_an_event_reaches_every_queue_whose_pattern_fits(client: Any, taken: Any) -> None:
    exact, pattern, other = (
        client.consume(events(name, key)) for name, key in (("e", "a.b"), ("p", "a.*"), ("o", "b.#"))
    )
    client.publish("a.b", b"1", exchange="events")
    (delivery,) = taken(exact)
    assert (delivery.exchange, delivery.routing_key, delivery.queue) == ("events", "a.b", "e")
    assert (delivery.channel_generation, delivery.redelivered) == (1, False)
    assert len(taken(pattern)) == 1
    assert taken(other) == []


def test_messages_come_in_the_order_they_were_sent(client: Any, bodies: Any) -> None:
    sent = [b"%d" % n for n in range(100)]
    client.declare("inbox")
    for body in sent[:50]:
        client.publish("inbox", body)
    consumer = client.consume("inbox")
    for body in sent[50:]:
        client.publish("inbox", body)
    assert bodies(consumer) == sent


def test_prefetch_bounds_what_is_not_settled(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox", prefetch=2)
    for n in range(4):
        client.publish("inbox", b"%d" % n)
    first, second = taken(consumer)
    assert client.depth("inbox") == 2
    consumer.ack(second)
    (third,) = taken(consumer)
    assert third.body == b"2"
    consumer.ack(second)
    assert taken(consumer) == [], "settled twice is settled once"
    consumer.ack(first)
    assert [delivery.body for delivery in taken(consumer)] == [b"3"]


def test_consumers_of_one_queue_take_turns(connect: Any, bodies: Any) -> None:
    first, second = connect(), connect()
    consumers = [first.consume("inbox"), second.consume("inbox")]
    for n in range(4):
        first.publish("inbox", b"%d" % n)
    assert [bodies(consumer) for consumer in consumers] == [[b"0", b"2"], [b"1", b"3"]]


def test_a_consumer_with_a_full_prefetch_is_passed_over(connect: Any, taken: Any, bodies: Any) -> None:
    slow, quick = connect().consume("inbox", prefetch=1), connect().consume("inbox", prefetch=3)
    sender = connect()
    for n in range(4):
        sender.publish("inbox", b"%d" % n)
    assert bodies(slow) == [b"0"]
    assert bodies(quick) == [b"1", b"2", b"3"]


def test_a_released_message_returns_to_its_place_flagged(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox", prefetch=3)
    for n in range(5):
        client.publish("inbox", b"%d" % n)
    first, second, third = taken(consumer)
    consumer.requeue(second)
    (again,) = taken(consumer)
    assert (again.body, again.redelivered) == (b"1", True)
    consumer.requeue(second)
    assert taken(consumer) == [], "released twice is released once"
    for delivery in (first, third, again):
        consumer.ack(delivery)
    assert [(d.body, d.redelivered) for d in taken(consumer)] == [(b"3", False), (b"4", False)]


def test_close_gives_everything_back_in_order(connect: Any, taken: Any) -> None:
    client, other = connect(), connect()
    consumer = client.consume("inbox", prefetch=4)
    for n in range(6):
        client.publish("inbox", b"%d" % n)
    consumer.ack(taken(consumer)[2])
    consumer.close(0)
    assert client.depth("inbox") == 5
    found = taken(other.consume("inbox"))
    assert [(d.body, d.redelivered) for d in found] == [
        (b"0", True),
        (b"1", True),
        (b"3", True),
        (b"4", True),
        (b"5", False),
    ]


def test_messages_of_two_consumers_return_interleaved_as_they_were(connect: Any, bodies: Any) -> None:
    client = connect()
    even, odd = connect().consume("inbox"), connect().consume("inbox")
    for n in range(6):
        client.publish("inbox", b"%d" % n)
    odd.cancel(0)
    even.cancel(0)
    client.publish("inbox", b"6")
    odd.close(0)
    even.close(0)
    assert bodies(client.consume("inbox")) == [b"%d" % n for n in range(7)]


def test_cancel_stops_the_intake_and_leaves_the_rest_to_be_settled(connect: Any, taken: Any) -> None:
    client = connect()
    consumer = client.consume("inbox", prefetch=2)
    for n in range(3):
        client.publish("inbox", b"%d" % n)
    first, second = taken(consumer)
    assert consumer.active
    consumer.cancel(0)
    assert not consumer.active
    consumer.ack(first)
    client.publish("inbox", b"3")
    assert consumer.deliveries.empty()
    consumer.close(0)
    consumer.close(0)
    assert [d.body for d in taken(connect().consume("inbox"))] == [b"1", b"2", b"3"]
    consumer.ack(second)
    assert client.depth("inbox") == 0


def test_a_stale_delivery_settles_nothing(client: Any, taken: Any) -> None:
    closed = client.consume("inbox")
    client.publish("inbox", b"1")
    (stale,) = taken(closed)
    closed.close(0)
    consumer = client.consume("inbox", prefetch=1)
    (fresh,) = taken(consumer)
    assert stale.delivery_tag == fresh.delivery_tag
    for settle in (closed.ack, closed.requeue, consumer.ack, consumer.requeue):
        settle(stale)
    consumer.close(0)
    assert client.depth("inbox") == 1


def test_a_more_urgent_message_overtakes_and_urgency_is_capped(client: Any, bodies: Any) -> None:
    client.declare("inbox", arguments={"x-max-priority": 5})
    for body, priority in ((b"none", None), (b"one", 1), (b"nine", 9), (b"five", 5), (b"two", 2)):
        client.publish("inbox", body, priority=priority)
    assert bodies(client.consume("inbox")) == [b"nine", b"five", b"two", b"one", b"none"]


def test_without_x_max_priority_a_priority_changes_nothing(client: Any, bodies: Any) -> None:
    client.declare("inbox")
    client.publish("inbox", b"first", priority=1)
    client.publish("inbox", b"second", priority=9)
    assert bodies(client.consume("inbox")) == [b"first", b"second"]


def test_a_released_message_keeps_its_urgency_and_place(client: Any, taken: Any, bodies: Any) -> None:
    client.declare("inbox", arguments={"x-max-priority": 5})
    client.publish("inbox", b"urgent 1", priority=3)
    client.publish("inbox", b"urgent 2", priority=3)
    consumer = client.consume("inbox", prefetch=1)
    client.publish("inbox", b"plain")
    consumer.requeue(taken(consumer)[0])
    consumer.close(0)
    assert bodies(client.consume("inbox")) == [b"urgent 1", b"urgent 2", b"plain"]


def test_a_full_queue_that_rejects_nacks_and_the_next_publish_has_its_own_outcome(client: Any, taken: Any) -> None:
    client.declare("inbox", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    assert client.publish("inbox", b"1").result is PublishResult.CONFIRMED
    assert client.publish("inbox", b"2").result is PublishResult.NACKED
    assert client.publish("nowhere", mandatory=True).result is PublishResult.RETURNED
    consumer = client.consume(
        Topology(QueueSpec("inbox", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})), prefetch=1
    )
    assert client.publish("inbox", b"3").result is PublishResult.CONFIRMED, "what is delivered does not count"
    assert [d.body for d in taken(consumer)] == [b"1"]


def test_an_event_that_one_of_its_queues_refuses_is_nacked(client: Any) -> None:
    full = QueueSpec("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    client.transport.declare(Topology(full, EVENT_EXCHANGE, (Binding("events", "#"),)), 0)
    client.transport.declare(events("roomy", "#"), 0)
    assert client.publish("a.b", exchange="events").result is PublishResult.NACKED
    assert client.depth("roomy") == 1


def test_a_full_queue_drops_its_head_by_default(client: Any, bodies: Any) -> None:
    client.declare("inbox", arguments={"x-max-length": 2})
    for n in range(4):
        assert client.publish("inbox", b"%d" % n).result is PublishResult.CONFIRMED
    assert bodies(client.consume("inbox")) == [b"2", b"3"]


def test_a_batch_is_published_in_order_with_a_receipt_each(client: Any, bodies: Any) -> None:
    client.declare("inbox")
    batch = [Outgoing("", key, b"%d" % n, Properties(), True) for n, key in enumerate(["inbox", "no", "inbox"])]
    results = [receipt.result for receipt in client.transport.publish_many(batch, 0)]
    assert results == [PublishResult.CONFIRMED, PublishResult.RETURNED, PublishResult.CONFIRMED]
    assert bodies(client.consume("inbox")) == [b"0", b"2"]


def test_threads_that_share_a_client_each_keep_their_order(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox")
    threads, each = 32, 50
    start = threading.Barrier(threads)

    def send(thread: int) -> None:
        start.wait(30)
        for n in range(each):
            client.publish("inbox", b"%d %d" % (thread, n))

    senders = [threading.Thread(target=send, args=(n,)) for n in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)
    found: dict[int, list[int]] = {n: [] for n in range(threads)}
    for delivery in taken(consumer):
        thread, number = map(int, delivery.body.split())
        found[thread].append(number)
    assert all(numbers == list(range(each)) for numbers in found.values())


def test_consumers_and_senders_at_once_lose_and_repeat_nothing(connect: Any) -> None:
    client = connect()
    consumers = [connect().consume("inbox", prefetch=3) for _ in range(4)]
    handled: list[bytes] = []

    def work(consumer: Any) -> None:
        while (delivery := consumer.deliveries.get(timeout=30)) is not None:
            handled.append(delivery.body)
            consumer.ack(delivery)

    workers = [threading.Thread(target=work, args=(consumer,)) for consumer in consumers]
    senders = [
        threading.Thread(target=lambda t=t: [client.publish("inbox", b"%d.%d" % (t, n)) for n in range(100)])
        for t in range(4)
    ]
    for thread in workers + senders:
        thread.start()
    for sender in senders:
        sender.join(30)
    for consumer in consumers:
        consumer.deliveries.put(None)
    for worker in workers:
        worker.join(30)
    # A worker that ends with room left in its prefetch may leave deliveries behind: give them to one that reads on.
    for consumer in consumers:
        consumer.close(0)
    rest = client.consume("inbox")
    while not rest.deliveries.empty():
        handled.append(rest.deliveries.get().body)
    assert sorted(handled) == sorted(b"%d.%d" % (t, n) for t in range(4) for n in range(100))
