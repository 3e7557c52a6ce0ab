"""Runs work on a thread of its own, so that no signal handler can interrupt it halfway."""

from __future__ import annotations

import threading
from collections.abc import Callable

from message_hub_sync.runtime.final_event import FinalEvent
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["start_uninterrupted"]

logger = SafeLogger("message_hub_sync.client")


def start_uninterrupted(work: Callable[[], None], name: str) -> FinalEvent:
    """Call ``work`` once, on a new thread. Signal handlers run on the main thread only, so none raises inside it.

    If no thread can be started, because the process exits or has too many, ``work`` is called here.

    :param work: what it raises is logged.
    :param name: the name of the thread.
    :returns: an event that is set when ``work`` has ended.
    """
    done = FinalEvent()

    def run() -> None:
        try:
            work()
        except BaseException:
            logger.exception("%s failed", name)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        run()
    return done
