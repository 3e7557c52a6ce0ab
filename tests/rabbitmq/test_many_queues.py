"""Many queues at once: the broker is far away, or one of the queues does not answer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.rabbitmq.consume_connection import RabbitMQConsumer
from message_hub_sync.transport.topology import event_subscription

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from proxy import Proxy

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def distant(bench: Any) -> Iterator[Proxy]:
    """A proxy, 50 ms away from the client and 50 ms away from the client's messages."""
    with Proxy(bench.node.port) as proxy:
        proxy.delay(0.05)
        yield proxy


def topologies(bench: Any, count: int) -> list[Any]:
    return [(event_subscription(bench.service, f"character.event_{number}"), 5) for number in range(count)]


def test_many_queues_at_a_distance_are_consumed_in_the_time_of_a_few(
    bench: Any, distant: Proxy, eventually: Callable[..., bool]
) -> None:
    # One after the other, each with several round trips of 0.1 s, they took over 20 s.
    transport = bench.transport(distant.url)
    consumers = transport.consume_many(topologies(bench, 22), bench.within(5))
    assert all(consumer.active for consumer in consumers)
    generations = [consumer._consumer_channel for consumer in consumers]
    transport.interrupt()
    assert eventually(
        lambda: all(
            consumer.active and consumer._consumer_channel is not before
            for consumer, before in zip(consumers, generations, strict=True)
        ),
        timeout=8,
    )
    names = [consumer.queue for consumer in consumers]
    assert all(stats and stats.consumers == 1 for stats in transport.queue_stats(names, bench.within(5)).values())
    began = time.monotonic()
    for consumer in consumers:
        consumer.cancel(bench.within(5))
    assert time.monotonic() - began < 2, "cancelling waits for the broker"
    transport.delete_many(names, bench.within(5))
    assert set(transport.queue_stats(names, bench.within(5)).values()) == {None}


def test_many_queues_that_exist_with_other_arguments_are_adopted_in_the_time_of_a_few(
    bench: Any, distant: Proxy
) -> None:
    with bench.raw() as connection:
        channel = connection.channel()
        for topology, _ in topologies(bench, 22):
            channel.queue_declare(topology.queue.name, durable=True, arguments={"x-max-length": 1000})
    transport = bench.transport(distant.url)
    consumers = transport.consume_many(topologies(bench, 22), bench.within(5))
    assert all(consumer.active for consumer in consumers)


def silence(bench: Any, queue: str, *, silent: bool = True) -> None:
    """Have the broker's process of one queue answer nobody, as a quorum queue without its majority does."""
    call = "suspend" if silent else "resume"
    resource = f'rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)'
    bench.node.ctl("eval", f"{{ok, Q}} = rabbit_amqqueue:lookup({resource}), sys:{call}(amqqueue:get_pid(Q)).")


@pytest.fixture
def silent(bench: Any) -> Iterator[str]:
    """The name of a queue that answers nobody."""
    topology = event_subscription(bench.service, "image.requested")
    bench.transport().declare(topology, bench.within())
    silence(bench, topology.queue.name)
    yield topology.queue.name
    silence(bench, topology.queue.name, silent=False)


def channels(bench: Any) -> int:
    lines = bench.node.ctl("list_connections", "channels", "user").splitlines()
    return sum(int(line.split()[0]) for line in lines if line.split()[0].isdigit())


def test_a_queue_that_does_not_answer_holds_up_no_other_call(
    bench: Any, silent: str, in_thread: Callable[..., SimpleQueue[Any]]
) -> None:
    transport = bench.transport()
    bench.consume(transport)
    # As many calls wait for the silent queue as the time of the others would be used up by, one after the other.
    waiting = [in_thread(lambda: transport.queue_stats([silent], bench.within(20))) for _ in range(4)]
    for number in range(3):
        consumer = transport.consume(topologies(bench, 3)[number][0], prefetch=1, deadline=bench.within(5))
        assert consumer.active
    silence(bench, silent, silent=False)
    for each in waiting:
        answer = each.get(timeout=20)
        assert answer[silent] is not None


def test_questions_without_an_answer_do_not_keep_a_consumer_from_being_restored(
    bench: Any, silent: str, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                transport.queue_stats([silent], bench.within(1))
            except MessageHubConnectionError:
                continue

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        before = consumer._consumer_channel
        with bench.raw() as connection:
            connection.channel().queue_delete(consumer.queue)
        assert eventually(lambda: bool(consumer.active) and consumer._consumer_channel is not before, timeout=10)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


def test_a_channel_whose_answer_never_came_is_closed(bench: Any, silent: str, eventually: Callable[..., bool]) -> None:
    transport = bench.transport()
    bench.consume(transport)
    connection = transport._consume_connection.recovering._connection
    for _ in range(5):
        with pytest.raises(MessageHubConnectionError):
            transport.queue_stats([silent], bench.within(0.3))
    silence(bench, silent, silent=False)
    assert eventually(lambda: len(connection._channels) == 1, timeout=20), "channels stay open"


def test_a_queue_is_declared_and_consumed_in_one_round_trip(bench: Any) -> None:
    transport = bench.transport()
    connection = transport._consume_connection
    first, second = topologies(bench, 2)
    transport.consume_many([first], bench.within(20))  # declares the exchange
    waits = []

    def counted(steps: Any) -> Any:
        for answer in steps:
            waits.append(answer)
            yield answer

    for number in range(2):  # a new queue; one that exists
        consumer = RabbitMQConsumer(connection, *second)
        connection.recovering.call(
            lambda there, consumer=consumer: counted(consumer.establish(there)), bench.within(20)
        )
        assert consumer.active
        assert len(waits) == number + 1
        consumer.close(bench.within(20))
