"""A process ends in one of several ways while its client has connections, subscriptions and calls in flight."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient

url, ledger_path, service, event_type, way = sys.argv[1:]
ledger = Ledger(ledger_path)
client = MessageHubClient(service, url, close_timeout=2)


def handler(event: dict[str, Any], envelope: Any) -> None:
    ledger.handled(envelope.id)


def publish() -> None:
    ledger.call(lambda id: client.publish_event(event_type, {}, message_id=id))


client.subscribe([event_type], handler)
publish()
for number in range(3):
    threading.Thread(target=publish, name=f"message-hub-test-beside-{number}", daemon=True).start()
ledger.write("ready", os.getpid())
sys.stdin.readline()
threading.Thread(target=publish, name="message-hub-test-late", daemon=True).start()
if way == "atexit":
    atexit.register(publish)
elif way == "exit":
    sys.exit(7)
elif way == "raise":
    raise RuntimeError("not caught by anybody")
