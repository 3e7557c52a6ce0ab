"""The pytest plugin of message_hub_sync: fixtures for tests of services that use the hub.

A module beside the package, because every pytest run in an environment loads it, also those that have nothing to do
with the hub: importing the package here would cost each of them a fifth of a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from message_hub_sync import MessageHubClient
    from message_hub_sync.testing import MessageHubTestFramework, RabbitMQNode

__all__ = [
    "message_hub",
    "message_hub_client",
    "message_hub_service_name",
    "pytest_addoption",
    "rabbitmq_node",
    "rabbitmq_url",
]

_URL_VARIABLE = "MESSAGE_HUB_TEST_URL"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--message-hub-url``."""
    parser.getgroup("message_hub", "Message Hub").addoption(
        "--message-hub-url",
        metavar="URL",
        help="the hub of the message_hub and message_hub_client fixtures (default: memory://, an embedded hub for "
        "each test); an amqp:// URL is the broker of rabbitmq_url too, instead of a throwaway node",
    )


def _asked_url(config: pytest.Config) -> str | None:
    # Without the default, conftest files that import these fixtures themselves would need the option.
    found: Any = config.getoption("--message-hub-url", default=None)
    return found or None


@pytest.fixture
def message_hub(pytestconfig: pytest.Config) -> Iterator[MessageHubTestFramework]:
    """A started test framework, on a hub of this test's own: ``memory://``, or what ``--message-hub-url`` says."""
    from message_hub_sync.testing import MessageHubTestFramework

    with MessageHubTestFramework(_asked_url(pytestconfig) or "memory://") as framework:
        yield framework


@pytest.fixture
def message_hub_service_name() -> str:
    """The name of the service under test, for ``message_hub_client``; a conftest overrides it."""
    return "service-under-test"


@pytest.fixture
def message_hub_client(message_hub: MessageHubTestFramework, message_hub_service_name: str) -> MessageHubClient:
    """A client of the service under test, connected to the hub of ``message_hub``, closed after the test."""
    return message_hub.client(message_hub_service_name)


@pytest.fixture(scope="session")
def rabbitmq_node() -> Iterator[RabbitMQNode]:
    """A throwaway RabbitMQ node, started once, gone after the last test."""
    from message_hub_sync.testing import RabbitMQNode

    with RabbitMQNode() as node:
        yield node


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a RabbitMQ with a virtual host of this test's own.

    The broker is that of ``--message-hub-url``, else that of ``MESSAGE_HUB_TEST_URL``, else ``rabbitmq_node``. Where no
    virtual host can be made on a given broker, it is the one of its URL.
    """
    from message_hub_sync.testing import MessageHubTestFramework

    asked = _asked_url(request.config)
    given = asked if asked and asked.startswith("amqp") else os.environ.get(_URL_VARIABLE)
    url: str = given or request.getfixturevalue("rabbitmq_node").url
    with MessageHubTestFramework(url) as framework:
        yield framework.url
