"""A C program with librabbitmq (rabbitmq-c). It is compiled at the start if there are a compiler and the headers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.work import Operation, Stopwatch, Task

DISTRIBUTION = "librabbitmq"
#: Holds the path of the compiled program, for the worker processes.
PROGRAM_VARIABLE = "BENCHMARKS_LIBRABBITMQ"

_SOURCE = Path(__file__).with_name("librabbitmq.c")
#: Unconfirmed messages of a bulk. A larger window was not faster.
_BULK_WINDOW = 1000
_LONGEST = 120


def compiled_into(directory: Path) -> str | None:
    """Compile the program and store its path in the environment, for worker processes.

    :returns: ``None``, or why it was not compiled and what to install.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return "no C compiler: apt-get install gcc librabbitmq-dev"
    program = directory / "librabbitmq"
    command = [compiler, "-O2", "-Wno-deprecated-declarations", "-o", str(program), str(_SOURCE), "-lrabbitmq"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        return f"it does not compile ({first}): apt-get install librabbitmq-dev"
    os.environ[PROGRAM_VARIABLE] = str(program)
    return None


def publish(task: Task, watch: Stopwatch) -> None:
    """A window of unconfirmed messages takes the place of the threads."""
    _run(task, watch, "publish", task.body_bytes, task.threads)


def bulk(task: Task, watch: Stopwatch) -> None:
    _run(task, watch, "publish", task.body_bytes, _BULK_WINDOW)


def consume(task: Task, watch: Stopwatch) -> None:
    _run(task, watch, "consume", task.prefetch, task.prefetch // 2 if task.acks == "coalesced" else 1)


def _run(task: Task, watch: Stopwatch, operation: str, *numbers: int) -> None:
    words = [operation, task.host, task.port, task.service, task.messages, *numbers, _LONGEST]
    command = [os.environ[PROGRAM_VARIABLE], *map(str, words)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    watch.seconds, watch.cpu = found["seconds"], found["cpu"]


OPERATIONS: dict[str, Operation] = {"publish": publish, "bulk": bulk, "consume": consume}
