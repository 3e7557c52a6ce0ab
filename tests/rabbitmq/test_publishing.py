"""Publishing over a real node: every receipt says what became of the message."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from message_hub_sync import MessageHubClient
from message_hub_sync.errors import MessageHubConnectionError, MessageHubDeliveryError, MessageValidationError
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.topology import EVENT_EXCHANGE, QueueSpec, Topology, inbox_subscription

pytestmark = pytest.mark.rabbitmq


def declare_inbox(bench: Any, transport: RabbitMQTransport) -> None:
    transport.declare(inbox_subscription(bench.service), bench.within())


def channels(bench: Any) -> int:
    return len(bench.node.ctl("list_channels", "pid").split())


def test_a_message_with_an_inbox_is_confirmed_and_one_without_is_returned(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    bench.confirmed(transport)
    receipt = bench.publish(transport, bench.message(to="nobody"))
    assert (receipt.result, receipt.code) == (PublishResult.RETURNED, 312)
    assert transport.queue_stats([f"{bench.service}.messages"], bench.within())[f"{bench.service}.messages"].depth == 1


def test_a_full_queue_refuses_and_the_next_publish_reports_its_own_outcome(bench: Any) -> None:
    transport = bench.transport()
    full = QueueSpec(f"{bench.service}.messages", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    transport.declare_queue(full, bench.within())
    transport.declare_queue(QueueSpec(f"{bench.service}-other.messages"), bench.within())
    bench.confirmed(transport)
    assert bench.publish(transport).result is PublishResult.NACKED
    bench.confirmed(transport, bench.message(to=f"{bench.service}-other"))


def test_a_poisonous_message_fails_alone_and_the_others_get_through(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    poison = bench.message()
    poison.exchange = "no-such-exchange"
    batch = [bench.message() for _ in range(50)]
    batch.insert(25, poison)
    receipts = transport.publish_many(batch, bench.within())
    assert all(receipt.wait(bench.within()) is PublishResult.CHANNEL_ERROR_SHARED for receipt in receipts[25:])
    for outgoing in batch:
        receipt = bench.publish(transport, outgoing, own_channel=True)
        expected = PublishResult.CHANNEL_ERROR if outgoing is poison else PublishResult.CONFIRMED
        assert receipt.result is expected
    bench.confirmed(transport)  # on a fresh shared channel


def test_the_only_one_in_flight_is_known_for_the_culprit(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    bench.confirmed(transport)
    poison = bench.message(user_id="somebody-else")
    assert (bench.publish(transport, poison).result, bench.publish(transport, poison).code) == (
        PublishResult.CHANNEL_ERROR,
        406,
    )
    bench.confirmed(transport)


def test_publishing_alone_needs_few_channels_and_leaves_none_behind(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    before = channels(bench)
    for _ in range(100):
        bench.confirmed(transport, own_channel=True)
    assert channels(bench) == before + 1


def test_a_bulk_is_confirmed_in_order(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport, prefetch=1000)
    receipts = transport.publish_many([bench.message(str(n)) for n in range(3000)], bench.within())
    assert {receipt.wait(bench.within()) for receipt in receipts} == {PublishResult.CONFIRMED}
    for number in range(3000):
        delivery = bench.take(consumer)
        assert delivery.body == b'{"text":"%d"}' % number
        consumer.ack(delivery)


def test_one_message_of_a_bulk_that_amqp_cannot_carry_does_not_hold_up_the_others(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    batch = [bench.message(), bench.message(correlation_id="x" * 256), bench.message()]
    receipts = transport.publish_many(batch, bench.within())
    results = [receipt.wait(bench.within()) for receipt in receipts]
    assert results == [PublishResult.CONFIRMED, PublishResult.INVALID, PublishResult.CONFIRMED]
    assert "255 bytes" in receipts[1].reason
    with pytest.raises(MessageValidationError):
        transport.publish(batch[1], bench.within())


def test_a_bulk_larger_than_the_out_buffer_waits_for_room(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    large = "x" * 500_000
    receipts = transport.publish_many([bench.message(large) for _ in range(60)], bench.within(30))
    assert {receipt.wait(bench.within(30)) for receipt in receipts} == {PublishResult.CONFIRMED}
    transport.delete(inbox_subscription(bench.service), f"{bench.service}.messages", bench.within())


def test_a_broker_that_does_not_read_makes_publishers_wait_no_longer_than_their_deadline(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    bench.confirmed(transport)
    bench.node.suspend()
    try:
        began = time.monotonic()
        receipts = transport.publish_many([bench.message("x" * 900_000) for _ in range(40)], bench.within(1))
        assert time.monotonic() - began < 30, "without a deadline it would wait until the broker reads again"
        assert receipts[-1].result is PublishResult.NOT_WRITTEN
        with pytest.raises(MessageHubConnectionError, match="reads too slowly"):
            transport.publish(bench.message(), bench.within(0.2))
    finally:
        bench.node.resume()
    assert receipts[0].wait(bench.within(60)) is PublishResult.CONFIRMED
    bench.confirmed(transport)
    transport.delete(inbox_subscription(bench.service), f"{bench.service}.messages", bench.within())


def test_publishes_through_reconnects_are_confirmed_only_when_the_broker_has_them(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport, prefetch=200)
    confirmed: SimpleQueue[str] = SimpleQueue()
    received: set[str] = set()
    published = threading.Event()

    def publish(names: list[str]) -> None:
        for name in names:
            while True:  # as the publisher does: whatever is not confirmed is published again
                receipt = transport.publish(bench.message(name), bench.within(30))
                if receipt.wait(bench.within(30)) is PublishResult.CONFIRMED:
                    confirmed.put(name)
                    break

    def request_restore() -> None:
        for _ in range(5):
            if published.wait(0.4):
                return
            bench.node.ctl("close_all_connections", "test")

    names = [f"{thread}-{number}" for thread in range(8) for number in range(125)]
    threads = [threading.Thread(target=publish, args=(names[n::8],)) for n in range(8)]
    disturber = threading.Thread(target=request_restore)
    for thread in (*threads, disturber):
        thread.start()
    expected = {b'{"text":"%s"}' % name.encode() for name in names}
    bodies: set[bytes] = set()
    deadline = bench.within(60)
    while bodies != expected:
        delivery = consumer.deliveries.get(timeout=max(0.0, deadline - time.monotonic()))
        assert delivery is not None
        bodies.add(delivery.body)
        consumer.ack(delivery)
    for thread in threads:
        thread.join(30)
    published.set()
    disturber.join(30)
    while not confirmed.empty():
        received.add(confirmed.get())
    assert received == set(names)


class Interrupted(BaseException):
    """Thrown by a signal handler, wherever the main thread is."""


# Where the signal finds the thread in the callback of a weak reference, Python can only report it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_inside_publish_shifts_no_confirm(bench: Any) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)
    bench.confirmed(transport)

    def interrupt(*_: Any) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    interruptions = 0
    try:
        for number in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + (number % 40) * 0.00001)
                transport.publish(bench.message(), bench.within())
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interruptions += 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert interruptions > 200
    # Its own outcome each: were the tags shifted by one, the returned one would pass for confirmed.
    for _ in range(20):
        bench.confirmed(transport)
        assert bench.publish(transport, bench.message(to="nobody")).result is PublishResult.RETURNED
    bench.confirmed(transport, own_channel=True)


def test_closing_with_publishers_under_way_ends_every_wait(
    bench: Any, in_thread: Callable[..., SimpleQueue[Any]]
) -> None:
    transport = bench.transport()
    declare_inbox(bench, transport)

    def publish_until_closed() -> Any:
        while True:
            receipt = transport.publish(bench.message(), bench.within(20))
            # Not written: it was left to another caller, who found the connection ended.
            assert receipt.wait(bench.within(20)) in (
                PublishResult.CONFIRMED,
                PublishResult.LOST,
                PublishResult.NOT_WRITTEN,
            )

    ends = [in_thread(publish_until_closed) for _ in range(8)]
    bench.confirmed(transport)
    began = time.monotonic()
    transport.close(bench.within(120))
    for end in ends:
        error = end.get(timeout=120)
        assert isinstance(error, MessageHubConnectionError)
        assert "closed" in str(error)
    assert time.monotonic() - began < 60


def test_an_event_nobody_subscribes_to_is_confirmed(bench: Any) -> None:
    transport = bench.transport()
    transport.declare(Topology(QueueSpec(f"{bench.service}.any"), EVENT_EXCHANGE), bench.within())
    event = bench.message()
    bench.confirmed(transport, Outgoing("events", "nobody.cares", event.body, event.properties))


@pytest.fixture
def smallest_limit(bench: Any) -> Iterator[int]:
    """The broker takes bodies of at most so many bytes."""
    before = bench.node.ctl("eval", "application:get_env(rabbit, max_message_size).").strip()
    bench.node.ctl("eval", "application:set_env(rabbit, max_message_size, 100000).")
    yield 100_000
    value = before.removeprefix("{ok,").removesuffix("}")
    bench.node.ctl("eval", f"application:set_env(rabbit, max_message_size, {value}).")


def test_a_body_that_is_too_large_for_the_broker_is_rejected_with_what_to_do(bench: Any, smallest_limit: int) -> None:
    with MessageHubClient(bench.service, bench.node.url, delivery_timeout=30) as client:
        client.subscribe_messages(lambda message: None)
        large, small = {"n": "x" * smallest_limit}, {"n": "x"}

        with pytest.raises(MessageHubDeliveryError, match=r"message size .*max_message_size") as alone:
            client.send_message(bench.service, large)
        with pytest.raises(MessageHubDeliveryError, match="smaller payload") as event:
            client.publish_event("quest.started", large)
        with pytest.raises(MessageHubDeliveryError, match="max_message_size") as bulk:
            client.send_messages([(bench.service, small), (bench.service, large), (bench.service, small)])
        with pytest.raises(MessageHubDeliveryError, match="max_message_size"):
            client.request(bench.service, large, timeout=30)

        assert (alone.value.outcome, event.value.outcome) == ("rejected", "rejected")
        assert [(failure.index, failure.outcome) for failure in bulk.value.failures] == [(1, "rejected")]
        client.send_message(bench.service, small)
