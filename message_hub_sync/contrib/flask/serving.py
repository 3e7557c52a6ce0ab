"""The moment at which a process begins to serve requests.

A module that creates an app is also imported by ``flask routes``, a shell, tests, a reloader's parent and gunicorn's
master. None of them serves. So something must happen only in a process that does, and not before:

1. gunicorn: after a worker has loaded the app, or was forked with it (``--preload``).
2. Werkzeug's development server, which ``flask run`` and ``app.run()`` start: when it begins to accept connections.
3. Any other server: at the first request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakSet

from flask import Flask
from werkzeug.serving import BaseWSGIServer

__all__ = ["WhenServing"]


class WhenServing:
    """Calls ``action`` once, when the process begins to serve ``app``. A child of a serving process does not call it.

    Any thread may serve the first request.

    :param action: must return at once.
    """

    def __init__(self, app: Flask, action: Callable[[], None]) -> None:
        self._action = action
        # No lock: setdefault is atomic, and decides which thread calls the action. A forked child inherits it.
        self._begun: dict[str, object] = {}
        _waiting.add(self)
        _watch_werkzeug()
        _watch_gunicorn()
        app.before_request(self.begin)

    def begin(self) -> None:
        """The process begins to serve, or serves already."""
        mine = object()
        if not self._begun and self._begun.setdefault("begun", mine) is mine:
            self._action()


# No lock: filled while apps are created, and copied before iterating.
_waiting: WeakSet[WhenServing] = WeakSet()


def _begin_all() -> None:
    for each in list(_waiting):
        each.begin()


def _watch_werkzeug() -> None:
    # The server has no hook, so its method is wrapped. It is a server for development only.
    serve_forever: Any = BaseWSGIServer.serve_forever
    if hasattr(serve_forever, "__wrapped__"):
        return

    @wraps(serve_forever)
    def begin_and_serve(self: BaseWSGIServer, *args: Any, **kwargs: Any) -> Any:
        _begin_all()
        return serve_forever(self, *args, **kwargs)

    BaseWSGIServer.serve_forever = begin_and_serve  # type: ignore[method-assign]


def _watch_gunicorn() -> None:
    # The hook of gunicorn is a setting of its configuration file. A worker reads it from its configuration after it
    # has loaded the app, so an attribute of the class reaches workers with and without --preload, and those that a
    # reload of the configuration (SIGHUP) starts.
    config = getattr(sys.modules.get("gunicorn.config"), "Config", None)
    if config is None or "gunicorn.arbiter" not in sys.modules or "post_worker_init" in vars(config):
        return

    def post_worker_init(self: Any) -> Callable[[Any], None]:
        of_the_user = self.settings["post_worker_init"].get()

        def begin(worker: Any) -> None:
            of_the_user(worker)
            _begin_all()

        return begin

    config.post_worker_init = property(post_worker_init)
