"""This library, through its public API: validation, envelope, circuit breaker, metrics and recovery are on."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from benchmarks.peers.dead_letters import dead_letters
from benchmarks.peers.fresh_imports import fresh_imports
from benchmarks.work import (
    Countdown,
    Operation,
    Stopwatch,
    Task,
    in_threads,
    payload_of,
    responding,
    serve_for_ever,
)
from message_hub_sync import MessageHubClient, MessageHubRejectError
from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.dead_letters.queues import requeue_selected, take_dead_letters
from message_hub_sync.dead_letters.reading import Patience
from message_hub_sync.dead_letters.selection import Selection

DISTRIBUTION = "message-hub-sync"


def _client(task: Task) -> MessageHubClient:
    return MessageHubClient(service_name=task.service, rabbitmq_url=task.url, settle_each=task.acks == "each")


def publish(task: Task, watch: Stopwatch) -> None:
    """All threads share one client."""
    payload = payload_of(task.body_bytes)
    with _client(task) as client:

        def work(thread: int, ready: Callable[[], object]) -> None:
            for _ in range(task.warm_up):
                client.send_message(task.service, payload)
            ready()
            for _ in range(task.share(thread)):
                client.send_message(task.service, payload)

        in_threads(task, watch, work)


def bulk(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    with _client(task) as client:
        client.send_messages([(task.service, payload)] * task.warm_up)
        with watch:
            client.send_messages([(task.service, payload)] * task.messages)


def consume(task: Task, watch: Stopwatch) -> None:
    countdown = Countdown(task, watch)

    def handle(message):  # type: ignore[no-untyped-def]  # a handler without annotation is the default
        message["payload"]
        countdown.one()

    def handle_raw(body: bytes) -> None:
        countdown.one()

    with _client(task) as client:
        # Open the connection first: the peers' connections are open, too, when the watch starts.
        client.subscribe(["benchmark.opened"], lambda event: None)
        watch.start()
        if task.acks == "default":
            client.subscribe_messages(handle)
        else:
            client.subscribe_messages(handle_raw, prefetch=task.prefetch)
        countdown.done.wait()


def move(task: Task, watch: Stopwatch) -> None:
    """The handler rejects each message, so that it is moved to the dead-letter queue."""
    logging.getLogger("message_hub_sync").setLevel(logging.CRITICAL)
    countdown = Countdown(task, Stopwatch())

    def reject(message):  # type: ignore[no-untyped-def]  # as in consume()
        countdown.one()
        raise MessageHubRejectError("not for us")

    with _client(task) as client:
        client.subscribe(["benchmark.opened"], lambda event: None)
        client.connect()
        watch.start()
        subscription = client.subscribe_messages(reject)
        countdown.done.wait()
        subscription.cancel()  # waits until all are moved
        watch.stop()


def latency(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    arrivals: SimpleQueue[float] = SimpleQueue()

    def handle(message):  # type: ignore[no-untyped-def]
        arrivals.put(time.perf_counter())

    with _client(task) as client:
        client.subscribe_messages(handle)
        for number in range(-task.warm_up, task.messages):
            if number == 0:
                watch.start()
            sent = time.perf_counter()
            client.send_message(task.service, payload)
            arrived = arrivals.get(timeout=10)
            if number >= 0:
                watch.samples.append(arrived - sent)
        watch.stop()


def respond(task: Task, watch: Stopwatch) -> None:
    with _client(task) as responder:
        responder.subscribe_messages(lambda message: message["payload"])
        serve_for_ever()


def request(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    with responding(task), MessageHubClient(f"{task.service}-caller", task.url) as caller:
        for number in range(-task.warm_up, task.messages):
            if number == 0:
                watch.start()
            asked = time.perf_counter()
            caller.request(task.service, payload, timeout=10)
            if number >= 0:
                watch.samples.append(time.perf_counter() - asked)
        watch.stop()


def look(task: Task, watch: Stopwatch) -> None:
    """As ``dead-letters list --messages`` reads, without its output."""
    transport = _transport(ClientConfig(task.service, parse_addresses(task.url)))
    with dead_letters(task) as queue, watch:
        assert take_dead_letters(transport, queue, lambda letter: None, Patience(step=30)) == task.messages
    transport.close(time.monotonic() + 5)


def put_back(task: Task, watch: Stopwatch) -> None:
    """As ``dead-letters requeue --all``, without its output."""
    transport = _transport(ClientConfig(task.service, parse_addresses(task.url)))
    with dead_letters(task) as queue, watch:
        result = requeue_selected(transport, queue, Patience(step=30), only=Selection(), done=lambda letter: None)
    assert (result.count, result.error) == (task.messages, None)
    transport.close(time.monotonic() + 5)


def connect(task: Task, watch: Stopwatch) -> None:
    with watch:
        for _ in range(task.messages):
            client = _client(task)
            began = time.perf_counter()
            client.connect()
            watch.samples.append(time.perf_counter() - began)
            client.close()


def idle(task: Task, watch: Stopwatch) -> None:
    with _client(task) as client:
        for number in range(task.subscriptions):
            client.subscribe(event_types=[f"benchmark.event_{number}"], callback=lambda event: None)
        with watch:
            threading.Event().wait(task.seconds)
        watch.notes["threads"] = threading.active_count() - 1
        watch.notes["sockets"] = _sockets()
        watch.notes["cpu_ms_per_s"] = watch.cpu / watch.seconds * 1000


def import_time(task: Task, watch: Stopwatch) -> None:
    # As a service does it. ``import message_hub_sync`` alone imports almost nothing: names are imported on first use.
    watch.notes["import_ms"] = fresh_imports("from message_hub_sync import MessageHubClient")


def _sockets() -> float:
    """Number of TCP connections of this process. Linux only."""
    inodes = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the descriptor of the directory itself is closed by now
            inodes.add(os.readlink(entry))
    if not inodes:
        return float("nan")
    table = Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return float(sum(f"socket:[{line.split()[9]}]" in inodes for line in table))


OPERATIONS: dict[str, Operation] = {
    "publish": publish,
    "look": look,
    "put-back": put_back,
    "bulk": bulk,
    "consume": consume,
    "move": move,
    "latency": latency,
    "request": request,
    "respond": respond,
    "connect": connect,
    "idle": idle,
    "import": import_time,
}
