"""Runs the project's programs in separate processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

import waiting

import message_hub_sync

ROOT = Path(__file__).resolve().parent.parent


def environment(**more: str) -> dict[str, str]:
    """The environment for a program: this process's, with the same package importable, without settings of the user."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MESSAGE_HUB_", "FLASK_", "FORCE_COLOR"))
    }
    own = {
        # The package under test may be an installed one: the source tree in the working directory must not win.
        "PYTHONPATH": str(Path(message_hub_sync.__file__).parent.parent),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    return inherited | own | more


def run(arguments: Sequence[str], timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python`` with these arguments and wait for its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


class RunningProgram:
    """A program that runs beside the test, with its output line by line. Used by one thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._read, name=f"message-hub-test-output-{process.pid}", daemon=True).start()

    def wait_for(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Read lines until one matches. Returns the match."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no line matched {pattern!r} within {timeout:g} s:\n{self.output}") from None
            assert line is not None, f"it ended before a line matched {pattern!r}:\n{self.output}"
            self.output += line
            found = re.search(pattern, line)
            if found:
                return found

    def new_lines(self) -> list[str]:
        """The lines that came since the last call, without waiting."""
        lines = []
        with contextlib.suppress(Empty):
            while (line := self._lines.get_nowait()) is not None:
                self.output += line
                lines.append(line)
        return lines

    def tell(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@contextlib.contextmanager
def running(arguments: Sequence[str], interpreter: str = sys.executable, **env: str) -> Iterator[RunningProgram]:
    """Run ``python`` with these arguments beside the test. Its process group is killed at the end of the block."""
    process = subprocess.Popen(
        [interpreter, *arguments],
        cwd=ROOT,
        env=environment(**env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield RunningProgram(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def eventually(condition: Callable[[], bool], timeout: float = 20) -> bool:
    """Wait for a condition in another process, by polling. Returns whether it became true."""
    return waiting.eventually(condition, timeout)
