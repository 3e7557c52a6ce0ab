"""A WSGI application that subscribes when it is imported: in the master of a server that loads it before the fork."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from message_hub_sync import MessageHubClient

client = MessageHubClient("forked-service", os.environ["LATE_URL"])
subscription = client.subscribe(["fork.happened"], print, durable=False)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Use no client."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(subscription.active).encode()]
