"""A signal handler raises during calls, again and again. No call may get the answer of an earlier one."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from types import FrameType
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient, MessageHubDeliveryError

url, ledger_path, service, event_type, seconds = sys.argv[1:]
ledger = Ledger(ledger_path)
dice = random.Random(1)


class Interrupted(Exception):
    """The exception that the signal handler raises."""


def interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def handler(event: dict[str, Any], envelope: Any) -> None:
    ledger.handled(envelope.id)


client = MessageHubClient(service, url)
client.subscribe([event_type], handler)
client.connect()
signal.signal(signal.SIGALRM, interrupt)


def publish() -> Any:
    return ledger.call(
        lambda id: interruptible(lambda: client.publish_event(event_type, {}, message_id=id)), thrown=(Interrupted,)
    )


def interruptible(work: Any) -> Any:
    """Send a signal at a random moment of ``work``, but never while the ledger is written."""
    signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.00001, 0.003))
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


interrupted = calls = 0
ends = time.monotonic() + float(seconds)
# Each interrupted write ends the connection, and reconnecting includes a pause: this takes longer on a slow machine.
while time.monotonic() < ends or (calls < 60 and time.monotonic() < ends + 15):
    calls += 1
    try:
        error = publish()
        assert error is None or (isinstance(error, MessageHubDeliveryError) and error.outcome == "unknown"), error
    except Interrupted:
        interrupted += 1
    error = ledger.call(lambda id: client.send_message("nobody-at-all", {}, message_id=id))
    assert isinstance(error, MessageHubDeliveryError), error
    assert error.outcome == "rejected", error
    error = ledger.call(lambda id: client.publish_event(event_type, {}, message_id=id))
    assert error is None, error
assert interrupted > calls / 10, (interrupted, calls)
ledger.write("interrupted", os.getpid())
sys.stdin.read()
client.close()
