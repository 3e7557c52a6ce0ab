"""Starts, stops and kills the processes under test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from faults.oracle import Oracle

import message_hub_sync

__all__ = ["Program", "Workers", "environment"]

_TESTS = Path(__file__).resolve().parent.parent
#: The package that this process uses: the installed one, or the source tree.
_PACKAGE = Path(message_hub_sync.__file__).resolve().parent.parent


def environment(**more: str) -> dict[str, str]:
    """The environment for a program under test."""
    path = os.pathsep.join((str(_PACKAGE), str(_TESTS)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


class Program:
    """One process with its output in a file. It ends when its stdin is closed, so that none outlives the tests."""

    def __init__(self, command: Sequence[str], log: Path, **env: str) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**env),
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """Its output so far."""
        return self._log.read_text("utf-8", "replace")

    def stop(self, timeout: float = 20) -> int:
        """Close its stdin and wait for its end. Returns its exit code."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.wait(timeout)

    def wait(self, timeout: float) -> int:
        """Wait for its end. Returns its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout:g} s:\n{self.log[-3000:]}") from None

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to it and its children, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Workers:
    """Publishers, consumers and other programs of one test. Used by the test's thread."""

    def __init__(self, directory: Path, oracle: Oracle, url: str) -> None:
        self._directory = directory
        self._oracle = oracle
        self._url = url
        self._programs: list[Program] = []
        self._ready = {"publish": 0, "consume": 0}

    def publisher(self, *arguments: str, url: str | None = None, within: Sequence[str] = ()) -> Program:
        """Start a publisher, and wait until it is ready."""
        return self._worker("publish", "publisher", arguments, url, within)

    def consumer(self, *arguments: str, url: str | None = None, within: Sequence[str] = ()) -> Program:
        """Start a consumer, and wait until it consumes."""
        return self._worker("consume", "consumer", arguments, url, within)

    def script(self, name: str, *arguments: str, within: Sequence[str] = (), **env: str) -> Program:
        """Start ``faults/scripts/{name}.py`` with the broker's URL, the ledger and these arguments."""
        command = [sys.executable, "-m", f"faults.scripts.{name}", self._url, str(self._oracle.path), *arguments]
        return self.program([*within, *command], name, **env)

    def program(self, command: Sequence[str], name: str, **env: str) -> Program:
        """Start any program."""
        program = Program(command, self._directory / f"{name}-{len(self._programs)}.log", **env)
        self._programs.append(program)
        return program

    def _worker(
        self, role: str, word: str, arguments: Sequence[str], url: str | None, within: Sequence[str]
    ) -> Program:
        common = ["--url", url or self._url, "--ledger", str(self._oracle.path)]
        command = [*within, sys.executable, "-m", "faults.workers", role, *common, *arguments]
        program = self.program(command, role)
        self._ready[role] += 1
        try:
            self._oracle.told(word, self._ready[role])
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{program.log[-3000:]}") from None
        return program

    def close(self) -> None:
        """Kill all programs that still run."""
        for program in self._programs:
            program.kill()

    def complaints(self) -> list[str]:
        """Log lines that report a fault of the library itself."""
        signs = ("unexpected way", "Exception in thread", "failed; closing the connection")
        return [
            line
            for program in self._programs
            for line in program.log.splitlines()
            if any(sign in line for sign in signs)
        ]
