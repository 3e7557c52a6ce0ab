"""An app with the hub, over an embedded hub of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from message_hub_sync.contrib.flask import MessageHub

MakeApp = Callable[..., Flask]

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGE_HUB_TEST_URL", raising=False)


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Creates an app with a hub; at the end its client is closed."""
    made: list[tuple[MessageHub, Flask]] = []

    def make(hub: MessageHub | None = None, /, **config: Any) -> Flask:
        app = Flask(f"app_{next(_numbers)}")
        app.config.update(
            MESSAGE_HUB_SERVICE_NAME="quest-service", MESSAGE_HUB_URL=f"memory://flask-{next(_numbers)}", TESTING=True
        )
        app.config.update(config)
        used = MessageHub() if hub is None else hub
        used.init_app(app)
        made.append((used, app))
        return app

    yield make
    for hub, app in made:
        with app.app_context():
            hub.client.close()
