"""The pytest plugin of message_hub_sync: fixtures for tests of services that use the hub.

It is a module beside the package, because every pytest run in an environment loads it, also runs that do not use the
hub. Importing the package here would cost each of these runs a fifth of a second.
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
    """Add the option ``--message-hub-url``."""
    parser.getgroup("message_hub", "Message Hub").addoption(
        "--message-hub-url",
        metavar="URL",
        help="the hub for the fixtures message_hub and message_hub_client (default: memory://, an embedded hub for "
        "each test); an amqp:// URL is used for the fixture rabbitmq_url, too, instead of a throwaway node",
    )


def _asked_url(config: pytest.Config) -> str | None:
    # With a default, because a conftest file may import these fixtures without loading the plugin and its option.
    found: Any = config.getoption("--message-hub-url", default=None)
    return found or None


@pytest.fixture
def message_hub(pytestconfig: pytest.Config) -> Iterator[MessageHubTestFramework]:
    """A started test framework on a separate hub for this test: ``memory://``, or the hub of ``--message-hub-url``."""
    from message_hub_sync.testing import MessageHubTestFramework

    with MessageHubTestFramework(_asked_url(pytestconfig) or "memory://") as framework:
        yield framework


@pytest.fixture
def message_hub_service_name() -> str:
    """The name of the service under test, for ``message_hub_client``. Override it in a ``conftest.py``."""
    return "service-under-test"


@pytest.fixture
def message_hub_client(message_hub: MessageHubTestFramework, message_hub_service_name: str) -> MessageHubClient:
    """A client of the service under test, connected to the hub of ``message_hub``. It is closed after the test."""
    return message_hub.client(message_hub_service_name)


@pytest.fixture(scope="session")
def rabbitmq_node() -> Iterator[RabbitMQNode]:
    """A throwaway RabbitMQ node. It is started once and stopped after the last test."""
    from message_hub_sync.testing import RabbitMQNode

    with RabbitMQNode() as node:
        yield node


@pytest.fixture
def rabbitmq_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a RabbitMQ, with a separate virtual host for this test.

    The broker is the first of these: ``--message-hub-url``, ``MESSAGE_HUB_TEST_URL``, ``rabbitmq_node``. If no virtual
    host can be created there, the one of the broker's URL is used.
    """
    from message_hub_sync.testing import MessageHubTestFramework

    asked = _asked_url(request.config)
    given = asked if asked and asked.startswith("amqp") else os.environ.get(_URL_VARIABLE)
    url: str = given or request.getfixturevalue("rabbitmq_node").url
    with MessageHubTestFramework(url) as framework:
        yield framework.url
