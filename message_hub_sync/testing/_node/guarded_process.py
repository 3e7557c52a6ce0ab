"""Child processes that never outlive their owner, not even one killed with SIGKILL."""

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

# Reads lists of process groups until its stdin ends. That happens when the owner closes it, having sent an
# empty list before, or when the owner is gone, however it went; then whatever the last list names is killed.
_GUARD = """
trap '' HUP INT QUIT TERM
groups=
while read -r line; do groups=$line; done
[ -n "$groups" ] || exit 0
for group in $groups; do kill -9 "-$group" 2>/dev/null; done
rm -rf -- "$1"
"""

# Waits for one line, so that the guard knows the process before it does anything: an owner that dies in
# between ends this `read`, and nothing was started.
_LAUNCHER = 'read -r go && exec "$@" </dev/null'

_guards: weakref.WeakSet[ProcessGuard] = weakref.WeakSet()


class ProcessGuard:
    """A small shell process that kills what it guards, and removes a directory, once this process is gone.

    Thread-safe. A forked child gives up its copy of the pipe, so that it does not keep the processes alive.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
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
            self._tell()

    def remove(self, group: int) -> None:
        """Guard ``group`` no longer: it has ended, and its number may be given to another."""
        with self._lock:
            self._groups.discard(group)
            self._tell()

    def close(self) -> None:
        """End the guard without harm to anything it guarded. Idempotent."""
        with self._lock:
            self._groups.clear()
            self._tell()
            self.forget()
        self._process.wait()

    def forget(self) -> None:
        """Close this process's end of the pipe."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _tell(self) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(OSError):
                stdin.write(" ".join(map(str, self._groups)).encode() + b"\n")
                stdin.flush()


def _forget_guards_of_the_parent() -> None:
    for guard in list(_guards):
        guard.forget()
    _guards.clear()


call_after_fork_in_child(_forget_guards_of_the_parent)


class GuardedProcess:
    """One child process in a session of its own, watched by a ``ProcessGuard``.

    Thread-safe.

    :param command: program and arguments; it may ``exec`` others, but not put itself into the background.
    :param guard: kills the process's whole group when this process is gone.
    :param environment: the child's whole environment.
    :param output: file that the child's stdout and stderr are appended to.
    :param on_exit: called once, on a thread of this object, after the child has ended.
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
        """Has the process not ended yet? A stopped (SIGSTOP) one is alive."""
        return not self._exited.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the process's end. Returns whether it has ended."""
        return self._exited.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def end(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL for the whole group when that does not end it within ``timeout`` seconds."""
        # Without SIGCONT a stopped process would see SIGTERM only once it goes on.
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
