"""A node of these tests' own, because they kill it, and a bench on which a transport is tried."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pika
import pytest
from waiting import eventually

from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.envelope.encode import encode_payload, message_properties
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq import RabbitMQTransport
from message_hub_sync.transport.topology import inbox_subscription


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitMQNode]:
    with RabbitMQNode(install=True) as node:
        yield node


class Bench:
    """Makes transports, closes them, and asks the broker behind their backs."""

    def __init__(self, node: RabbitMQNode, service: str) -> None:
        self.node = node
        self.service = service
        self._transports: list[RabbitMQTransport] = []

    @staticmethod
    def within(seconds: float = 30) -> float:
        return time.monotonic() + seconds

    def transport(self, url: str | list[str] | None = None, **settings: Any) -> RabbitMQTransport:
        address = parse_addresses(self.node.url if url is None else url, ssl_context=settings.pop("ssl_context", None))
        made = RabbitMQTransport(ClientConfig(**{"service_name": self.service, "address": address, **settings}))
        self._transports.append(made)
        return made

    def close(self) -> None:
        for transport in self._transports:
            transport.close(self.within(5))

    def message(self, text: str = "x", *, to: str | None = None, **changes: Any) -> Outgoing:
        destination = to or self.service
        properties = message_properties(source=self.service, destination=destination)
        for name, value in changes.items():
            setattr(properties, name, value)
        body = encode_payload({"text": text}, 1_000_000)
        return Outgoing("", f"{destination}.messages", body, properties, mandatory=True)

    def publish(self, transport: RabbitMQTransport, outgoing: Outgoing | None = None, **how: Any) -> Receipt:
        receipt = transport.publish(outgoing or self.message(), self.within(), **how)
        assert receipt.wait(self.within()) is not None
        return receipt

    def confirmed(self, transport: RabbitMQTransport, outgoing: Outgoing | None = None, **how: Any) -> None:
        receipt = self.publish(transport, outgoing, **how)
        assert receipt.result is PublishResult.CONFIRMED, receipt.reason

    def consume(self, transport: RabbitMQTransport, *, prefetch: int = 64) -> Consumer:
        return transport.consume(inbox_subscription(self.service), prefetch=prefetch, deadline=self.within())

    @staticmethod
    def take(consumer: Consumer, timeout: float = 30) -> Delivery:
        delivery = consumer.deliveries.get(timeout=timeout)
        assert delivery is not None
        return delivery

    def depth(self) -> int:
        """Messages ready and unacknowledged in the inbox, as the broker counts them."""
        for line in self.node.ctl("list_queues", "name", "messages").splitlines():
            name, _, count = line.partition("\t")
            if name == f"{self.service}.messages":
                return int(count)
        raise AssertionError("there is no inbox")

    def kill(self) -> None:
        """Kill the broker. It forgets no queue over it: RabbitMQ writes a new one down up to two seconds later,
        and one that is forgotten takes its confirmed messages along.
        """
        self.node.ctl("eval", "mnesia:sync_log().")
        self.node.kill()

    def raw(self) -> contextlib.closing[pika.BlockingConnection]:
        """pika as it comes, to prepare what the transport then finds."""
        return contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.node.url)))


@pytest.fixture
def bench(node: RabbitMQNode, request: pytest.FixtureRequest) -> Iterator[Bench]:
    # A service of its own for each test: what one leaves in queues is none of the next one's business.
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:60].strip("-")
    bench = Bench(node, f"{name}-{abs(hash(request.node.name)) % 10_000}")
    yield bench
    bench.close()
    node.start()  # where a test failed between killing it and starting it


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., bool]:
    return eventually


def in_thread(work: Callable[[], Any]) -> SimpleQueue[Any]:
    """Where the result of ``work``, or its exception, will be."""
    results: SimpleQueue[Any] = SimpleQueue()

    def run() -> None:
        try:
            results.put(work())
        except BaseException as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    return results


@pytest.fixture(name="in_thread")
def _in_thread() -> Callable[..., SimpleQueue[Any]]:
    return in_thread
