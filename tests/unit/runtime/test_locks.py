"""A Lock is never left held, never taken twice by one thread, and never waited for without an end."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import run

import message_hub_sync
from message_hub_sync.errors import MessageHubConnectionError, MessageHubReentryError
from message_hub_sync.runtime import locks
from message_hub_sync.runtime.locks import Lock, locked, refuse_where_it_cannot_wait, serve_on_this_thread

#: Runs critical sections while a signal handler raises: once in each round, after 1 to 60 µs.
INTERRUPTED = """
import signal, sys, threading, time
from message_hub_sync.runtime.locks import Lock, locked, refuse_where_it_cannot_wait

class Interruption(Exception):
    pass

class Guarded:
    def __init__(self):
        self._lock = Lock(1)
        self.total = 0

    @locked
    def add(self, count):
        self.total += count
        return [count]

def raising(*_):
    raise Interruption

guarded, outer = Guarded(), Lock(0)
wanted, ends = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
stop = threading.Event()

def other():
    while not stop.is_set():
        guarded.add(2)

for _ in range(int(sys.argv[3])):
    threading.Thread(target=other, daemon=True).start()

signal.signal(signal.SIGALRM, raising)
interrupted = 0
while interrupted < wanted and time.monotonic() < ends:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.000001 * (1 + interrupted % 61))
        while True:
            refuse_where_it_cannot_wait()
            outer.run(guarded.add, 1)
    except Interruption:
        interrupted += 1
    if outer._is_owned() or guarded._lock._is_owned():
        sys.exit(f"left held after {interrupted} interruptions")

stop.set()
taken = threading.Thread(target=outer.run, args=(guarded.add, 1), daemon=True)
taken.start()
taken.join(20)
if taken.is_alive():
    sys.exit("another thread cannot take the locks")
print(interrupted)
"""


class Guarded:
    """Something with a lock, as the library's classes have it."""

    def __init__(self, order: int = 0) -> None:
        self._lock = Lock(order)

    @locked
    def run(self, work: Callable[[], Any]) -> Any:
        return work()


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Any]:
    """Runs a function in another thread and returns its result, or the exception that it raised."""

    def run_there(work: Callable[[], Any]) -> Any:
        results: list[Any] = []

        def target() -> None:
            try:
                results.append(work())
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join(60)
        assert results, "it hangs"
        return results[0]

    return run_there


@pytest.mark.parametrize("other_threads", [0, 2])
def test_a_signal_handler_that_raises_anywhere_leaves_no_lock_held_and_is_not_hidden(other_threads: int) -> None:
    program = run(["-c", INTERRUPTED, "30000", "30", str(other_threads)], timeout=90)
    assert program.returncode == 0, program.stdout + program.stderr
    assert int(program.stdout) > 100, "it must have been interrupted"


def test_work_gets_its_arguments_and_gives_its_result_and_its_error(in_thread: Callable[..., Any]) -> None:
    lock = Lock()
    assert lock.run(lambda *a, **k: (a, k), 1, b=2) == ((1,), {"b": 2})
    with pytest.raises(RuntimeError, match="of the work"):
        lock.run(lambda: (_ for _ in ()).throw(RuntimeError("of the work")))
    with pytest.raises(ZeroDivisionError):
        lock.run(lambda: 1 / 0)
    assert in_thread(lambda: lock.run(lambda: "free")) == "free"


def test_one_thread_at_a_time(in_thread: Callable[..., Any]) -> None:
    guarded, inside, go = Guarded(), threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert go.wait(60)
        order.append("first")

    order: list[str] = []
    first = threading.Thread(target=guarded.run, args=(hold,), daemon=True)
    first.start()
    assert inside.wait(60)
    second = threading.Thread(target=guarded.run, args=(lambda: order.append("second"),), daemon=True)
    second.start()
    go.set()
    first.join(60)
    second.join(60)
    assert order == ["first", "second"]


def test_a_second_take_by_the_same_thread_is_refused_and_the_first_one_holds(in_thread: Callable[..., Any]) -> None:
    guarded = Guarded()
    refused: list[BaseException] = []
    held: list[bool] = []

    def nested() -> None:
        with pytest.raises(MessageHubReentryError, match="interrupted another call of the client") as caught:
            guarded.run(lambda: None)
        refused.append(caught.value)
        held.append(guarded._lock._is_owned())

    guarded.run(nested)
    assert held == [True], "the refused call must not release the lock"
    assert isinstance(refused[0], MessageHubConnectionError)
    assert in_thread(lambda: guarded.run(lambda: "free")) == "free"


@pytest.mark.parametrize(("outer", "inner", "allowed"), [(0, 1, True), (1, 0, False), (1, 1, False), (2, 3, True)])
def test_a_lock_is_taken_only_inside_locks_of_a_lower_order(outer: int, inner: int, allowed: bool) -> None:
    first, second = Guarded(outer), Guarded(inner)

    def nested() -> str:
        try:
            return str(second.run(lambda: "taken"))
        except MessageHubReentryError:
            return "refused"

    assert first.run(nested) == ("taken" if allowed else "refused")
    assert second.run(lambda: "taken") == "taken", "outside of the first one it is free to be taken"


def test_the_order_counts_every_lock_that_is_held() -> None:
    first, second, third = Guarded(2), Guarded(3), Guarded(2)

    def nested() -> str:
        second.run(lambda: None)  # taken and released: the first one is still held afterwards
        with pytest.raises(MessageHubReentryError):
            third.run(lambda: None)
        return "refused"

    assert first.run(nested) == "refused"


def test_a_call_that_waits_is_refused_inside_a_lock_and_nowhere_else() -> None:
    refuse_where_it_cannot_wait()

    def nested() -> None:
        with pytest.raises(MessageHubReentryError):
            refuse_where_it_cannot_wait()

    Guarded().run(nested)
    refuse_where_it_cannot_wait()


def test_a_call_that_waits_is_refused_on_a_thread_that_serves_a_connection(in_thread: Callable[..., Any]) -> None:
    def serve() -> str:
        serve_on_this_thread()
        guarded = Guarded()
        assert guarded.run(lambda: "such a thread takes locks") == "such a thread takes locks"
        with pytest.raises(MessageHubReentryError, match="on an I/O thread of the client"):
            refuse_where_it_cannot_wait()
        return "refused"

    assert in_thread(serve) == "refused"
    refuse_where_it_cannot_wait()


def test_a_lock_that_another_thread_keeps_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, in_thread: Callable[..., Any]
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE", 0.01)
    guarded = Guarded()

    def outside() -> Any:
        return in_thread(lambda: guarded.run(lambda: "taken"))

    error = guarded.run(outside)
    assert type(error) is MessageHubConnectionError
    assert "another thread has held a lock" in str(error)
    assert outside() == "taken", "the call that gave up did not disturb the lock"


# --- the library -----------------------------------------------------------------------------------

#: Where other locks are used. The reasons are in docs/decisions/0018-locks.md.
OTHERS = {
    "cli/demo/ledger.py",
    "metrics.py",
    "runtime/locks.py",
    "testing/",
    "transport/memory/clock.py",
}


def test_the_library_uses_no_other_locks_than_those_with_a_reason() -> None:
    root = Path(message_hub_sync.__file__).parent
    using = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"threading\.(R?Lock|Condition|(Bounded)?Semaphore|Barrier)\b", path.read_text())
    }
    assert "runtime/locks.py" in using
    assert {path for path in using if path not in OTHERS and not path.startswith("testing/")} == set()
