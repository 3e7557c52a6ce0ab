"""Work that no signal handler interrupts."""

from __future__ import annotations

import threading

import pytest
from collector import Collector

from message_hub_sync.runtime.uninterrupted import start_uninterrupted


def test_the_work_runs_on_a_thread_of_its_own_that_ends_with_it() -> None:
    ran = Collector()

    done = start_uninterrupted(lambda: ran(threading.current_thread()), "the name")

    assert done.wait(60)
    (thread,) = ran.items
    assert thread is not threading.current_thread()
    assert (thread.name, thread.daemon) == ("the name", True)
    thread.join(60)
    assert not thread.is_alive()


def test_the_work_runs_here_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    ran = Collector()

    done = start_uninterrupted(lambda: ran(threading.current_thread()), "the name")

    assert done.is_set()
    assert ran.items == [threading.current_thread()]


def test_an_error_is_logged_and_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise SystemExit(3)

    assert start_uninterrupted(fail, "the name").wait(60)

    assert "the name failed" in caplog.text
