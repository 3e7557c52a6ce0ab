"""A subscription has ``workers`` consumer threads, whatever the number of its queues."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub
from programs import eventually

from message_hub_sync import HandlerGroup, MessageHubRejectError

EVENTS = [f"tale.told_{number}" for number in range(10)]
DEADLINE = 60.0


class Running:
    """A callback that counts in how many threads it runs at once."""

    def __init__(self, delay: float = 0.0) -> None:
        self.handled = Collector()
        self._delay = delay
        self._lock = threading.Lock()
        self._now = 0  # guarded by _lock
        self.most = 0  # guarded by _lock

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        threading.Event().wait(self._delay)
        with self._lock:
            self._now -= 1
        self.handled(event["n"])


def _threads(hub: Hub, service: str) -> list[str]:
    """The names of a client's threads, without those of the embedded hub."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith(f"message-hub-{hub.name(service)}"))


def _consumers(hub: Hub, service: str) -> int:
    return sum(not name.endswith("-io") for name in _threads(hub, service))


def _publish(hub: Hub, event_types: list[str], each: int = 1) -> None:
    client = hub.client("character")
    client.publish_events([(event_type, {"n": n}) for n in range(each) for event_type in event_types])


def test_a_client_has_two_threads_and_one_for_each_subscription(hub: Hub, collected: Collector) -> None:
    client = hub.client("image")
    client.connect()
    subscriptions = [client.subscribe(EVENTS, collected), client.subscribe(["quest.*"], collected)]
    client.subscribe_messages(collected)

    assert _consumers(hub, "image") == 3
    assert len(_threads(hub, "image")) - 3 == (2 if hub.url.startswith("amqp") else 0)

    subscriptions[0].cancel(DEADLINE)
    assert _consumers(hub, "image") == 2
    subscriptions[0].start()
    assert _consumers(hub, "image") == 3
    client.close(DEADLINE)
    assert _threads(hub, "image") == []


@pytest.mark.parametrize("workers", [1, 3])
def test_a_callback_runs_in_as_many_threads_at_once_as_it_has_workers(hub: Hub, workers: int) -> None:
    running = Running(0.01)
    client = hub.client("image")
    client.subscribe(EVENTS, running, workers=workers)
    assert _consumers(hub, "image") == workers

    _publish(hub, EVENTS, each=10)

    running.handled.wait(100, DEADLINE)
    assert running.most <= workers


def test_handlers_of_a_group_have_one_thread_each(hub: Hub) -> None:
    running = Running(0.01)
    group = HandlerGroup()
    group.on_event(*EVENTS)(running)
    client = hub.client("image")
    client.include(group)

    _publish(hub, EVENTS, each=3)

    running.handled.wait(30, DEADLINE)
    assert (_consumers(hub, "image"), running.most) == (1, 1)


def test_a_backlog_of_one_queue_does_not_hold_up_another_one(hub: Hub) -> None:
    order = Collector()
    begun, go_on = threading.Event(), threading.Event()
    client = hub.client("image")

    def handle(event: dict[str, Any]) -> None:
        begun.set()
        go_on.wait(DEADLINE)
        order(event["n"])

    client.subscribe(["tale.long", "tale.short"], handle, prefetch=200)
    sender = hub.client("character")
    sender.publish_events([("tale.long", {"n": n}) for n in range(150)])
    assert begun.wait(DEADLINE)
    sender.publish_events([("tale.short", {"n": -1 - n}) for n in range(10)])
    # The two queues are delivered on channels of their own, so nothing tells that the second one's are here.
    threading.Event().wait(1.0)

    go_on.set()

    handled = order.wait(160, DEADLINE)
    assert max(handled.index(-1 - n) for n in range(10)) < 40
    assert [n for n in handled if n >= 0] == list(range(150)), "each queue keeps its order"
    assert [n for n in handled if n < 0] == [-1 - n for n in range(10)]


@pytest.mark.parametrize("shared", ["first", "last", "both"])
def test_subscriptions_that_share_a_queue_share_its_thread(hub: Hub, shared: str) -> None:
    first, second = Running(0.005), Running(0.005)
    client = hub.client("image")
    client.subscribe(["tale.one", "tale.two"], first)
    event_types = {"first": ["tale.one", "tale.three"], "last": ["tale.three", "tale.two"]}
    client.subscribe(event_types.get(shared, ["tale.one", "tale.two", "tale.three"]), second)

    _publish(hub, ["tale.one", "tale.two", "tale.three"], each=10)

    first.handled.wait(20, DEADLINE)
    second.handled.wait(30 if shared == "both" else 20, DEADLINE)
    assert (first.most, second.most) == (1, 1)
    assert _consumers(hub, "image") == 1


def test_a_callback_that_joins_the_queues_of_two_subscriptions_runs_once_at_a_time(hub: Hub) -> None:
    callbacks = [Running(0.005) for _ in range(3)]
    client = hub.client("image")
    client.subscribe(["tale.one"], callbacks[0])
    client.subscribe(["tale.two"], callbacks[1])
    client.subscribe(["tale.one", "tale.two"], callbacks[2])

    _publish(hub, ["tale.one", "tale.two"], each=20)

    callbacks[2].handled.wait(40, DEADLINE)
    assert [callback.most for callback in callbacks] == [1, 1, 1]


def test_a_subscription_that_ends_leaves_a_shared_queue_to_the_other_one(hub: Hub) -> None:
    first, second = Running(), Running()
    client = hub.client("image")
    subscription = client.subscribe(["tale.one", "tale.two"], first)
    client.subscribe(["tale.two", "tale.three"], second)

    subscription.cancel(DEADLINE)
    _publish(hub, ["tale.one", "tale.two", "tale.three"], each=2)

    assert sorted(second.handled.wait(4, DEADLINE)) == [0, 0, 1, 1]
    assert first.handled.items == []
    assert _consumers(hub, "image") == 1
    assert hub.depth(f"{hub.name('image')}.tale.one") == 2


def test_a_restart_while_a_handler_runs_on_waits_for_that_handler(hub: Hub) -> None:
    begun, go_on = Collector(), threading.Event()
    running = Running()

    def handle(event: dict[str, Any]) -> None:
        begun(event["n"])
        go_on.wait(DEADLINE)
        running(event)

    client = hub.client("image")
    subscription = client.subscribe(["tale.one"], handle)
    _publish(hub, ["tale.one"], each=2)
    begun.wait(1, DEADLINE)
    subscription.cancel(0.1)
    subscription.start()

    begun.stays(1, 0.5)
    go_on.set()

    running.handled.wait(2, DEADLINE)
    assert running.most == 1


def test_each_queue_of_a_subscription_keeps_its_failures_moving_while_others_are_busy(hub: Hub) -> None:
    handled = Collector()

    def handle(event: dict[str, Any], envelope: Any) -> None:
        if envelope.event_type == "tale.one":
            raise MessageHubRejectError("no")
        handled(event["n"])

    client = hub.client("image")
    client.subscribe(["tale.one", "tale.two"], handle)
    _publish(hub, ["tale.one", "tale.two"], each=50)

    assert handled.wait(50, DEADLINE) == list(range(50))
    dead_letters = f"{hub.name('image')}.tale.one.dead"
    assert eventually(lambda: hub.depth(dead_letters) == 50, DEADLINE)
    client.close(DEADLINE)
    assert (hub.depth(f"{hub.name('image')}.tale.one"), hub.depth(dead_letters)) == (0, 50)
