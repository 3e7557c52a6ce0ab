"""Uses all file descriptors but a few, then closes them again."""

from __future__ import annotations

import os
import resource
import sys
import time

from faults.oracle import Ledger

from message_hub_sync import MessageHubClient, MessageHubConnectionError, MessageHubError

url, ledger_path, service, event_type = sys.argv[1:]
ledger = Ledger(ledger_path)
client = MessageHubClient(service, url, connect_timeout=2, delivery_timeout=2)
other = MessageHubClient(f"{service}-other", url, connect_timeout=2, delivery_timeout=2)


def publish(of: MessageHubClient = client) -> MessageHubError | None:
    return ledger.call(lambda id: of.publish_event(event_type, {}, message_id=id))


assert publish() is None
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass

assert publish() is None, "an open connection needs no new descriptor"
started = time.monotonic()
error = publish(other)
assert isinstance(error, MessageHubConnectionError), error
try:
    client.subscribe([event_type], print)
except MessageHubConnectionError:
    pass
else:
    raise AssertionError("it consumes without a descriptor")
assert time.monotonic() - started < 30

for descriptor in taken:
    os.close(descriptor)
assert publish(other) is None
client.subscribe([event_type], lambda event, envelope: ledger.handled(envelope.id))
assert publish() is None
ledger.write("recovered", os.getpid())
sys.stdin.read()
client.close()
other.close()
