"""A consumer whose process is killed by some of its messages, as by a fault in a C extension or a lack of memory."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient, Middleware, Received, RetryPolicy

parser = argparse.ArgumentParser()
parser.add_argument("url")
parser.add_argument("ledger")
parser.add_argument("service")
parser.add_argument("event")
parser.add_argument("--prefetch", type=int, default=64)
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--attempts", type=int, default=4)
parser.add_argument("--seconds", type=float, default=0)
options = parser.parse_args()
ledger = Ledger(options.ledger)


def crash(reason: object) -> None:
    ledger.write("crashing", reason)
    os._exit(9)


class Fragile(Middleware):
    """Crashes on a message without an id, which no handler gets."""

    def arrived(self, received: Received) -> None:
        if not received.properties.message_id:
            crash("without an id")


def handler(event: dict[str, Any], envelope: Any) -> None:
    if event.get("deadly"):
        crash(envelope.id)
    if options.seconds:
        time.sleep(options.seconds)  # the work of this handler
    ledger.handled(envelope.id)


stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
client = MessageHubClient(
    options.service, options.url, retry=RetryPolicy(attempts=options.attempts), middleware=[Fragile()]
)
client.subscribe([options.event], handler, prefetch=options.prefetch, workers=options.workers)
ledger.write("ready", os.getpid())


def until_stdin_ends() -> None:
    sys.stdin.read()
    stop.set()


threading.Thread(target=until_stdin_ends, name="message-hub-test-stdin", daemon=True).start()
stop.wait()
client.close()
