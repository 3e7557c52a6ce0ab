"""Runs one measurement in its own process and prints JSON: ``python -m benchmarks.worker TASK SECONDS``."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import sys

from benchmarks.rows import COMPETITORS
from benchmarks.work import Operation, Stopwatch, Task, measured


def main(arguments: list[str]) -> None:
    # If anything hangs, or the parent has ended, this process prints all stacks and exits.
    faulthandler.dump_traceback_later(float(arguments[1]), exit=True)
    logging.basicConfig(level=logging.ERROR)
    task = Task(**json.loads(arguments[0]))
    competitor = COMPETITORS[task.competitor]
    operations: dict[str, Operation] = importlib.import_module(f"benchmarks.peers.with_{competitor.module}").OPERATIONS
    operation = operations.get(f"{task.operation}{competitor.variant}") or operations[task.operation]
    watch = Stopwatch()
    operation(task, watch)
    print(json.dumps(measured(task, watch)), flush=True)
    # Without waiting for threads that still consume, and without the exit handlers of clients.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
