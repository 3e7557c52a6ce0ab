"""kombu with py-amqp: the pool of producers that its guide advises, a producer for each thread, confirm_publish on."""

# kombu has hardly any type information.
# mypy: disable-error-code="attr-defined, no-untyped-call"
from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from kombu import Connection, Consumer, Queue, pools

from benchmarks.work import (
    Countdown,
    Operation,
    Stopwatch,
    Task,
    encoded,
    envelope,
    in_threads,
    payload_of,
    responding,
    serve_for_ever,
)

DISTRIBUTION = "kombu"


def _connection(task: Task) -> Any:
    return Connection(f"{task.url}//", transport_options={"confirm_publish": True})


def _send(producer: Any, task: Task, body: bytes, routing_key: str, **more: Any) -> None:
    properties, headers = envelope(task.service)
    producer.publish(
        body,
        routing_key=routing_key,
        exchange="",
        headers=headers,
        content_encoding="utf-8",
        expiration=300,
        mandatory=True,
        **{name: value for name, value in properties.items() if name != "expiration"} | more,
    )


def publish(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    connection = _connection(task)
    pools.set_limit(task.threads)

    def work(thread: int, ready: Callable[[], object]) -> None:
        with pools.producers[connection].acquire(block=True) as producer:
            for _ in range(task.warm_up):
                _send(producer, task, encoded(payload), task.queue)
            ready()
            for _ in range(task.share(thread)):
                _send(producer, task, encoded(payload), task.queue)

    in_threads(task, watch, work)


def consume(task: Task, watch: Stopwatch) -> None:
    countdown = Countdown(task, watch)
    last = False

    def handle(message: Any) -> None:
        nonlocal last
        if task.acks == "default":
            json.loads(message.body)
        message.ack()
        last = countdown.one()

    with _connection(task) as connection:
        connection.connect()
        watch.start()
        settings = {} if task.acks == "default" else {"prefetch_count": task.prefetch}
        with Consumer(connection, [Queue(task.queue, no_declare=True)], on_message=handle, **settings):
            while not last:
                connection.drain_events(timeout=30)


def latency(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    arrivals: SimpleQueue[float] = SimpleQueue()

    def handle(message: Any) -> None:
        arrivals.put(time.perf_counter())
        message.ack()

    threading.Thread(target=_serve, args=(task, handle), daemon=True).start()
    with _connection(task) as connection:
        producer = connection.Producer()
        for number in range(-task.warm_up, task.messages):
            if number == 0:
                watch.start()
            sent = time.perf_counter()
            _send(producer, task, encoded(payload), task.queue)
            arrived = arrivals.get(timeout=10)
            if number >= 0:
                watch.samples.append(arrived - sent)
        watch.stop()


def respond(task: Task, watch: Stopwatch) -> None:
    """Answers requests, in a process of its own."""
    answering = Connection(f"{task.url}//").Producer()

    def handle(message: Any) -> None:
        properties = message.properties
        _send(answering, task, message.body, properties["reply_to"], correlation_id=properties["correlation_id"])
        message.ack()

    threading.Thread(target=_serve, args=(task, handle), daemon=True).start()
    serve_for_ever()


def request(task: Task, watch: Stopwatch) -> None:
    """As in kombu's examples of remote procedure calls: an exclusive reply queue."""
    with responding(task):
        _request(task, watch)


def _request(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    replies: dict[str, bytes] = {}

    def on_reply(message: Any) -> None:
        replies[message.properties["correlation_id"]] = message.body

    with Connection(f"{task.url}//") as connection:
        queue = Queue(f"{task.service}.replies", exclusive=True, durable=False)
        producer = connection.Producer()
        with Consumer(connection, [queue], on_message=on_reply, no_ack=True):
            for number in range(-task.warm_up, task.messages):
                if number == 0:
                    watch.start()
                asked = time.perf_counter()
                correlation_id = str(uuid4())
                _send(producer, task, encoded(payload), task.queue, reply_to=queue.name, correlation_id=correlation_id)
                while correlation_id not in replies:
                    connection.drain_events(timeout=10)
                del replies[correlation_id]
                if number >= 0:
                    watch.samples.append(time.perf_counter() - asked)
            watch.stop()


def _serve(task: Task, handle: Callable[[Any], None]) -> None:
    """Consume until the process ends. Runs in a daemon thread."""
    connection = Connection(f"{task.url}//")
    with Consumer(connection, [Queue(task.queue, no_declare=True)], on_message=handle):
        while True:
            connection.drain_events()


OPERATIONS: dict[str, Operation] = {
    "publish": publish,
    "bulk": publish,
    "consume": consume,
    "latency": latency,
    "request": request,
    "respond": respond,
}
