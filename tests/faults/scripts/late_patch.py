"""A WSGI application, made by a factory, whose client consumes and publishes at the first request."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterable
from typing import Any

from message_hub_sync import MessageHubClient, MessageHubConfigurationError


def make() -> Callable[..., Iterable[bytes]]:
    """The factory: gunicorn calls it in its master with ``--preload``."""
    client = MessageHubClient("late-service", os.environ["LATE_URL"])
    handled: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            client.subscribe(["late.patched"], handled.put, durable=False)
            client.publish_event("late.patched", {})
            text = f"handled {handled.get(timeout=20)}"
        except MessageHubConfigurationError as error:
            text = f"refused: {error}"
        client.close()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]

    return application
