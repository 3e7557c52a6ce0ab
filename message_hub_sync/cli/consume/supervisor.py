"""Starts processes that consume, watches them, starts them again, and stops them in order.

It never imports what they run. So it holds no connection and no handler, and a changed file needs only new children.

Everything happens on the main thread, in the order of one queue of events. Other threads, and signal handlers, only put
events into that queue.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from message_hub_sync.cli.exits import Exit
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.service_manager import notify

__all__ = ["SUPERVISED", "Supervisor", "child_command"]

logger = SafeLogger("message_hub_sync.client")

#: In the environment of a child: its end of standard input is the end of its supervisor.
SUPERVISED = "_MESSAGE_HUB_SUPERVISED"

#: Seconds before a child is started again; doubled after each start that did not live as long as ``_STABLE``.
_FIRST_PAUSE, _LONGEST_PAUSE, _STABLE = 1.0, 30.0, 30.0
#: Seconds between two looks at the liveness files of the children, and the age at which one is old.
_LIVENESS_EVERY, _LIVENESS_OLD = 5.0, 20.0
#: A child that ends with one of these before it was ready ends all: another start would end in the same way.
_MISTAKES = (Exit.FAILED, Exit.USAGE)


@dataclass
class _Child:
    """One process, and those that were there before it. Only the main thread changes it."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    ever_ready: bool = False
    started_at: float = 0.0
    pause: float = _FIRST_PAUSE
    starts_at: float | None = None
    """When to start it again, monotonic seconds."""
    restarting: bool = False
    """Whether it was stopped to be started again at once."""


@dataclass
class Supervisor:
    """Runs ``count`` processes of ``command`` until SIGTERM or SIGINT. For the main thread.

    :param command: what to run in each child, as the arguments of a program.
    :param count: how many children.
    :param liveness_file: touched while every child works.
    :param keep_on_mistakes: a child that cannot start does not end the supervisor, as its file may be changed.
    """

    command: Sequence[str]
    count: int
    liveness_file: Path | None = None
    keep_on_mistakes: bool = False
    _events: SimpleQueue[tuple[str, Any]] = field(default_factory=SimpleQueue)
    _children: list[_Child] = field(default_factory=list)
    _stopping: bool = False
    _code: int = 0
    _told_ready: bool = False
    _files: Path = Path()

    def restart(self) -> None:
        """Stop all children in order, and start new ones. From any thread."""
        self._events.put(("restart", None))

    def run(self) -> int:
        """Start the children, and wait until all have ended.

        :returns: the exit code: 0 if all handlers ended in time.
        """
        earlier = {number: signal.signal(number, self._signalled) for number in self._signals()}
        try:
            with tempfile.TemporaryDirectory(prefix="message-hub-") as directory, _ready_socket(directory) as readiness:
                self._files = Path(directory)
                threading.Thread(
                    target=self._read_readiness, args=(readiness,), name="message-hub-children-ready", daemon=True
                ).start()
                self._children = [_Child(number) for number in range(1, self.count + 1)]
                for child in self._children:
                    self._start(child)
                try:
                    self._serve()
                finally:
                    self._kill()
                    readiness.sendto(b"", readiness.getsockname())  # ends the thread that reads
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            if self.liveness_file is not None:
                self.liveness_file.unlink(missing_ok=True)
        return self._code

    @staticmethod
    def _signals() -> tuple[int, ...]:
        return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._events.put(("restart" if number == signal.SIGHUP else "signal", number))

    def _read_readiness(self, readiness: socket.socket) -> None:
        while True:
            try:
                state = readiness.recv(1024)
            except OSError:
                return
            if not state:
                return
            for line in state.decode("ascii", "replace").splitlines():
                if line.startswith("MAINPID="):
                    self._events.put(("ready", line.removeprefix("MAINPID=")))

    # --- the main thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        while not (self._stopping and all(child.process is None for child in self._children)):
            handlers: dict[str, Callable[[Any], None]] = {
                "signal": self._stop,
                "restart": self._restart,
                "ready": self._note_ready,
                "exited": self._note_exit,
            }
            try:
                kind, value = self._events.get(timeout=self._patience())
            except Empty:
                pass
            else:
                handlers[kind](value)
            self._start_due()
            self._show_liveness()

    def _patience(self) -> float | None:
        """Seconds until something is to be done; ``None``: only an event is waited for."""
        now = time.monotonic()
        waits = [child.starts_at - now for child in self._children if child.starts_at is not None]
        if self.liveness_file is not None:
            waits.append(_LIVENESS_EVERY)
        return max(0.0, min(waits)) if waits else None

    def _start(self, child: _Child) -> None:
        environment = {**os.environ, SUPERVISED: "1", "NOTIFY_SOCKET": str(self._files / "ready")}
        command = list(self.command)
        if self.liveness_file is not None:
            command += ["--liveness-file", str(self._file_of(child))]
        # A session of its own: Ctrl-C in a terminal reaches the supervisor only, which stops the children in order.
        child.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
        child.ready, child.started_at, child.starts_at = False, time.monotonic(), None
        threading.Thread(
            target=self._await_exit, args=(child.process,), name=f"message-hub-child-{child.number}", daemon=True
        ).start()

    def _await_exit(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._events.put(("exited", process))

    def _start_due(self) -> None:
        for child in self._children:
            if not self._stopping and child.starts_at is not None and child.starts_at <= time.monotonic():
                self._start(child)

    def _note_ready(self, pid: str) -> None:
        for child in self._children:
            if child.process is not None and str(child.process.pid) == pid:
                child.ready = child.ever_ready = True
        if not self._told_ready and all(child.ready for child in self._children):
            self._told_ready = True
            logger.info("all %d processes consume", self.count)
            notify("READY=1")

    def _note_exit(self, process: subprocess.Popen[bytes]) -> None:
        [child] = [child for child in self._children if child.process is process]
        code, child.process = process.returncode, None
        if process.stdin is not None:
            process.stdin.close()
        if self._stopping:
            # Before it was ready it had no handlers, so nothing was cut off.
            if code != 0 and child.ready and self._code == 0:
                self._code = Exit.NOT_ALL
            return
        if code in _MISTAKES and not child.ever_ready and not self.keep_on_mistakes:
            logger.error("process %d ended with exit code %d before it consumed, so all end", child.number, code)
            self._code = code
            self._stop(None)
            return
        if child.restarting:
            child.restarting, child.starts_at = False, time.monotonic()
            return
        if code in _MISTAKES and not child.ready and self.keep_on_mistakes:
            logger.error("process %d ended with exit code %d and waits for a changed file", child.number, code)
            return
        lived = time.monotonic() - child.started_at
        child.pause = _FIRST_PAUSE if lived >= _STABLE else child.pause
        logger.warning(
            "process %d ended with exit code %d and is started again in %g s", child.number, code, child.pause
        )
        child.starts_at = time.monotonic() + child.pause
        child.pause = min(_LONGEST_PAUSE, child.pause * 2)

    def _restart(self, _number: Any) -> None:
        if not self._stopping:
            logger.info("all processes are started again")
            for child in self._children:
                child.pause = _FIRST_PAUSE
                if child.process is None:
                    child.starts_at = time.monotonic()
                else:  # started as soon as it has ended
                    child.restarting = True
                    self._send(child, signal.SIGTERM)

    def _stop(self, number: int | None) -> None:
        if self._stopping and number is not None:  # a second signal: at once
            self._code = Exit.SIGNALLED + number
            self._kill()
            return
        self._stopping = True
        notify("STOPPING=1")
        for child in self._children:
            child.starts_at = None
            self._send(child, signal.SIGTERM)

    def _kill(self) -> None:
        for child in self._children:
            self._send(child, signal.SIGKILL)

    @staticmethod
    def _send(child: _Child, number: int) -> None:
        if child.process is not None:
            child.process.send_signal(number)  # does nothing if it has ended

    # --- liveness ------------------------------------------------------------------------------------

    def _file_of(self, child: _Child) -> Path:
        return self._files / f"child-{child.number}"

    def _show_liveness(self) -> None:
        if self.liveness_file is None:
            return
        try:
            ages = [time.time() - self._file_of(child).stat().st_mtime for child in self._children]
            if max(ages) < _LIVENESS_OLD:
                self.liveness_file.touch()
        except OSError:  # a child has not started yet, or its disk has an error: the file becomes old, and shows it
            return


def _ready_socket(directory: str) -> socket.socket:
    """Where children say ``READY=1``, as they would to systemd."""
    readiness = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    readiness.bind(os.path.join(directory, "ready"))
    return readiness


def child_command(arguments: Sequence[str]) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "message_hub_sync.cli", "consume", *arguments]
