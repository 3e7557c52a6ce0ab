"""The resources that a process uses, read from /proc."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

__all__ = ["Usage", "memory_mib", "usage"]


class Usage(NamedTuple):
    """The numbers of open file descriptors and of threads of this process."""

    descriptors: int
    threads: int


def usage() -> Usage:
    """The current numbers."""
    return Usage(len(os.listdir("/proc/self/fd")), threading.active_count())


def memory_mib(process: int | str = "self") -> float:
    """The resident memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the process has no memory")
