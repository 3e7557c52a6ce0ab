"""Forks after connecting. Parent and children publish at the same time, and the parent continues to consume."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient

url, ledger_path, service, event_type, children, calls = sys.argv[1:]
ledger = Ledger(ledger_path)


def handler(event: dict[str, Any], envelope: Any) -> None:
    ledger.handled(envelope.id)


client = MessageHubClient(service, url)
subscription = client.subscribe([event_type], handler)
client.publish_event("fault.before_the_fork", {})


def publish() -> None:
    for _ in range(int(calls)):
        ledger.call(lambda id: client.publish_event(event_type, {}, message_id=id))


def child() -> int:
    """Publish in a forked child, also in another thread. Returns the exit code of the child."""
    if subscription.active:
        return 3  # a child must not have the parent's consumers
    another = threading.Thread(target=publish, name="message-hub-test-child")
    another.start()
    publish()
    another.join()
    if os.getpid() % 2:
        client.close()
    return 0


# Other threads hold the client's locks while the process forks.
stop = threading.Event()


def keep_publishing() -> None:
    while not stop.is_set():
        ledger.call(lambda id: client.publish_event(event_type, {}, message_id=id))


threads = [threading.Thread(target=keep_publishing, name=f"message-hub-test-parent-{n}") for n in range(3)]
for thread in threads:
    thread.start()
pids = []
for _ in range(int(children)):
    pid = os.fork()
    if pid == 0:
        code = 4
        try:
            code = child()
        finally:
            os._exit(code)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
stop.set()
for thread in threads:
    thread.join()
publish()
ledger.write("published", *codes)
sys.stdin.read()
client.close()
sys.exit(0 if codes == [0] * len(codes) and subscription is not None else 1)
