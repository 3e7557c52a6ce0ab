"""What differs between the versions of RabbitMQ, as docs/brokers.md tells it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import pika
import pytest
from collector import Collector

from message_hub_sync import Message, MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def impatient() -> Iterator[RabbitMQNode]:
    """A node that takes back what was not acknowledged within three seconds. It looks once a second."""
    with RabbitMQNode(install=True, config={"consumer_timeout": "3000"}) as node:
        node.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
        yield node


@pytest.fixture
def version(node: RabbitMQNode) -> tuple[int, ...]:
    return tuple(map(int, node.version.split(".")[:2]))


def test_priorities_of_a_quorum_queue(node: RabbitMQNode, version: tuple[int, ...], collected: Collector) -> None:
    """From 4.3 on all ten count, and a message without a priority counts as 4; in 4.0 to 4.2, 5 and above go first."""

    def receive(message: Message) -> None:
        collected(message.payload["n"])

    with MessageHubClient("priorities-service", node.url, queue_type="quorum") as client:
        client.subscribe_messages(receive).cancel()
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(node.url))) as raw:
            raw.channel().basic_publish("", "priorities-service.messages", b'{"n": "none"}')
        for priority in (0, 3, 5, 9):
            client.send_message("priorities-service", {"n": priority}, priority=priority)
        client.subscribe_messages(receive, prefetch=1)
        got = collected.wait(5, timeout=30)
    if version >= (4, 3):
        assert got == [9, 5, "none", 3, 0]
    elif version >= (4, 0):
        assert got != ["none", 0, 3, 5, 9]
        assert sorted(map(str, got[:2])) == ["5", "9"]
    else:
        assert got == ["none", 0, 3, 5, 9]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_handler_that_takes_longer_than_the_consumer_timeout(impatient: RabbitMQNode, queue_type: str) -> None:
    """The broker gives its message out again; from 4.3 on only that of a quorum queue. No other one is lost."""
    version = tuple(map(int, impatient.version.split(".")[:2]))
    taken_back = version < (4, 3) or queue_type == "quorum"
    collected, told = Collector(), Told("timed out", "consumer timeout")

    def receive(message: Message) -> None:
        collected((message.payload["n"], message.redelivered))
        if len(collected.items) == 1:
            told.wait(30 if taken_back else 10)

    service = f"slow-{queue_type}-service"
    with told, MessageHubClient(service, impatient.url, queue_type=queue_type) as client:  # type: ignore[arg-type]
        subscription = client.subscribe_messages(receive)
        for number in range(3):
            client.send_message(service, {"n": number}, ttl=None)
        got = collected.until(
            lambda items: {n for n, _ in items} == {0, 1, 2} and len(items) >= 3 + taken_back, timeout=60
        )
        assert subscription.active
    assert told.is_set() is taken_back
    assert ((0, True) in got) is taken_back


class Told(threading.Event):
    """Set once a log line has one of these texts, inside its ``with`` block."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._handler = logging.Handler()
        self._handler.emit = lambda record: any(text in record.getMessage() for text in texts) and self.set()  # type: ignore[assignment, method-assign]

    def __enter__(self) -> Told:
        logging.getLogger("message_hub_sync").addHandler(self._handler)
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("message_hub_sync").removeHandler(self._handler)
