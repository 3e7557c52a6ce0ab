"""amqpstorm: one connection that threads share, with a channel for each thread or one channel for all."""

# amqpstorm has hardly any type information.
# mypy: disable-error-code="attr-defined"
from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from amqpstorm import Connection

from benchmarks.work import Countdown, Operation, Stopwatch, Task, encoded, envelope, in_threads, payload_of

DISTRIBUTION = "AMQPStorm"


def _connect(task: Task) -> Any:
    return Connection(task.host, "guest", "guest", port=task.port)


def _send(channel: Any, task: Task, body: bytes) -> None:
    properties, headers = envelope(task.service)
    # amqpstorm has another name for one property, and another type for another one.
    properties["message_type"] = properties.pop("type")
    properties["timestamp"] = datetime.fromtimestamp(properties["timestamp"], timezone.utc)
    channel.basic.publish(body, task.queue, properties={**properties, "headers": headers}, mandatory=True)


def publish(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    with _connect(task) as connection:

        def work(thread: int, ready: Callable[[], object]) -> None:
            channel = connection.channel()
            channel.confirm_deliveries()
            ready()
            for _ in range(task.share(thread)):
                _send(channel, task, encoded(payload))

        in_threads(task, watch, work)


def publish_shared(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    with _connect(task) as connection:
        channel = connection.channel()
        channel.confirm_deliveries()

        def work(thread: int, ready: Callable[[], object]) -> None:
            ready()
            for _ in range(task.share(thread)):
                _send(channel, task, encoded(payload))

        in_threads(task, watch, work)


def consume(task: Task, watch: Stopwatch) -> None:
    countdown = Countdown(task, watch)
    with _connect(task) as connection:
        channel = connection.channel()

        def handle(message: Any) -> None:
            if task.acks == "default":
                json.loads(message.body)
            message.ack()
            if countdown.one():
                channel.stop_consuming()

        if task.acks != "default":
            channel.basic.qos(task.prefetch)
        watch.start()
        channel.basic.consume(handle, task.queue)
        channel.start_consuming()


OPERATIONS: dict[str, Operation] = {"publish": publish, "publish-shared": publish_shared, "consume": consume}
