from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from locking import held

from message_hub_sync.consuming.deduplication import DeduplicationStore, MemoryDeduplication
from message_hub_sync.errors import MessageHubConfigurationError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_a_store() -> None:
    store: DeduplicationStore = MemoryDeduplication()
    assert isinstance(store, DeduplicationStore)


def test_only_what_was_added_has_been_seen() -> None:
    store = MemoryDeduplication()
    assert "a" not in store
    assert "a" not in store, "asking is not handling"
    store.add("a")
    assert "a" in store
    assert "b" not in store


def test_a_key_is_forgotten_when_its_window_is_over_however_often_it_is_seen() -> None:
    clock = Clock()
    store = MemoryDeduplication(window=60, clock=clock)
    store.add("a")
    clock.now = 59.9
    assert "a" in store
    clock.now = 60
    assert "a" not in store
    assert len(store) == 0


def test_adding_a_key_again_starts_its_window_anew() -> None:
    clock = Clock()
    store = MemoryDeduplication(window=60, clock=clock)
    store.add("a")
    clock.now = 50
    store.add("a")
    clock.now = 100
    assert "a" in store


def test_the_key_unused_for_longest_is_crowded_out() -> None:
    store = MemoryDeduplication(capacity=2)
    store.add("a")
    store.add("b")
    assert "a" in store
    store.add("c")
    assert [key in store for key in "abc"] == [True, False, True]
    assert len(store) == 2


def test_threads_share_a_store() -> None:
    store = MemoryDeduplication(capacity=100)
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for number in range(2_000):
                store.add(f"{worker}-{number}")
                _ = f"{(worker + 1) % 4}-{number}" in store
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(store) == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_forked_while_the_lock_was_held_is_not_stuck() -> None:
    store = MemoryDeduplication()
    store.add("a")
    with held(store._lock):
        child = os.fork()
        if child == 0:
            asking = threading.Thread(target=store.add, args=("b",), daemon=True)
            asking.start()
            asking.join(30)
            os._exit(asking.is_alive())
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"capacity": 0}, "capacity must be a whole number from 1, not 0$"),
        ({"capacity": 1.5}, r"capacity must be a whole number from 1, not 1\.5$"),
        ({"window": 0}, "window must be a number of seconds greater than 0 and at most 2147000, not 0"),
    ],
)
def test_a_store_says_which_setting_is_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=says):
        MemoryDeduplication(**settings)


def test_a_long_key_is_remembered_by_its_hash() -> None:
    store = MemoryDeduplication()
    store.add("x" * 100_000)

    assert "x" * 100_000 in store
    assert "x" * 99_999 not in store
    assert max(map(len, store._added)) < 500
