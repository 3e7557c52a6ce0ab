"""An app for each test, on a hub and a database in memory. Tests can run in parallel (pytest-xdist)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from quests import create_app
from quests.extensions import db, hub

from message_hub_sync.testing import MessageHubTestFramework


@pytest.fixture
def framework() -> Iterator[MessageHubTestFramework]:
    # eager: handlers run in the thread of the test, before the call that publishes returns.
    with MessageHubTestFramework(eager=True) as framework:
        yield framework


@pytest.fixture
def app(framework: MessageHubTestFramework) -> Iterator[Flask]:
    app = create_app(TESTING=True, MESSAGE_HUB_URL=framework.url, SQLALCHEMY_DATABASE_URI="sqlite://")
    with app.app_context():
        db.create_all()
        hub.client.include(hub)
    yield app
    with app.app_context():
        hub.client.close()
