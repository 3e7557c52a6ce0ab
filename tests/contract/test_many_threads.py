"""Many threads share one client: each message is confirmed once, in its queue once, in its thread's order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from collector import Collector
from contract.conftest import Hub

from message_hub_sync import MESSAGE_COUNTER, Event

THREADS = 32
EACH = 625
EVENT = "character.updated"


def test_32_threads_publish_20_000_events_through_one_client(hub: Hub, collected: Collector) -> None:
    publisher = hub.client("publisher")
    together = threading.Barrier(THREADS)

    def publish(thread: int) -> list[UUID]:
        together.wait(30)
        return [
            publisher.publish_event(EVENT, {"character_id": f"{thread}", "changes": {"number": number}}, timeout=60)
            for number in range(EACH)
        ]

    def receive(event: Event) -> None:
        collected((event.id, int(event.payload["character_id"]), event.payload["changes"]["number"]))

    subscription = hub.client("subscriber").subscribe([EVENT], receive, prefetch=1000)
    with ThreadPoolExecutor(THREADS) as threads:
        confirmed = list(threads.map(publish, range(THREADS)))

    collected.wait(THREADS * EACH, timeout=120)
    subscription.cancel()
    arrived = collected.items
    assert len(arrived) == len({event_id for event_id, _, _ in arrived}) == THREADS * EACH, "each is there once"
    assert hub.depth(hub.name("subscriber") + f".{EVENT}") == 0, "and nothing else"
    for thread, ids in enumerate(confirmed):
        # The ids in the order of publishing are those that arrived, in the order of arrival.
        assert [event_id for event_id, source, _ in arrived if source == thread] == ids
        assert [number for _, source, number in arrived if source == thread] == list(range(EACH))
    counted = MESSAGE_COUNTER.labels(hub.name("publisher"), "publish", "success")
    assert [sample.value for sample in counted.collect()[0].samples if sample.name.endswith("_total")] == [20_000]
