"""Time limits for tests on a machine that also runs other programs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import waiting

__all__ = ["TOLERANCE", "eventually", "in_thread", "within"]

#: Seconds to add to any limit, because a busy machine must not change a verdict. The limits find calls that hang.
TOLERANCE = 20.0


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Check that the block ends within so many seconds, also if it raises."""
    started = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - started
        assert took <= seconds + TOLERANCE, f"it took {took:.2f} s instead of {seconds:g} s at most"


def eventually(condition: Callable[[], bool], timeout: float) -> None:
    """Wait for a condition by polling, for example for the broker's list of queues."""
    assert waiting.eventually(condition, timeout + TOLERANCE), f"not so within {timeout:g} s"


@contextlib.contextmanager
def in_thread(work: Callable[[], object], timeout: float = 30) -> Iterator[threading.Thread]:
    """Run ``work`` in a thread during the block, and wait for its end. An exception of ``work`` is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="message-hub-test-beside", daemon=True)
    thread.start()
    yield thread
    thread.join(timeout)
    assert not thread.is_alive(), f"a thread hung for {timeout:g} s"
    if failed:
        raise failed[0]
