"""A consumer whose process is killed by one of its messages, as by a fault in a C extension or a lack of memory."""

from __future__ import annotations

import os
import sys
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient, RetryPolicy

url, ledger_path, service, event_type, prefetch = sys.argv[1:]
ledger = Ledger(ledger_path)


def handler(event: dict[str, Any], envelope: Any) -> None:
    if event["deadly"]:
        ledger.write("crashing", envelope.id)
        os._exit(9)
    ledger.handled(envelope.id)


client = MessageHubClient(service, url, retry=RetryPolicy(attempts=3))
ledger.write("ready", os.getpid())
client.subscribe([event_type], handler, prefetch=int(prefetch))
sys.stdin.read()
client.close()
