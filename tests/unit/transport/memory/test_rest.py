"""Waiting until a hub rests, and what a signal may do meanwhile: nothing to a lock that another thread holds."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from message_hub_sync.transport.memory import open_hub


@pytest.fixture
def handled() -> Iterator[SimpleQueue[int]]:
    """The signals that came; the handler raises at the first two."""
    signals: SimpleQueue[int] = SimpleQueue()

    def interrupt(number: int, _: Any) -> None:
        if signals.qsize() < 2:
            signals.put(number)
            raise Interrupted

    previous = signal.signal(signal.SIGUSR1, interrupt)
    yield signals
    signal.signal(signal.SIGUSR1, previous)


class Interrupted(BaseException):
    """Thrown by a signal handler."""


def test_a_hub_rests_when_what_was_handed_out_is_settled(hub: str, client: Any, taken: Callable[..., Any]) -> None:
    client.declare("q")
    consumer = client.consume("q")
    client.publish("q")
    (delivery,) = taken(consumer)
    assert not open_hub(hub).wait_until_idle(time.monotonic() + 0.01)
    threading.Timer(0.05, consumer.ack, [delivery]).start()
    before = time.monotonic()
    assert open_hub(hub).wait_until_idle(before + 10)
    assert time.monotonic() < before + 5


def test_a_signal_at_the_end_of_a_wait_for_rest_does_not_release_the_lock_of_another_thread(
    hub: str, handled: SimpleQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = open_hub(hub)
    looking, raised = threading.Event(), threading.Event()
    kept: SimpleQueue[bool] = SimpleQueue()

    def rests() -> bool:
        looking.set()
        return False

    def hold() -> None:
        looking.wait(30)
        # Taken as soon as the wait lets go of it.
        memory._lock._acquire()
        # One signal ends the wait. The other one comes while the lock, which is not to be had, is taken back.
        # Sent again until both were seen: one that comes just before a thread falls asleep does not wake it.
        while handled.qsize() < 2 and not raised.wait(0.02):
            signal.pthread_kill(main, signal.SIGUSR1)
        raised.wait(30)
        kept.put(memory._lock._is_owned())
        if memory._lock._is_owned():
            memory._lock._release()

    monkeypatch.setattr(memory, "_is_idle", rests)
    main = threading.main_thread().ident
    assert main is not None
    threading.Thread(target=hold, name="test-holder", daemon=True).start()
    with pytest.raises(Interrupted):
        memory.wait_until_idle(time.monotonic() + 10)
    raised.set()
    assert kept.get(timeout=30)
