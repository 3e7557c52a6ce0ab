"""Finds out whether anything was lost: a ledger outside the processes under test, and a verdict over it.

A sender writes ``invoke`` before the call, and ``ok``, ``rejected`` or ``unknown`` after it. A handler writes
``handled`` at its end. The lines go through a pipe that outlives every process under test, so that lines written
before a SIGKILL are read.

    with Oracle(tmp_path) as oracle:
        oracle.ledger.call(lambda id: client.publish_event("character.created", {}, message_id=id))
        oracle.drained(10)
        assert oracle.verdict().holds
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID, uuid4

from faults.timing import TOLERANCE

from message_hub_sync import MessageHubDeliveryError, MessageHubError

__all__ = ["Call", "Counts", "Ledger", "Oracle", "Verdict"]


class Ledger:
    """The end of the pipe to which a process under test writes.

    Safe in all threads, greenlets and forked children: it has no state, and each line is one ``write`` below PIPE_BUF,
    so that lines never mix.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._pipe = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def call(
        self,
        send: Callable[[UUID], Any],
        message_id: UUID | None = None,
        *,
        thrown: tuple[type[BaseException], ...] = (),
    ) -> MessageHubError | None:
        """Make one call, and write its start and outcome.

        Other exceptions are raised. They count as unknown if the test has thrown them in (``thrown``), else as foreign.

        :returns: the package's error, or ``None``.
        """
        message_id = uuid4() if message_id is None else message_id
        self.write("invoke", message_id)
        started = time.monotonic()
        try:
            send(message_id)
        except MessageHubError as error:
            unknown = isinstance(error, MessageHubDeliveryError) and error.outcome == "unknown"
            self._outcome("unknown" if unknown else "rejected", message_id, started, type(error).__name__)
            return error
        except BaseException as error:
            kind = "unknown" if isinstance(error, thrown) else "foreign"
            self._outcome(kind, message_id, started, type(error).__name__)
            raise
        self._outcome("ok", message_id, started, "")
        return None

    def _outcome(self, kind: str, message_id: UUID, started: float, error: str) -> None:
        self.write(kind, message_id, f"{time.monotonic() - started:.4f}", error)

    def handled(self, message_id: object) -> None:
        """Write that a handler has handled this message."""
        self.write("handled", message_id)

    def dead(self, message_id: object) -> None:
        """Write that this message was found in a dead-letter queue."""
        self.write("dead", message_id)

    def write(self, kind: str, *values: object) -> None:
        """Append one line."""
        os.write(self._pipe, f"{kind} {' '.join(map(str, values))}\n".encode())

    def close(self) -> None:
        """Close the file descriptor."""
        os.close(self._pipe)


@dataclass(frozen=True)
class Call:
    """How one call ended: its outcome, the error's class name (empty if none), and its duration."""

    outcome: str
    error: str
    seconds: float


@dataclass(frozen=True)
class Counts:
    """The numbers of the report: messages by final outcome, and handler runs after the first (``duplicates``)."""

    invoked: int = 0
    ok: int = 0
    rejected: int = 0
    unknown: int = 0
    handled: int = 0
    duplicates: int = 0
    lost: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Verdict:
    """The counts, and what must be empty: three sets of message ids, and the errors that are not the package's.

    ``lost``: confirmed, but neither handled nor dead. ``invented``: handled, but never sent. ``false_rejections``:
    reported as rejected, but handled or dead.
    """

    counts: Counts
    lost: frozenset[str]
    invented: frozenset[str]
    false_rejections: frozenset[str]
    foreign: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether all of them are empty."""
        return not (self.lost or self.invented or self.false_rejections or self.foreign)

    def __str__(self) -> str:
        lost, invented, false = (sorted(ids)[:3] for ids in (self.lost, self.invented, self.false_rejections))
        return f"{self.counts}; lost {lost}, invented {invented}, false rejections {false}, foreign {self.foreign[:3]}"


class Oracle:
    """Reads the pipe in its own thread until :meth:`close`, copies the lines to a file, and judges them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "ledger.pipe"
        os.mkfifo(self.path)
        # Opened for reading and writing, so that there is no end of file when all workers have closed the pipe.
        self._reader = os.open(self.path, os.O_RDWR)
        self._file = (directory / "ledger.txt").open("a", buffering=1)
        self._changed = threading.Condition()
        self._messages: dict[str, _Message] = {}  # guarded by _changed
        self._finals: Counter[str] = Counter()  # guarded by _changed
        self._missing: set[str] = set()  # confirmed, but not handled yet; guarded by _changed
        self._handled: list[str] = []  # guarded by _changed
        self._marks: set[str] = set()  # guarded by _changed
        self._others: Counter[str] = Counter()  # lines of workers, by first word; guarded by _changed
        self._calls: list[Call] = []  # guarded by _changed
        self._foreign: list[str] = []  # guarded by _changed
        self.ledger = Ledger(self.path)
        self._thread = threading.Thread(target=self._read, name="message-hub-test-oracle", daemon=True)
        self._thread.start()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading. The lines read so far are kept."""
        if self._thread.is_alive():
            self.ledger.write("end", "-")
            self._thread.join(30)
            self.ledger.close()
            self._file.close()

    # --- waiting ----------------------------------------------------------------------------------

    def wait(self, condition: Callable[[Counts], bool], timeout: float) -> Counts:
        """Wait until ``condition`` is true for the counts, and return them. Fails with the counts after the timeout."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition(self._counts()), timeout + TOLERANCE)
            counts = self._counts()
        assert met, f"the condition was not met within {timeout:g} s: {counts}"
        return counts

    def told(self, word: str, count: int = 1, timeout: float = 20) -> int:
        """Wait until workers have written ``count`` lines that begin with ``word``. Returns their number."""
        with self._changed:
            met = self._changed.wait_for(lambda: self._others[word] >= count, timeout)
            assert met, f"{self._others[word]} of {count} lines {word!r} came within {timeout:g} s"
            return self._others[word]

    def drained(self, timeout: float) -> bool:
        """Wait until everything that was accepted has been handled. Returns false after the timeout."""
        self.settle()
        with self._changed:
            return self._changed.wait_for(lambda: not self._missing, timeout)

    def settle(self) -> None:
        """Wait until everything written so far has been read."""
        mark = uuid4().hex
        self.ledger.write("mark", mark)
        with self._changed:
            assert self._changed.wait_for(lambda: mark in self._marks, 30), "the oracle's reader has ended"

    # --- judging ----------------------------------------------------------------------------------

    def counts(self) -> Counts:
        """The counts of the lines read so far."""
        with self._changed:
            return self._counts()

    def calls(self, since: int = 0) -> list[Call]:
        """The calls that have ended, in order, from number ``since`` on."""
        self.settle()
        with self._changed:
            return self._calls[since:]

    def handled(self) -> list[str]:
        """The ids of the handled messages, in order. An id that was handled twice occurs twice."""
        self.settle()
        with self._changed:
            return list(self._handled)

    def invoked(self) -> list[str]:
        """The ids of the messages that were sent, in order."""
        self.settle()
        with self._changed:
            return [key for key, one in self._messages.items() if one.invoked]

    def verdict(self) -> Verdict:
        """Judge everything that was written."""
        self.settle()
        with self._changed:
            handled = {key: one for key, one in self._messages.items() if one.handled}
            return Verdict(
                counts=self._counts(),
                lost=frozenset(self._missing),
                invented=frozenset(key for key, one in handled.items() if not one.invoked),
                # A dead letter was delivered, so that the broker had accepted it.
                false_rejections=frozenset(
                    key for key, one in self._messages.items() if one.final == "rejected" and (one.handled or one.dead)
                ),
                foreign=tuple(self._foreign),
            )

    def _counts(self) -> Counts:
        handled = self._finals["handled"]
        return Counts(
            invoked=self._finals["invoked"],
            ok=self._finals["ok"],
            rejected=self._finals["rejected"],
            unknown=self._finals["unknown"],
            handled=handled,
            duplicates=len(self._handled) - handled,
            lost=len(self._missing),
        )

    # --- reading ----------------------------------------------------------------------------------

    def _read(self) -> None:
        with contextlib.closing(_lines(self._reader)) as lines:
            for line in lines:
                self._file.write(line + "\n")
                kind, _, rest = line.partition(" ")
                if kind == "end":
                    return
                with self._changed:
                    self._note(kind, rest.split(" "))
                    self._changed.notify_all()

    def _note(self, kind: str, values: list[str]) -> None:
        if kind not in ("invoke", "ok", "rejected", "unknown", "foreign", "handled", "dead"):
            if kind == "mark":
                self._marks.add(values[0])
            else:
                self._others[kind] += 1
            return
        message_id = values[0]
        message = self._messages.setdefault(message_id, _Message())
        self._finals.subtract(message.counted())
        if kind == "invoke":
            message.invoked += 1
        elif kind == "handled":
            message.handled += 1
            self._handled.append(message_id)
        elif kind == "dead":
            message.dead = True
        else:
            message.answers.append("unknown" if kind == "foreign" else kind)
            self._calls.append(Call(kind, values[2], float(values[1])))
            if kind == "foreign":
                self._foreign.append(values[2])
        self._finals.update(message.counted())
        if message.final == "ok" and not message.handled and not message.dead:
            self._missing.add(message_id)
        else:
            self._missing.discard(message_id)


@dataclass
class _Message:
    """What is known about one message id."""

    invoked: int = 0
    answers: list[str] = field(default_factory=list)
    handled: int = 0
    dead: bool = False

    @property
    def final(self) -> str:
        """The outcome of all calls: ok if one was, rejected if all were, otherwise unknown."""
        if "ok" in self.answers:
            return "ok"
        rejected = self.answers.count("rejected") == self.invoked > 0
        return "rejected" if rejected else "unknown"

    def counted(self) -> list[str]:
        """The names of the counters that count this message."""
        found = ["handled"] if self.handled else []
        return [*found, "invoked", self.final] if self.invoked else found


def _lines(descriptor: int) -> Iterator[str]:
    rest = b""
    try:
        while True:
            *whole, rest = (rest + os.read(descriptor, 65536)).split(b"\n")
            for line in whole:
                yield line.decode()
    finally:
        os.close(descriptor)
