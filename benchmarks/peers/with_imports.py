"""Imports the libraries on which this one is built. Its import time is compared with theirs."""

from __future__ import annotations

from benchmarks.peers.fresh_imports import fresh_imports
from benchmarks.work import Operation, Stopwatch, Task

DISTRIBUTION = "pika"


def import_time(task: Task, watch: Stopwatch) -> None:
    watch.notes["import_ms"] = fresh_imports("import pika, prometheus_client; from pydantic import BaseModel")


OPERATIONS: dict[str, Operation] = {"import": import_time}
