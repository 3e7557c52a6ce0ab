"""Child processes that never outlive their owner, even if the owner is killed with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.real_time import time

# Reads lists of process groups until its stdin ends. That happens in two cases. 1: the owner sent an empty list and
# closed the pipe: nothing is killed. 2: the owner ended in any way: all groups of the last list are killed.
_GUARD = """
trap '' HUP INT QUIT TERM
groups=
while read -r line; do groups=$line; done
[ -n "$groups" ] || exit 0
for group in $groups; do kill -9 "-$group" 2>/dev/null; done
rm -rf -- "$1"
"""

# Waits for one line before it starts the command, so that the guard knows the process first. If the owner dies in
# between, this `read` fails, and nothing was started.
_LAUNCHER = 'read -r go && exec "$@" </dev/null'

#: The longest wait in seconds until a process has stopped.
_STOP_TIMEOUT = 10.0

_guards: weakref.WeakSet[ProcessGuard] = weakref.WeakSet()


class ProcessGuard:
    """A shell process that kills the guarded process groups and removes a directory when this process ends.

    Thread-safe. A forked child closes its copy of the pipe: otherwise the guard would not notice the owner's end.

    :param directory: the directory to remove.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.RLock()
        self._groups: set[int] = set()  # guarded by _lock
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "message-hub-guard", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _guards.add(self)

    def add(self, group: int) -> None:
        """Guard the process group ``group`` from now on."""
        with self._lock:
            self._groups.add(group)
            self._send_groups()

    def remove(self, group: int) -> None:
        """Stop guarding ``group``: it has ended, and the kernel may reuse its number."""
        with self._lock:
            self._groups.discard(group)
            self._send_groups()

    def close(self) -> None:
        """End the guard. It kills nothing. Idempotent."""
        with self._lock:
            self._groups.clear()
            self._send_groups()
            self.close_pipe()
        self._process.wait()

    def close_pipe(self) -> None:
        """Close this process's end of the pipe."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _send_groups(self) -> None:
        """Send the current list to the guard. The caller holds ``_lock``."""
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(OSError):
                stdin.write(" ".join(map(str, self._groups)).encode() + b"\n")
                stdin.flush()


def _close_inherited_pipes() -> None:
    for guard in list(_guards):
        guard.close_pipe()
    _guards.clear()


call_after_fork_in_child(_close_inherited_pipes)


class GuardedProcess:
    """One child process in its own session, guarded by a ``ProcessGuard``. Thread-safe.

    :param command: program and arguments. It may ``exec`` another program, but must not become a background process.
    :param guard: kills the child's process group when this process ends.
    :param environment: the child's complete environment.
    :param output: the file to which the child's stdout and stderr are appended.
    :param on_exit: called once, in this object's own thread, after the child has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        guard: ProcessGuard,
        *,
        environment: Mapping[str, str],
        output: Path,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._guard = guard
        self._on_exit = on_exit
        self._exited = threading.Event()
        with output.open("ab") as log:
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCHER, "message-hub-launcher", *command],
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        guard.add(self.pid)
        name = f"message-hub-wait-{Path(command[0]).name}-{self.pid}"
        threading.Thread(target=self._reap, name=name, daemon=True).start()
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as stdin:
            stdin.write(b"go\n")

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet. A stopped (SIGSTOP) process is alive."""
        return not self._exited.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end of the process. Returns whether it has ended."""
        return self._exited.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its group. If it has ended, do nothing."""
        self._popen.send_signal(number)

    def stop(self) -> None:
        """Send SIGSTOP, and wait until the process has stopped: it runs on for a moment after the signal was sent."""
        self.signal(signal.SIGSTOP)
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return
        # Nothing announces it without taking the status from the thread that waits for the end.
        flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        deadline = time.monotonic() + _STOP_TIMEOUT
        with contextlib.suppress(ChildProcessError):  # it has ended
            while os.waitid(os.P_PID, self.pid, flags) is None and time.monotonic() < deadline:
                self._exited.wait(0.001)

    def end(self, timeout: float) -> None:
        """Send SIGTERM. If the process does not end within ``timeout`` seconds, send SIGKILL to its group."""
        # SIGCONT, because a stopped process handles SIGTERM only after it continues.
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if not self.wait(timeout):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait(timeout)

    def _reap(self) -> None:
        self._popen.wait()
        self._guard.remove(self.pid)
        self._exited.set()
        self._on_exit()
