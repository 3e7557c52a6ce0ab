"""A hub for one document's blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from message_hub_sync.testing import MessageHubTestFramework


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def hub_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The hub that the document's URL leads to: one of the test's own, or a virtual host."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("rabbitmq")
    with MessageHubTestFramework(url) as framework:
        yield framework.url
