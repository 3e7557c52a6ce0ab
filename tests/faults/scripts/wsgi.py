"""A WSGI application whose client connects on import, before the server forks its workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient

EVENT = os.environ["FAULT_EVENT"]
ledger = Ledger(os.environ["FAULT_LEDGER"])
client = MessageHubClient("fault-wsgi", os.environ["FAULT_URL"])
client.publish_event("fault.loaded", {})  # connects, with an I/O thread that does not exist in forked workers
loaded_in = os.getpid()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Publish one event per request. The response names the process, and whether it was forked."""
    error = ledger.call(lambda id: client.publish_event(EVENT, {}, message_id=id))
    start_response("200 OK" if error is None else "503 Service Unavailable", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {os.getpid() != loaded_in} {error}".encode()]
