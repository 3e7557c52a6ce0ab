"""Calls a client from code that interrupts its calls, on every thread where Python may run such code.

``nested_calls.py URL HOW CALLS COUNT``: ``HOW`` is what interrupts, ``CALLS`` what it calls. It ends when ``COUNT``
nested calls were made, and prints how each of them ended. A call that hangs ends the program with all stacks.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import gc
import itertools
import logging.handlers
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from message_hub_sync import MessageHubClient, MessageHubError, MessageHubReentryError

#: No call of this program may take so long. The deadlines of the calls are longer, so a wait until one is found.
TOO_LONG = 45.0
DEADLINE = 90.0

url, how, calls, count = sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4])
suffix = os.urandom(3).hex()
responder_name = f"image-service-{suffix}"


def new_client(name: str) -> MessageHubClient:
    return MessageHubClient(name, url, connect_timeout=DEADLINE, delivery_timeout=DEADLINE, close_timeout=DEADLINE)


client = new_client(f"campaign-service-{suffix}")
responder = new_client(responder_name)
numbers = itertools.count()
outcomes: collections.Counter[str] = collections.Counter()
enough = threading.Event()
here = threading.local()


def subscribe_and_cancel() -> None:
    client.subscribe(["campaign.paused"], lambda event: None, durable=False).cancel()


def close_another() -> None:
    other = new_client(f"other-{suffix}")
    other.publish_event("campaign.updated", {})
    other.close()


CALLS: dict[str, Callable[[], Any]] = {
    "publish": lambda: client.publish_event("campaign.updated", {}),
    "bulk": lambda: client.publish_events([("campaign.updated", {})] * 3),
    "send": lambda: client.send_message(responder_name, {}),
    "request": lambda: client.request(responder_name, {}, timeout=DEADLINE),
    "subscribe": subscribe_and_cancel,
    "health": client.get_health_status,
    "stats": client.get_queue_stats,
    "close": close_another,
}


def nested() -> None:
    # Not inside itself: its own allocations and log records would never end. Not on a thread of the responder, which
    # would ask itself and wait for itself to answer.
    if getattr(here, "inside", False) or responder_name in threading.current_thread().name or enough.is_set():
        return
    here.inside = True
    number = next(numbers)
    call = calls[number % len(calls)]
    began = time.monotonic()
    try:
        CALLS[call]()
        outcome = "done"
    except MessageHubReentryError:
        outcome = "refused"
    except BaseException as error:
        outcome = f"failed with {error!r}"
    finally:
        here.inside = False
    if time.monotonic() - began > TOO_LONG:
        outcome += ", and took too long"
    outcomes[f"{call} {outcome}"] += 1
    if number + 1 >= count:
        enough.set()


# --- what interrupts -------------------------------------------------------------------------------


def by_signals(handler: Callable[[], None]) -> None:
    signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)


def signal_in_signal() -> None:
    signal.raise_signal(signal.SIGUSR1)
    nested()


class Garbage:
    """Part of a cycle, so that only a garbage collection finds it: in whichever thread it runs."""

    def __init__(self, own: Any) -> None:
        self.me = self
        self.own = own

    def __del__(self) -> None:
        collected.put(None)
        if how == "gc":
            nested()


collected: SimpleQueue[None] = SimpleQueue()  # __del__ may interrupt this queue itself, and not an Event
kept: set[Any] = set()


def produce_garbage() -> None:
    gc.set_threshold(40)
    while not enough.is_set():
        garbage = Garbage(None)
        if how == "weakref":
            kept.add(weakref.ref(garbage, lambda reference: (kept.discard(reference), nested())))
        del garbage
        with contextlib.suppress(Empty):
            collected.get(timeout=0.5)  # one at a time: a thread must not be busy with garbage only


class Publishing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        nested()


def on_audit(event: str, arguments: Any) -> None:
    if event.startswith(("socket.", "_thread.", "sys._getframe", "open", "os.")):
        nested()


def start_interrupting() -> None:
    if how == "signal":
        by_signals(nested)
    elif how == "signal in signal":
        signal.signal(signal.SIGUSR1, lambda *_: nested())
        by_signals(signal_in_signal)
    elif how in ("gc", "weakref"):
        threading.Thread(target=produce_garbage, daemon=True).start()
    elif how == "logging":
        records: SimpleQueue[Any] = SimpleQueue()
        logging.handlers.QueueListener(records, Publishing()).start()
        logger = logging.getLogger("message_hub_sync")
        logger.addHandler(logging.handlers.QueueHandler(records))
        logger.setLevel(logging.DEBUG)
    elif how == "audit":
        sys.addaudithook(on_audit)
    elif how == "timer":
        sys.setswitchinterval(0.00001)
        tick()
    else:
        sys.exit(f"unknown: {how}")


def tick() -> None:
    nested()
    if not enough.is_set():
        timer = threading.Timer(0.001, tick)
        timer.daemon = True
        timer.start()


# --- what is interrupted ---------------------------------------------------------------------------


def checked(call: Callable[[], Any]) -> Any:
    """Make a call, which must succeed in time."""
    began = time.monotonic()
    result = call()
    if time.monotonic() - began > TOO_LONG:
        outcomes["an outer call took too long"] += 1
    return result


def one_round() -> None:
    assert checked(lambda: client.publish_event("campaign.started", {}))
    assert len(checked(lambda: client.publish_events([("campaign.started", {})] * 4))) == 4
    assert checked(lambda: client.request(responder_name, {}, timeout=DEADLINE)).payload == {"answer": True}
    subscription = checked(lambda: client.subscribe(["campaign.ended"], lambda event: None, durable=False))
    subscription.wait(0.01)
    checked(subscription.cancel)
    checked(client.get_health_status)
    with new_client(f"short-{suffix}") as short:
        checked(lambda: short.publish_event("campaign.started", {}))


def main() -> None:
    faulthandler.dump_traceback_later(150, exit=True)
    responder.subscribe_messages(lambda message: {"answer": True})
    subscription = client.subscribe(["campaign.started"], lambda event: None)
    start_interrupting()
    try:
        while not enough.is_set():
            one_round()
    finally:
        enough.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
    one_round()
    checked(subscription.delete)
    for each in (client, responder):
        checked(each.close)
    sys.stdout.writelines(f"{times} {outcome}\n" for outcome, times in sorted(outcomes.items()))


if __name__ == "__main__":
    try:
        main()
    except MessageHubError as error:
        sys.exit(f"an outer call failed: {error!r}")
