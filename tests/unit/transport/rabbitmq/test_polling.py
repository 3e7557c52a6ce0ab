"""How an I/O thread sleeps and is woken: over poll, and over select where there is no poll."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from message_hub_sync.transport.rabbitmq.polling import Poller, Waker, wait_readable


class Scene:
    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.waker = Waker()
        self.poller = Poller(self.ours, self.waker)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        self.waker.close()


@pytest.fixture(params=["poll", "select"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    if request.param == "select":
        monkeypatch.delattr(select, "poll", raising=False)
    scene = Scene()
    yield scene
    scene.close()


def test_nothing_happens_within_the_time_given(scene: Scene) -> None:
    assert scene.poller.wait(0.01, False) == (False, False)
    assert scene.poller.wait(-1.0, False) == (False, False)


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this platform has no poll")
def test_a_wait_of_less_than_a_millisecond_is_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    # poll() counts in whole milliseconds. With 0 the I/O thread would spin until its timer is due.
    asked: list[int] = []

    class Poll:
        def register(self, *_: object) -> None:
            pass

        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            asked.append(milliseconds)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    scene = Scene()
    scene.poller.wait(0.0004, False)
    wait_readable(scene.ours.fileno(), 0.0004)
    scene.poller.wait(0.0, False)
    wait_readable(scene.ours.fileno(), -1.0)
    scene.close()
    assert asked == [1, 1, 0, 0]


def test_bytes_and_the_end_of_the_stream_can_be_read(scene: Scene) -> None:
    scene.theirs.send(b"x")
    assert scene.poller.wait(5, False) == (True, False)
    scene.ours.recv(10)
    scene.theirs.close()
    assert scene.poller.wait(5, False) == (True, False)


def test_a_ring_ends_one_wait(scene: Scene) -> None:
    scene.waker.wake()
    assert scene.poller.wait(5, False) == (False, True)
    assert scene.poller.wait(0, False) == (False, False)


def test_room_to_write_ends_a_wait_only_where_it_is_wanted(scene: Scene) -> None:
    assert scene.poller.wait(0.01, False) == (False, False)
    assert scene.poller.wait(5, True) == (False, False)
    scene.theirs.send(b"x")
    assert scene.poller.wait(5, True) == (True, False)
    assert scene.poller.wait(5, False) == (True, False)


# --- the waker ---


def test_a_wait_ends_when_another_thread_wakes() -> None:
    waker = Waker()
    threading.Timer(0.05, waker.wake).start()
    began = time.monotonic()
    assert waker.wait(began + 60)
    assert time.monotonic() - began < 30
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
