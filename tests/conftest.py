"""Fixtures for all tests: a RabbitMQ, provided once, and a collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from collector import Collector

from message_hub_sync.testing.rabbitmq_node import provide_rabbitmq


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[str]:
    """The URL of a RabbitMQ: ``MESSAGE_HUB_TEST_URL``, else a throwaway node, else an error with instructions."""
    with provide_rabbitmq() as url:
        yield url


@pytest.fixture
def collected() -> Collector:
    """A handler that collects what it gets. The test waits on it."""
    return Collector()
