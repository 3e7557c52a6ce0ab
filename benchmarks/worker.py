"""One measurement in a process of its own: ``python -m benchmarks.worker TASK SECONDS``; prints its numbers as JSON."""

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
    # Whatever hangs, and whatever becomes of the parent, this process ends, and says where it hung.
    faulthandler.dump_traceback_later(float(arguments[1]), exit=True)
    logging.basicConfig(level=logging.ERROR)
    task = Task(**json.loads(arguments[0]))
    competitor = COMPETITORS[task.competitor]
    operations: dict[str, Operation] = importlib.import_module(f"benchmarks.peers.with_{competitor.module}").OPERATIONS
    operation = operations.get(f"{task.operation}{competitor.variant}") or operations[task.operation]
    watch = Stopwatch()
    operation(task, watch)
    print(json.dumps(measured(task, watch)), flush=True)
    # Threads that still serve (and clients' exit handlers) are of no interest any more.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
