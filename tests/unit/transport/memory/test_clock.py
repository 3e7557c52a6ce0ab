"""The clocks of the embedded hub."""

from __future__ import annotations

import threading

import pytest

from message_hub_sync import MessageHubReentryError
from message_hub_sync.transport.memory.clock import VirtualClock


def test_a_virtual_clock_is_not_advanced_by_what_its_advancing_calls() -> None:
    clock, refused = VirtualClock(), []

    def ring() -> None:
        # As a signal handler or a callback of the test does on the thread that advances.
        with pytest.raises(MessageHubReentryError):
            clock.advance(5)
        refused.append(clock.now())

    clock.set_alarm(ring, 1)
    thread = threading.Thread(target=clock.advance, args=(2.0,), daemon=True)
    thread.start()
    thread.join(60)
    assert refused == [1]
    assert clock.now() == 2
    clock.advance(1)
    assert clock.now() == 3
