"""A waker wakes, from anywhere, and never forgets how."""

from __future__ import annotations

import os
import threading
import time

import pytest

from message_hub_sync.transport.rabbitmq.waker import Waker


def test_a_wait_ends_when_another_thread_wakes() -> None:
    waker = Waker()
    threading.Timer(0.05, waker.wake).start()
    began = time.monotonic()
    assert waker.wait(began + 5)
    assert time.monotonic() - began < 2
    waker.close()


def test_a_wake_before_the_wait_counts_and_is_used_up() -> None:
    waker = Waker()
    for _ in range(1000):
        waker.wake()
    assert waker.wait(time.monotonic() + 5)
    assert not waker.wait(time.monotonic() + 0.01)
    waker.close()


def test_a_full_pipe_does_not_hold_up_whoever_wakes() -> None:
    waker = Waker()
    for _ in range(100_000):
        waker.wake()
    assert waker.wait(time.monotonic())
    waker.close()


def test_an_exception_between_any_two_steps_of_a_wake_leaves_it_working(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def send(self, _data: bytes) -> int:
            raise KeyboardInterrupt

    waker = Waker()
    writer = waker._writer
    monkeypatch.setattr(waker, "_writer", Interrupting())
    with pytest.raises(KeyboardInterrupt):
        waker.wake()
    monkeypatch.setattr(waker, "_writer", writer)
    waker.wake()
    assert waker.wait(time.monotonic() + 1)
    waker.close()


def test_waking_after_the_end_does_nothing() -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    waker = Waker()
    waker.close()
    waker.wake()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
