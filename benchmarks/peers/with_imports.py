"""The libraries that this one is built on, imported and nothing else: what its import time is compared with."""

from __future__ import annotations

from benchmarks.peers.fresh_imports import fresh_imports
from benchmarks.work import Operation, Stopwatch, Task

DISTRIBUTION = "pika"


def import_time(task: Task, watch: Stopwatch) -> None:
    watch.notes["import_ms"] = fresh_imports("import pika, pydantic, prometheus_client")


OPERATIONS: dict[str, Operation] = {"import": import_time}
