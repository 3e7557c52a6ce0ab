"""Runs each handler inside the app context, so that extensions work there as they do in a view."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from flask import Flask

from message_hub_sync.middleware import Middleware, Received

__all__ = ["AppContextMiddleware"]


class AppContextMiddleware(Middleware):
    """Pushes a new app context around the handlers of each delivery.

    When it is popped, Flask runs the teardown functions. Flask-SQLAlchemy removes the session there, so each delivery
    has a session of its own.
    """

    def __init__(self, app: Flask) -> None:
        # The extension finds the client by its app, in a weak dictionary: the client must not keep the app alive.
        self._app = weakref.ref(app)

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        app = self._app()
        if app is None:  # its last reference was dropped while this delivery was on its way
            raise RuntimeError("the Flask app of this handler does not exist any more")
        with app.app_context():
            return call_next()
