"""Counts what one message costs, in numbers that do not depend on the load of the machine.

``python -m benchmarks.counting WORKLOAD PASS`` prints the counts of one pass as JSON. A pass counts in one way, because
the ways disturb each other: ``calls`` (with the interpreter's profiler), ``instructions`` (its tracer), ``memory``.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from benchmarks.scripted_broker import Script, ScriptedBroker
from benchmarks.work import payload_of
from message_hub_sync import MessageHubClient

__all__ = ["PASSES", "WORKLOADS", "counted"]

WORKLOADS = ("publish", "publish-64k", "bulk", "consume")
PASSES = ("calls", "instructions", "memory")

_SERVICE = "counted"
_WARM_UP = 100
#: So many that one-time work does not count, but few enough for a tracer that is called for each instruction.
_MESSAGES = {"calls": 1000, "instructions": 200, "memory": 1000}
_BULK_CONFIRM_EVERY = 100
_LONGEST = 30.0

#: Processes that many messages. Returns when the broker has confirmed all, or has got all acknowledgements.
Work = Callable[[int], object]


def counted(workload: str, way: str) -> dict[str, float]:
    """The counts per message, by name, of one workload in one pass."""
    messages = _MESSAGES[way]
    script = Script(
        queue=f"{_SERVICE}.messages",
        confirm_every=_BULK_CONFIRM_EVERY if workload == "bulk" else 1,
    )
    counter: _Calls | _Instructions | _Memory
    counter = _Calls() if way == "calls" else _Instructions() if way == "instructions" else _Memory()
    with ScriptedBroker.running(script) as broker:
        counter.install()
        with _working(workload, broker) as work:
            work(_WARM_UP)
            before, written = counter.read(), broker.counts()
            work(messages)
            after, more = counter.read(), broker.counts()
    found = {name: (after[name] - before.get(name, 0)) / messages for name in after}
    if way == "calls":
        found["bytes_written"] = (more.bytes - written.bytes) / messages
        found["frames_written"] = (more.frames - written.frames) / messages
    return found


@contextmanager
def _working(workload: str, broker: ScriptedBroker) -> Iterator[Work]:
    payload = payload_of(64 * 1024 if workload == "publish-64k" else 256)
    with MessageHubClient(service_name=_SERVICE, rabbitmq_url=broker.url, delivery_timeout=_LONGEST) as client:
        if workload in ("publish", "publish-64k"):

            def publish(count: int) -> None:
                for _ in range(count):
                    client.send_message(_SERVICE, payload)

            yield publish
        elif workload == "bulk":
            yield lambda count: client.send_messages([(_SERVICE, payload)] * count)
        else:

            def handle(message):  # type: ignore[no-untyped-def]  # a handler without annotation is the default
                message["payload"]

            client.subscribe_messages(handle)
            yield broker.deliver


class _Calls:
    """Calls of Python functions, calls of C functions, and those C calls that are system calls for sockets.

    Each thread has its own counters, because ``+=`` is not atomic.
    """

    NAMES = ("python_calls", "c_calls", "sends", "receives", "polls")
    #: Methods of sockets and poll objects. (Methods of locks enter the kernel, too, but only if they must wait.)
    KERNEL: ClassVar = {
        "send": "sends",
        "sendall": "sends",
        "sendmsg": "sends",
        "recv": "receives",
        "recv_into": "receives",
        "recvmsg": "receives",
        "poll": "polls",
        "select": "polls",
    }

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: list[dict[str, int]] = []

    def install(self) -> None:
        threading.setprofile(self._look)
        sys.setprofile(self._look)

    def read(self) -> dict[str, float]:
        return {name: float(sum(counts[name] for counts in self._all)) for name in self.NAMES}

    def _look(self, frame: FrameType, event: str, called: Any) -> None:
        try:
            counts = self._local.counts
        except AttributeError:
            counts = self._local.counts = dict.fromkeys(self.NAMES, 0)
            self._all.append(counts)
        if event == "call":
            counts["python_calls"] += 1
        elif event == "c_call":
            counts["c_calls"] += 1
            kind = self.KERNEL.get(called.__name__)
            if kind is not None and type(called.__self__).__module__ in ("socket", "_socket", "ssl", "select"):
                counts[kind] += 1


class _Instructions:
    """Bytecode instructions of all threads."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._all: list[list[int]] = []

    def install(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def read(self) -> dict[str, float]:
        return {"instructions": float(sum(count[0] for count in self._all))}

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        try:
            count = self._local.count
        except AttributeError:
            count = self._local.count = [0]
            self._all.append(count)

        def look(frame: FrameType, event: str, _: Any) -> Any:
            if event == "opcode":
                count[0] += 1
            return look

        return look


class _Memory:
    """Memory blocks that are kept, and the peak of the bytes in use, minus those at the beginning."""

    def __init__(self) -> None:
        self._began = 0

    def install(self) -> None:
        pass

    def read(self) -> dict[str, float]:
        gc.collect()
        if not tracemalloc.is_tracing():
            blocks = sys.getallocatedblocks()
            tracemalloc.start()
            self._began = tracemalloc.get_traced_memory()[0]
            return {"blocks_kept": float(blocks)}
        peak = tracemalloc.get_traced_memory()[1] - self._began
        tracemalloc.stop()
        gc.collect()
        return {"blocks_kept": float(sys.getallocatedblocks()), "peak_bytes": float(peak)}


def main(words: list[str]) -> None:
    # If anything hangs, this process prints all stacks and exits.
    faulthandler.dump_traceback_later(_LONGEST, exit=True)
    logging.basicConfig(level=logging.ERROR)
    print(json.dumps(counted(*words)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
