"""Clients of an embedded hub that exists for one test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Consumer, Delivery, Outgoing, QueueStats, Receipt
from message_hub_sync.transport.memory import MemoryTransport, VirtualClock, drop_hub, open_hub
from message_hub_sync.transport.topology import QueueSpec, Topology


def soon() -> float:
    return time.monotonic() + 5


class Client:
    """A transport, with the calls that tests repeat."""

    def __init__(self, hub: str) -> None:
        self.transport = MemoryTransport(ClientConfig("tester", MemoryAddress(hub)))

    def publish(
        self, key: str, body: bytes = b"{}", *, exchange: str = "", mandatory: bool = False, **properties: Any
    ) -> Receipt:
        outgoing = Outgoing(exchange, key, body, Properties(**properties), mandatory)
        return self.transport.publish(outgoing, soon())

    def declare(self, name: str, **queue: Any) -> None:
        self.transport.declare_queue(QueueSpec(name, **queue), soon())

    def consume(self, topology: str | Topology, prefetch: int = 0) -> Consumer:
        if isinstance(topology, str):
            topology = Topology(QueueSpec(topology))
        return self.transport.consume(topology, prefetch=prefetch, deadline=soon())

    def depth(self, name: str) -> int | None:
        found: QueueStats | None = self.transport.queue_stats([name], soon())[name]
        return None if found is None else found.depth

    def delete(self, name: str) -> None:
        self.transport.delete(Topology(QueueSpec(name)), name, soon())

    def close(self) -> None:
        self.transport.close(soon())


def taken(consumer: Consumer) -> list[Delivery]:
    """What has been delivered and not been taken yet: the hub delivers before its calls return."""
    found = []
    while not consumer.deliveries.empty():
        delivery = consumer.deliveries.get_nowait()
        assert delivery is not None
        found.append(delivery)
    return found


def bodies(consumer: Consumer) -> list[bytes]:
    return [delivery.body for delivery in taken(consumer)]


@pytest.fixture(name="taken")
def _taken() -> Callable[[Consumer], list[Delivery]]:
    return taken


@pytest.fixture(name="bodies")
def _bodies() -> Callable[[Consumer], list[bytes]]:
    return bodies


@pytest.fixture
def hub() -> Iterator[str]:
    name = uuid4().hex
    yield name
    drop_hub(name)


@pytest.fixture
def clock(hub: str) -> VirtualClock:
    virtual = VirtualClock()
    open_hub(hub, virtual)
    return virtual


@pytest.fixture
def connect(hub: str) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def one_more(name: str = hub) -> Client:
        made.append(Client(name))
        return made[-1]

    yield one_more
    for client in made:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()
