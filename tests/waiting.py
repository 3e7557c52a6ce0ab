"""Waits for what nothing announces, such as what a broker counts or the state of another thread or process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["eventually"]


def eventually(condition: Callable[[], Any], timeout: float = 30) -> bool:
    """Ask again and again until the condition is true. Returns whether it became true within ``timeout`` seconds."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True
