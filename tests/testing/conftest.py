"""A framework of each test's own, on the embedded hub and on RabbitMQ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from message_hub_sync.testing import MessageHubTestFramework

# By name, so that they are there in a source tree that is not installed, where no entry point is.
from message_hub_sync_pytest import (  # noqa: F401
    message_hub,
    message_hub_client,
    message_hub_service_name,
    rabbitmq_node,
    rabbitmq_url,
)

_numbers = itertools.count()


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def hub_url(request: pytest.FixtureRequest) -> str:
    """The hub that a test talks to; the broker's default virtual host, which the framework has to leave clean."""
    if request.param == "memory":
        return f"memory://testing-{next(_numbers)}"
    url: str = request.getfixturevalue("rabbitmq")
    return url


@pytest.fixture
def framework(hub_url: str) -> Iterator[MessageHubTestFramework]:
    """A framework over either transport."""
    with MessageHubTestFramework(hub_url, isolated=False) as framework:
        yield framework


@pytest.fixture
def memory() -> Iterator[MessageHubTestFramework]:
    """A framework on an embedded hub of its own."""
    with MessageHubTestFramework() as framework:
        yield framework


@pytest.fixture
def virtual() -> Iterator[MessageHubTestFramework]:
    """The same, its clock standing still."""
    with MessageHubTestFramework(virtual_clock=True) as framework:
        yield framework
