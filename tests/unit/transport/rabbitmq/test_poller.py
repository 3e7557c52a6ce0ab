"""What an I/O thread sleeps in: over poll, and over select where there is no poll."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from message_hub_sync.transport.rabbitmq.poller import Poller
from message_hub_sync.transport.rabbitmq.waker import Waker


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
