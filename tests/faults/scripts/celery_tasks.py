"""A Celery application whose client connects on import, before prefork forks its workers."""

from __future__ import annotations

import os

from celery import Celery
from faults.oracle import Ledger

from message_hub_sync import MessageHubClient

EVENT = os.environ["FAULT_EVENT"]
app = Celery("faults", broker=os.environ["FAULT_URL"].replace("amqp://", "pyamqp://"))
app.conf.task_default_queue = os.environ["FAULT_QUEUE"]
app.conf.broker_connection_retry_on_startup = True
ledger = Ledger(os.environ["FAULT_LEDGER"])
client = MessageHubClient("fault-celery", os.environ["FAULT_URL"])
client.publish_event("fault.loaded", {})
loaded_in = os.getpid()


@app.task(name="faults.publish")  # type: ignore[untyped-decorator, unused-ignore]
def publish() -> None:
    """Publish one event, in a forked worker."""
    ledger.write("forked" if os.getpid() != loaded_in else "not-forked", os.getpid())
    ledger.call(lambda id: client.publish_event(EVENT, {}, message_id=id))
