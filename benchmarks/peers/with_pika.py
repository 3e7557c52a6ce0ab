"""pika's BlockingConnection, its adapter for synchronous programs, with confirm_delivery, a connection per thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import pika

from benchmarks.peers.dead_letters import dead_letters
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

DISTRIBUTION = "pika"


def _connect(task: Task) -> Any:
    return pika.BlockingConnection(pika.URLParameters(task.url))


def _properties(service: str, **more: Any) -> Any:
    properties, headers = envelope(service)
    return pika.BasicProperties(headers=headers, **properties, **more)


def publish(task: Task, watch: Stopwatch) -> None:
    """Each thread has its own connection, because threads must not share a BlockingConnection."""
    payload = payload_of(task.body_bytes)

    def work(thread: int, ready: Callable[[], object]) -> None:
        connection = _connect(task)
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(task.warm_up):
            channel.basic_publish("", task.queue, encoded(payload), _properties(task.service), mandatory=True)
        ready()
        for _ in range(task.share(thread)):
            # Raises if the broker sends a nack or returns it.
            channel.basic_publish("", task.queue, encoded(payload), _properties(task.service), mandatory=True)

    in_threads(task, watch, work)


def publish_shared(task: Task, watch: Stopwatch) -> None:
    """One connection, guarded by a lock."""
    payload = payload_of(task.body_bytes)
    connection = _connect(task)
    channel = connection.channel()
    channel.confirm_delivery()
    lock = threading.Lock()

    def work(thread: int, ready: Callable[[], object]) -> None:
        ready()
        for _ in range(task.share(thread)):
            body, properties = encoded(payload), _properties(task.service)
            with lock:
                channel.basic_publish("", task.queue, body, properties, mandatory=True)

    in_threads(task, watch, work)


def consume(task: Task, watch: Stopwatch) -> None:
    connection = _connect(task)
    channel = connection.channel()
    countdown = Countdown(task, watch)
    half = task.prefetch // 2

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if task.acks == "default":
            json.loads(body)
        if task.acks != "coalesced":
            channel.basic_ack(method.delivery_tag)
        elif method.delivery_tag % half == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if countdown.one():
            channel.stop_consuming()

    if task.acks != "default":
        channel.basic_qos(prefetch_count=task.prefetch)
    watch.start()
    channel.basic_consume(task.queue, handle)
    channel.start_consuming()


def move(task: Task, watch: Stopwatch) -> None:
    """Each message is published to another queue, and acknowledged after the confirm."""
    connection = _connect(task)
    channel, publishing = connection.channel(), _connect(task).channel()
    publishing.confirm_delivery()
    publishing.queue_declare(f"{task.queue}.dead", durable=True)
    countdown = Countdown(task, watch)

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        publishing.basic_publish("", f"{task.queue}.dead", body, properties, mandatory=True)
        channel.basic_ack(method.delivery_tag)
        if countdown.one():
            channel.stop_consuming()

    channel.basic_qos(prefetch_count=64)
    watch.start()
    channel.basic_consume(task.queue, handle)
    channel.start_consuming()


def latency(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    arrivals: SimpleQueue[float] = SimpleQueue()

    def receive() -> None:
        channel = _connect(task).channel()

        def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            arrivals.put(time.perf_counter())
            channel.basic_ack(method.delivery_tag)

        channel.basic_consume(task.queue, handle)
        channel.start_consuming()

    threading.Thread(target=receive, daemon=True).start()
    channel = _connect(task).channel()
    channel.confirm_delivery()
    for number in range(-task.warm_up, task.messages):
        if number == 0:
            watch.start()
        sent = time.perf_counter()
        channel.basic_publish("", task.queue, encoded(payload), _properties(task.service), mandatory=True)
        arrived = arrivals.get(timeout=10)
        if number >= 0:
            watch.samples.append(arrived - sent)
    watch.stop()


def respond(task: Task, watch: Stopwatch) -> None:
    """Answers requests, in a process of its own."""
    channel = _connect(task).channel()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        reply = _properties(task.service)
        reply.correlation_id = properties.correlation_id
        channel.basic_publish("", properties.reply_to, body, reply)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(task.queue, handle)
    threading.Thread(target=channel.start_consuming, daemon=True).start()
    serve_for_ever()


def request(task: Task, watch: Stopwatch) -> None:
    """As in pika's tutorial on remote procedure calls: an exclusive reply queue, no confirms."""
    with responding(task):
        _request(task, watch)


def _request(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    connection = _connect(task)
    channel = connection.channel()
    replies_to = channel.queue_declare("", exclusive=True).method.queue
    replies: dict[str, bytes] = {}

    def on_reply(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        replies[properties.correlation_id] = body

    channel.basic_consume(replies_to, on_reply, auto_ack=True)
    for number in range(-task.warm_up, task.messages):
        if number == 0:
            watch.start()
        asked = time.perf_counter()
        properties = _properties(task.service, reply_to=replies_to)
        properties.correlation_id = correlation_id = str(uuid4())
        channel.basic_publish("", task.queue, encoded(payload), properties)
        while correlation_id not in replies:
            connection.process_data_events(time_limit=10)
        del replies[correlation_id]
        if number >= 0:
            watch.samples.append(time.perf_counter() - asked)
    watch.stop()


def look(task: Task, watch: Stopwatch) -> None:
    """Receive all and acknowledge none: closing the connection gives them back."""
    with dead_letters(task) as queue:
        connection = _connect(task)
        with watch:
            letters = connection.channel().consume(queue, inactivity_timeout=30)
            for _ in range(task.messages):
                next(letters)
            connection.close()


def put_back(task: Task, watch: Stopwatch) -> None:
    """Publish each, wait for its confirm, acknowledge it: the simple loop that loses nothing."""
    with dead_letters(task) as queue:
        connection = _connect(task)
        channel, sending = connection.channel(), connection.channel()
        channel.basic_qos(prefetch_count=task.prefetch)
        sending.confirm_delivery()
        with watch:
            letters = channel.consume(queue, inactivity_timeout=30)
            for _ in range(task.messages):
                method, properties, body = next(letters)
                sending.basic_publish("", task.queue, body, properties, mandatory=True)
                channel.basic_ack(method.delivery_tag)
            connection.close()


def connect(task: Task, watch: Stopwatch) -> None:
    """Until a channel with confirms is open."""
    with watch:
        for _ in range(task.messages):
            began = time.perf_counter()
            connection = _connect(task)
            connection.channel().confirm_delivery()
            watch.samples.append(time.perf_counter() - began)
            connection.close()


def idle(task: Task, watch: Stopwatch) -> None:
    """All consumers on one channel. One thread waits for deliveries."""
    ready = threading.Event()

    def receive() -> None:
        connection = _connect(task)
        channel = connection.channel()
        for _ in range(task.subscriptions):
            queue = channel.queue_declare("", exclusive=True).method.queue
            channel.basic_consume(queue, lambda channel, method, properties, body: None)
        connection.call_later(0, ready.set)
        channel.start_consuming()

    threading.Thread(target=receive, daemon=True).start()
    ready.wait()
    with watch:
        threading.Event().wait(task.seconds)
    watch.notes["threads"] = threading.active_count() - 1
    watch.notes["cpu_ms_per_s"] = watch.cpu / watch.seconds * 1000


OPERATIONS: dict[str, Operation] = {
    "publish": publish,
    "look": look,
    "put-back": put_back,
    "publish-shared": publish_shared,
    "bulk": publish,
    "consume": consume,
    "move": move,
    "latency": latency,
    "request": request,
    "respond": respond,
    "connect": connect,
    "idle": idle,
}
