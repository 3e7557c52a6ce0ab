"""One suite over both transports: whatever passes here on ``memory://`` holds on RabbitMQ, and the reverse."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pika
import pytest

from message_hub_sync import MessageHubClient
from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.consuming.retry_policy import RETRY_DELAYS_MS
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import QueueSpec, Topology

_counter = itertools.count()


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def hub_url(request: pytest.FixtureRequest) -> str:
    """The hub a test talks to."""
    if request.param == "memory":
        return f"memory://contract-{next(_counter)}"
    url: str = request.getfixturevalue("rabbitmq")
    return url


class Hub:
    """Clients of one test, their names the test's own, so that tests share a broker without meeting."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._suffix = uuid4().hex[:6]
        self._clients: list[MessageHubClient] = []
        self._queues: set[str] = set()
        self._raw: Transport | None = None

    def name(self, service: str) -> str:
        """A service's full name in this test."""
        return f"{service}-{self._suffix}"

    def client(self, service: str, **options: Any) -> MessageHubClient:
        """A client of that service, closed at the end."""
        client = MessageHubClient(self.name(service), self.url, **options)
        self._clients.append(client)
        return client

    def raw(self) -> Transport:
        """The transport alone, to look into queues and to publish what no client would."""
        if self._raw is None:
            self._raw = _transport(ClientConfig(self.name("observer"), parse_addresses(self.url)))
        return self._raw

    def take(self, queue: str, timeout: float = 30) -> Delivery:
        """One message out of a queue."""
        spec = QueueSpec(queue)
        self._queues.add(queue)
        deadline = time.monotonic() + timeout
        consumer = self.raw().consume(Topology(spec), prefetch=1, deadline=deadline)
        try:
            delivery = consumer.deliveries.get(timeout=timeout)
            assert delivery is not None
            consumer.ack(delivery)
            return delivery
        finally:
            consumer.cancel(deadline)
            consumer.close(deadline)

    def put(self, queue: str, body: bytes, properties: Properties | None = None, *, exchange: str = "") -> None:
        """A message as any other AMQP client might send it; on RabbitMQ that is pika by itself.

        :param queue: the routing key, where an exchange is named.
        """
        properties = Properties() if properties is None else properties
        if self.url.startswith("memory:"):
            deadline = time.monotonic() + 5
            receipt = self.raw().publish(Outgoing(exchange, queue, body, properties, mandatory=True), deadline)
            assert receipt.wait(deadline) is PublishResult.CONFIRMED
            return
        fields = {field.name: getattr(properties, field.name) for field in dataclasses.fields(properties)}
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(exchange, queue, body, pika.BasicProperties(**fields), mandatory=True)

    def depth(self, queue: str) -> int | None:
        """Messages ready in a queue, ``None`` where it does not exist."""
        stats = self.raw().queue_stats([queue], time.monotonic() + 5)[queue]
        return None if stats is None else stats.depth

    def remove(self, *queues: str) -> None:
        """Have queues of others removed at the end."""
        self._queues.update(queues)

    def end(self) -> None:
        """Close the clients and remove their queues."""
        for client in self._clients:
            self._queues.update(client.get_health_status()["queues"])
            client.close(2)
        deadline = time.monotonic() + 5
        for queue in self._queues:
            names = [queue, f"{queue}.dead", *(f"{queue}.retry.{delay}" for delay in RETRY_DELAYS_MS)]
            for name in names:
                self.raw().delete(Topology(QueueSpec(name)), name, deadline)
        if self._raw is not None:
            self._raw.close(deadline)


@pytest.fixture
def hub(hub_url: str) -> Iterator[Hub]:
    """Clients for this test."""
    hub = Hub(hub_url)
    yield hub
    hub.end()
