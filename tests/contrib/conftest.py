"""A node of this suite's own: it asks the node for the connections of each process."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator

import pytest

from message_hub_sync import MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

QUEUE = "quest-service.quest.started"

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitMQNode]:
    with RabbitMQNode(install=True) as node:
        yield node


class Hub:
    """A virtual host for one test."""

    def __init__(self, node: RabbitMQNode, name: str) -> None:
        self.node = node
        self.name = name
        self.url = node.vhost_url(name)
        self._asking = MessageHubClient("asking-service", self.url, connect_timeout=30)

    def connected_pids(self) -> set[int]:
        """The processes of quest-service that are connected."""
        found = set()
        for line in self.node.ctl("list_connections", "vhost", "client_properties", "--no-table-headers").splitlines():
            connected_to, _, properties = line.partition("\t")
            name = re.search(r'"connection_name","quest-service/\w+/(\d+)"', properties)
            if connected_to == self.name and name is not None:
                found.add(int(name.group(1)))
        return found

    def consumers(self) -> int:
        """The consumers of the queue of the event that quest-service handles."""
        transport = self._asking._lifecycle.session().transport
        stats = transport.queue_stats([QUEUE], time.monotonic() + 30)[QUEUE]
        return 0 if stats is None else stats.consumers

    def close(self) -> None:
        self._asking.close()


@pytest.fixture
def hub(node: RabbitMQNode) -> Iterator[Hub]:
    name = f"contrib-{next(_numbers)}"
    node.create_vhost(name)
    hub = Hub(node, name)
    yield hub
    hub.close()
    node.delete_vhost(name)


@pytest.fixture
def other_service(hub: Hub) -> Iterator[MessageHubClient]:
    with MessageHubClient("clock-service", hub.url, connect_timeout=30, delivery_timeout=30) as client:
        yield client
