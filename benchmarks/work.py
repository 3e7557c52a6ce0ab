"""The input and output of one measurement, shared by the harness and all peers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from uuid import uuid4

__all__ = [
    "Countdown",
    "Operation",
    "Stopwatch",
    "Task",
    "encoded",
    "envelope",
    "in_threads",
    "measured",
    "payload_of",
    "responding",
    "serve_for_ever",
]

_ROOT = Path(__file__).resolve().parent.parent
#: Exists on Linux only; elsewhere a measurement has no memory number.
STATUS = Path("/proc/self/status")
#: How messages are acknowledged: as by default, each message alone, or half of the prefetch at once.
Acks = Literal["default", "each", "coalesced"]


@dataclass(frozen=True)
class Task:
    """One measurement: the competitor, the operation, the number of messages and the queue.

    The queue is ``{service}.messages`` on the default exchange. It is durable and new. If the operation consumes, the
    queue holds ``messages`` messages.
    """

    competitor: str
    operation: str
    host: str
    port: int
    service: str
    messages: int
    body_bytes: int = 256
    threads: int = 1
    acks: Acks = "default"
    prefetch: int = 100
    subscriptions: int = 1
    seconds: float = 5.0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}"

    @property
    def queue(self) -> str:
        return f"{self.service}.messages"

    @property
    def warm_up(self) -> int:
        """Number of messages that each thread publishes before the watch starts."""
        return max(2, min(20, self.messages // self.threads // 20))

    def share(self, thread: int) -> int:
        """Number of messages for one of the ``threads`` threads."""
        return self.messages // self.threads + (thread < self.messages % self.threads)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Stopwatch:
    """Wall clock and CPU time of this process between ``start()`` and ``stop()``, in seconds.

    ``samples``: seconds of single operations. ``notes``: other numbers, by name.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu = 0.0
        self.samples: list[float] = []
        self.notes: dict[str, float] = {}
        self._began = self._cpu_began = 0.0

    def start(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds, self.cpu = time.perf_counter() - self._began, time.process_time() - self._cpu_began

    def __enter__(self) -> Stopwatch:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


#: One operation of a peer. It connects, starts and stops the watch, and disconnects.
Operation = Callable[[Task, Stopwatch], None]


@contextmanager
def responding(task: Task) -> Iterator[None]:
    """The same competitor answers requests during the block, in a process of its own: with one interpreter lock for
    both sides, they would wait for each other.
    """
    words = [sys.executable, "-m", "benchmarks.worker", replace(task, operation="respond").to_json(), "90"]
    with subprocess.Popen(words, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "responding\n"
            yield
        finally:
            process.kill()


def serve_for_ever() -> None:
    """In the process of :func:`responding`: it answers requests now. Returns never."""
    print("responding", flush=True)
    threading.Event().wait()


class Countdown:
    """Stops the watch when a handler gets the last message. The peer starts the watch before it consumes."""

    def __init__(self, task: Task, watch: Stopwatch) -> None:
        self._left = task.messages
        self._watch = watch
        self.done = threading.Event()

    def one(self) -> bool:
        """Count one message. Returns true for the last one."""
        self._left -= 1
        if self._left:
            return False
        self._watch.stop()
        self.done.set()
        return True


def measured(task: Task, watch: Stopwatch) -> dict[str, float]:
    """The numbers of one measurement, by name."""
    found = dict(watch.notes)
    if watch.samples:
        cuts = statistics.quantiles(watch.samples, n=100, method="inclusive")
        found["p50_us"], found["p99_us"] = cuts[49] * 1e6, cuts[98] * 1e6
    elif watch.seconds and task.operation != "idle":
        found["rate"] = task.messages / watch.seconds
    if task.messages:
        found["cpu_per_10k"] = watch.cpu / task.messages * 10_000
    if STATUS.exists() and "librabbitmq" not in task.competitor:
        # Not ru_maxrss: a process inherits it from the process that forked it.
        peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        found["max_rss_mb"] = int(peak.split()[1]) / 1024
    return found


def payload_of(size: int) -> dict[str, Any]:
    """A JSON object of ``size`` bytes when it is written compactly."""
    payload: dict[str, Any] = {"character_id": "1f0c7a52", "level": 12, "items": [1, 2, 3], "note": ""}
    payload["note"] = "x" * (size - len(json.dumps(payload, separators=(",", ":"))))
    return payload


def encoded(payload: dict[str, Any]) -> bytes:
    """The body of a message. This library encodes an object for each message, and so the peers do it, too."""
    return _encode(payload).encode()


#: Created once: ``json.dumps`` with separators creates an encoder at each call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def envelope(service: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The properties and headers of one message in the hub's format, with new ids and the current time.

    The properties have their AMQP names: ``app_id``, ``content_type``, ``correlation_id``, ``delivery_mode``,
    ``expiration``, ``message_id``, ``priority``, ``timestamp``, ``type``.
    """
    now = time.time()
    properties = {
        "app_id": service,
        "content_type": "application/json",
        "correlation_id": str(uuid4()),
        "delivery_mode": 2,
        "expiration": "300000",
        "message_id": str(uuid4()),
        "priority": 0,
        "timestamp": int(now),
        "type": "service_message",
    }
    moment = datetime.fromtimestamp(now, timezone.utc).isoformat()
    headers = {"timestamp": moment, "source": service, "destination": service, "ttl": 300, "priority": 0}
    return properties, headers


def in_threads(task: Task, watch: Stopwatch, work: Callable[[int, Callable[[], object]], None]) -> None:
    """Run ``work(thread, ready)`` in ``task.threads`` threads.

    The watch starts when all threads have called ``ready()``, and stops when all have ended.

    :raises BaseException: the error of a thread that failed.
    """
    barrier = threading.Barrier(task.threads, action=watch.start)
    errors: list[BaseException] = []

    def guarded(thread: int) -> None:
        try:
            work(thread, barrier.wait)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(task.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.stop()
    if errors:
        # The other threads have only got a BrokenBarrierError.
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
