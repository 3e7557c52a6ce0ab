"""Holds a lock of the library over a block of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from message_hub_sync.runtime.locks import Lock


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold ``lock`` during the block, as a thread of the library does while it works."""
    assert lock._acquire(True, 20)
    try:
        yield
    finally:
        lock._release()


def is_free(lock: Lock) -> bool:
    """Whether no thread holds ``lock``. The calling thread does not."""
    free: bool = lock._acquire(False)
    if free:
        lock._release()
    return free
