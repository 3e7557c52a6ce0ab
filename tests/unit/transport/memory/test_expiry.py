"""Time in the hub: expiry, dead-lettering, delays, and the two clocks."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.memory import SystemClock, VirtualClock
from message_hub_sync.transport.topology import EVENT_EXCHANGE, Binding, QueueSpec, Topology, retry_queue


def dead_lettering(key: str, **arguments: Any) -> dict[str, Any]:
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": key, **arguments}


def test_a_message_is_dropped_when_its_own_time_is_up(client: Any, clock: VirtualClock) -> None:
    client.declare("inbox")
    client.publish("inbox", expiration="1000")
    clock.advance(0.999)
    assert client.depth("inbox") == 1
    clock.advance(0.001)
    assert client.depth("inbox") == 0


@pytest.mark.parametrize(("queue_ms", "own_ms", "lives"), [(1000, None, 1.0), (1000, 3000, 1.0), (3000, 500, 0.5)])
def test_the_shorter_of_the_queues_and_its_own_time_counts(
    client: Any, clock: VirtualClock, queue_ms: int, own_ms: int | None, lives: float
) -> None:
    client.declare("inbox", arguments={"x-message-ttl": queue_ms})
    client.publish("inbox", expiration=None if own_ms is None else str(own_ms))
    clock.advance(lives - 0.25)
    assert client.depth("inbox") == 1
    clock.advance(0.25)
    assert client.depth("inbox") == 0


def test_only_at_the_head_does_a_message_expire(client: Any, clock: VirtualClock, bodies: Any) -> None:
    client.declare("inbox")
    client.publish("inbox", b"stays")
    client.publish("inbox", b"short", expiration="10")
    clock.advance(1)
    assert client.depth("inbox") == 2
    consumer = client.consume("inbox", prefetch=1)
    assert bodies(consumer) == [b"stays"]
    assert client.depth("inbox") == 0


def test_what_is_delivered_does_not_expire_until_it_is_given_back(client: Any, clock: VirtualClock, taken: Any) -> None:
    consumer = client.consume("inbox")
    client.publish("inbox", expiration="10")
    clock.advance(60)
    (delivery,) = taken(consumer)
    consumer.requeue(delivery)
    assert taken(consumer) == []
    assert client.depth("inbox") == 0


def test_without_time_to_live_a_message_reaches_only_a_waiting_consumer(client: Any, bodies: Any) -> None:
    client.declare("inbox")
    client.publish("inbox", b"nobody", expiration="0")
    assert client.depth("inbox") == 0
    consumer = client.consume("inbox", prefetch=1)
    client.publish("inbox", b"somebody", expiration="0")
    client.publish("inbox", b"full", expiration="0")
    assert client.depth("inbox") == 0
    assert bodies(consumer) == [b"somebody"]


def test_an_expired_message_goes_where_its_queue_says_with_its_history(
    client: Any, clock: VirtualClock, taken: Any
) -> None:
    client.declare("waiting", arguments=dead_lettering("inbox"))
    consumer = client.consume("inbox")
    client.publish("waiting", b"1", expiration="1500", headers={"mine": "x"}, message_id="m", user_id="guest")
    clock.advance(1.5)
    (delivery,) = taken(consumer)
    properties = delivery.properties
    assert (delivery.exchange, delivery.routing_key, delivery.body) == ("", "inbox", b"1")
    assert (properties.expiration, properties.message_id, properties.headers["mine"]) == (None, "m", "x")
    (death,) = properties.headers["x-death"]
    assert {key: value for key, value in death.items() if key != "time"} == {
        "count": 1,
        "reason": "expired",
        "queue": "waiting",
        "exchange": "",
        "routing-keys": ["waiting"],
        "original-expiration": "1500",
    }
    assert properties.headers["x-first-death-queue"] == "waiting"
    assert properties.headers["x-first-death-reason"] == "expired"
    assert properties.headers["x-first-death-exchange"] == ""


def test_dying_again_in_the_same_queue_is_counted(client: Any, clock: VirtualClock, taken: Any) -> None:
    client.declare("first", arguments=dead_lettering("inbox", **{"x-message-ttl": 1000}))
    client.declare("second", arguments=dead_lettering("inbox", **{"x-message-ttl": 1000}))
    consumer = client.consume("inbox")
    headers: dict[str, Any] = {}
    for queue in ("first", "second", "second"):
        client.publish(queue, headers=headers)
        clock.advance(1)
        (delivery,) = taken(consumer)
        headers = delivery.properties.headers
    assert [(d["queue"], d["count"]) for d in headers["x-death"]] == [("second", 2), ("first", 1)]
    assert headers["x-first-death-queue"] == "first"


def test_a_dropped_head_is_dead_lettered_by_its_own_key_through_a_topic(client: Any, taken: Any) -> None:
    client.declare("small", arguments={"x-max-length": 1, "x-dead-letter-exchange": "events"})
    topology = Topology(QueueSpec("dropped"), EVENT_EXCHANGE, (Binding("events", "small"),))
    consumer = client.consume(topology)
    client.publish("small", b"1")
    client.publish("small", b"2")
    (delivery,) = taken(consumer)
    assert (delivery.body, delivery.routing_key) == (b"1", "small")
    assert delivery.properties.headers["x-death"][0]["reason"] == "maxlen"


def test_a_message_that_would_go_round_for_ever_is_dropped(client: Any, clock: VirtualClock) -> None:
    client.declare("ping", arguments=dead_lettering("pong", **{"x-message-ttl": 0}))
    client.declare("pong", arguments=dead_lettering("ping", **{"x-message-ttl": 0}))
    client.publish("ping")
    clock.advance(1)
    assert (client.depth("ping"), client.depth("pong")) == (0, 0)


def test_a_retry_ladder_brings_each_message_back_at_its_own_moment(
    client: Any, clock: VirtualClock, bodies: Any
) -> None:
    consumer = client.consume("inbox")
    for delay in (30_000, 1_000, 5_000):
        client.transport.declare_queue(retry_queue("inbox", delay), 0)
        client.publish(f"inbox.retry.{delay}", b"%d" % delay)
    clock.advance(0.5)
    client.publish("inbox.retry.1000", b"later")
    seen = []
    for seconds in (0.5, 0.5, 3, 0.5, 24, 1.5):
        clock.advance(seconds)
        seen.append(bodies(consumer))
    assert seen == [[b"1000"], [b"later"], [], [b"5000"], [], [b"30000"]]


def test_at_least_once_keeps_what_has_nowhere_to_return_to(client: Any, clock: VirtualClock, bodies: Any) -> None:
    client.transport.declare_queue(retry_queue("inbox", 1000), 0)
    client.publish("inbox.retry.1000", b"kept")
    clock.advance(1)
    consumer = client.consume("inbox")
    client.publish("inbox.retry.1000", b"next")
    clock.advance(1)
    assert bodies(consumer) == [b"next"]
    clock.advance(180)
    assert bodies(consumer) == [b"kept"]


def test_advance_passes_through_every_due_moment_in_order(client: Any, clock: VirtualClock, bodies: Any) -> None:
    client.declare("second", arguments=dead_lettering("inbox", **{"x-message-ttl": 2000}))
    client.declare("first", arguments=dead_lettering("second", **{"x-message-ttl": 1000}))
    client.declare("between", arguments=dead_lettering("inbox", **{"x-message-ttl": 2500}))
    client.publish("between", b"2.5 s")
    client.publish("first", b"3 s")
    consumer = client.consume("inbox")
    clock.advance(60)
    assert bodies(consumer) == [b"2.5 s", b"3 s"]
    assert clock.now() == 60


def test_what_fell_due_while_nobody_was_connected_happens_at_the_next_connect(
    connect: Any, clock: VirtualClock, bodies: Any
) -> None:
    first = connect()
    first.declare("inbox")
    first.declare("second", arguments=dead_lettering("inbox", **{"x-message-ttl": 1000}))
    first.declare("first", arguments=dead_lettering("second", **{"x-message-ttl": 1000}))
    first.publish("first", b"1")
    first.close()
    clock.advance(5)
    assert bodies(connect().consume("inbox")) == [b"1"]


def test_a_deleted_queue_hands_nothing_on(client: Any, clock: VirtualClock, taken: Any) -> None:
    arguments = dead_lettering("dead", **{"x-message-ttl": 1000})
    client.declare("dead")
    consumer = client.consume(Topology(QueueSpec("inbox", arguments=arguments)))
    client.publish("inbox")
    (delivery,) = taken(consumer)
    consumer.cancel(0)
    client.delete("inbox")
    consumer.requeue(delivery)
    clock.advance(5)
    assert client.depth("dead") == 0


def test_an_alarm_rings_at_its_own_moment() -> None:
    clock, moments = VirtualClock(), []
    clock.set_alarm(lambda: moments.append(clock.now()), 2.5)
    clock.advance(2)
    clock.advance(2)
    assert (moments, clock.now()) == ([2.5], 4)


def test_a_clock_does_not_go_back() -> None:
    with pytest.raises(MessageValidationError, match="-1"):
        VirtualClock().advance(-1)


def timers(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if name in thread.name]


def test_on_the_real_clock_a_delay_ends_without_anyone_asking(connect: Any, hub: str) -> None:
    client = connect()
    consumer = client.consume("inbox")
    client.declare("waiting", arguments=dead_lettering("inbox"))
    assert timers(hub) == []
    start = time.monotonic()
    client.publish("waiting", b"late", expiration="300")
    client.publish("waiting", b"blocked by the one before", expiration="1")
    (timer,) = timers(hub)
    assert timer.daemon
    assert timer.name == f"message-hub-memory-{hub}-timer"
    assert consumer.deliveries.get(timeout=30).body == b"late"
    assert time.monotonic() - start >= 0.3
    timer.join(30)
    assert timers(hub) == [], "with nothing to wait for the thread has ended"


def test_an_earlier_delay_does_not_wait_for_a_later_one(connect: Any, hub: str) -> None:
    client = connect()
    consumer = client.consume("inbox")
    for queue in ("long", "short"):
        client.declare(queue, arguments=dead_lettering("inbox"))
    client.publish("long", b"long", expiration="3600000")
    client.publish("short", b"short", expiration="50")
    assert consumer.deliveries.get(timeout=30).body == b"short"
    assert len(timers(hub)) == 1


def test_no_timer_is_left_when_the_last_client_closes(connect: Any, hub: str) -> None:
    first, second = connect(), connect()
    first.declare("inbox")
    first.publish("inbox", expiration="3600000")
    second.transport.connect(0)
    first.close()
    assert len(timers(hub)) == 1
    second.close()
    assert timers(hub) == []
    third = connect()
    third.transport.connect(0)
    assert len(timers(hub)) == 1, "what waits is waited for again"


def test_a_timer_survives_what_goes_wrong_in_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = SystemClock("broken")
    rung = threading.Event()

    def fail() -> None:
        clock.set_alarm(rung.set, clock.now())
        raise RuntimeError("as a bug would")

    clock.set_alarm(fail, clock.now())
    assert rung.wait(30)
    clock.rest(time.monotonic() + 5)
    assert "an alarm raised" in caplog.text


def test_a_queue_that_nobody_has_used_for_so_long_is_deleted_with_its_messages(
    client: Any, clock: VirtualClock
) -> None:
    client.declare("marks", arguments={"x-expires": 1000})
    client.publish("marks")  # a publish does not count as use
    clock.advance(0.75)
    client.declare("marks", arguments={"x-expires": 1000})
    clock.advance(0.75)
    assert client.depth("marks") == 1
    clock.advance(0.25)
    assert client.depth("marks") is None


def test_a_queue_with_a_consumer_does_not_expire_before_its_time_after_the_last_consumer(
    client: Any, clock: VirtualClock
) -> None:
    marks = Topology(QueueSpec("marks", arguments={"x-expires": 1000}))
    consumer = client.consume(marks)
    clock.advance(5)
    assert client.depth("marks") == 0
    consumer.close(0)
    clock.advance(0.75)
    assert client.depth("marks") == 0
    clock.advance(0.25)
    assert client.depth("marks") is None
