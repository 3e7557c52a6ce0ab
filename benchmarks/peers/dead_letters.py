"""The dead-letter queue of a measurement, filled before the watch starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pika

from benchmarks.work import Task, encoded, envelope, payload_of

__all__ = ["dead_letters"]

#: As the consumer of this library adds them.
_FAILURE = {
    "x-original-exchange": "",
    "x-reason": "failed 4 times",
    "x-attempts": 4,
    "x-error-type": "KeyError",
    "x-error-traceback": "x" * 600,
    "x-first-failed-at": "2026-01-02T03:04:05+00:00",
}


@contextlib.contextmanager
def dead_letters(task: Task) -> Iterator[str]:
    """A queue with ``task.messages`` dead letters of the inbox, during the block. Its name is given."""
    name = f"{task.queue}.dead"
    body = encoded(payload_of(task.body_bytes))
    connection = pika.BlockingConnection(pika.ConnectionParameters(task.host, task.port, heartbeat=0))
    channel = connection.channel()
    channel.queue_declare(name, durable=True)
    channel.tx_select()
    for _ in range(task.messages):
        properties, headers = envelope(task.service)
        del properties["expiration"]
        headers |= {**_FAILURE, "x-original-routing-key": task.queue, "x-service": task.service}
        channel.basic_publish("", name, body, pika.BasicProperties(headers=headers, **properties))
    channel.tx_commit()
    try:
        yield name
    finally:
        connection.close()
        with contextlib.closing(pika.BlockingConnection(pika.ConnectionParameters(task.host, task.port))) as cleaning:
            cleaning.channel().queue_delete(name)
