"""By when something has to have happened, on a machine that is also doing other things."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["TOLERANCE", "eventually", "in_thread", "within"]

#: Seconds that two shared cores may add to any bound.
TOLERANCE = 1.0


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends in time, however it ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - started
        assert took <= seconds + TOLERANCE, f"it took {took:.2f} s instead of {seconds:g} s at most"


def eventually(condition: Callable[[], bool], timeout: float) -> None:
    """Wait for something that nothing announces, such as the broker's own list of queues."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout:g} s"
        pause.wait(0.02)


@contextlib.contextmanager
def in_thread(work: Callable[[], object], timeout: float = 30) -> Iterator[threading.Thread]:
    """Run ``work`` beside the block, and wait for its end after it; what it raises is raised here."""
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
