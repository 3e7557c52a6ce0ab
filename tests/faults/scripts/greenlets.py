"""200 greenlets publish with one client. A timeout is thrown into one of them during its call."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from faults.oracle import Ledger  # noqa: E402

from message_hub_sync import MessageHubClient, MessageHubDeliveryError  # noqa: E402

url, ledger_path, service, event_type = sys.argv[1:]
ledger = Ledger(ledger_path)


def handler(event: dict[str, Any], envelope: Any) -> None:
    ledger.handled(envelope.id)


client = MessageHubClient(service, url)
client.subscribe([event_type], handler)


def publish() -> Any:
    return ledger.call(lambda id: client.publish_event(event_type, {}, message_id=id), thrown=(gevent.Timeout,))


def send_nowhere() -> None:
    error = ledger.call(lambda id: client.send_message("nobody-at-all", {}, message_id=id))
    assert isinstance(error, MessageHubDeliveryError), error
    assert error.outcome == "rejected"


def publish_ten() -> None:
    for _ in range(10):
        assert publish() is None


greenlets = [gevent.spawn(publish_ten) for _ in range(200)]
gevent.joinall(greenlets, timeout=60, raise_error=True)
assert all(greenlet.ready() for greenlet in greenlets)

interrupted = 0
for number in range(200):
    # Delays from zero to about the duration of a call, so that every moment of a call is interrupted.
    timeout = gevent.Timeout(0.0001 * (number % 20))
    timeout.start()
    try:
        publish()
    except gevent.Timeout:
        interrupted += 1
    finally:
        timeout.close()
    send_nowhere()
    assert publish() is None
ledger.write("interrupted", interrupted)
assert interrupted
ledger.write("done", 0)
gevent.get_hub().threadpool.apply(sys.stdin.read)
client.close()
