"""Programs run as users run them, against a hub inside them and against a node of this suite's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitMQNode]:
    """A throwaway node: examples bear the names of real services, and must meet none."""
    with RabbitMQNode(install=True) as node:
        yield node


@pytest.fixture
def vhost(node: RabbitMQNode) -> Iterator[str]:
    """The name of a virtual host for one test."""
    name = f"examples-{next(_numbers)}"
    node.create_vhost(name)
    yield name
    node.delete_vhost(name)


@pytest.fixture
def broker_url(node: RabbitMQNode, vhost: str) -> str:
    """The URL of a virtual host for one test."""
    return node.vhost_url(vhost)


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def hub_url(request: pytest.FixtureRequest) -> str:
    """A hub for one test: one inside the program that is run, or a virtual host of the node."""
    if request.param == "memory":
        return "memory://"
    url: str = request.getfixturevalue("broker_url")
    return url
