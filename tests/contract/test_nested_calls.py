"""A call that interrupts another call of the client works or is refused at once, and the other call is not harmed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from message_hub_sync import MessageHubReentryError


@pytest.fixture
def alarm() -> Iterator[Any]:
    """Starts a repeated SIGALRM with a handler, and ends it after the test."""
    earlier = signal.getsignal(signal.SIGALRM)

    def start(handler: Any) -> None:
        signal.signal(signal.SIGALRM, lambda *_: handler())
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)


def test_a_signal_handler_may_publish_while_its_thread_publishes(hub: Any, alarm: Any) -> None:
    client = hub.client("campaign-service")
    client.publish_event("campaign.started", {"n": 0})
    nested: list[str] = []

    def publish() -> None:
        try:
            client.publish_event("campaign.started", {"from": "the signal handler"})
        except MessageHubReentryError:
            nested.append("refused")
        else:
            nested.append("published")

    alarm(publish)
    ends = time.monotonic() + 40
    number = 0
    while (number < 100 or len(nested) < 40) and time.monotonic() < ends:
        number += 1
        assert client.publish_event("campaign.started", {"n": number})
        assert client.get_health_status()["circuit_breaker_state"] == "closed"
    assert len(nested) >= 40
    assert client.get_health_status()["connected"]


def test_a_call_on_a_thread_that_holds_a_lock_is_refused_and_counted_by_no_circuit(hub: Any) -> None:
    client = hub.client("campaign-service")
    client.publish_event("campaign.started", {"n": 0})
    breakers = client._lifecycle.session().breakers

    def publish_often() -> int:
        for _ in range(20):
            with pytest.raises(MessageHubReentryError, match="nothing was sent"):
                client.publish_event("campaign.started", {"n": 1})
            with pytest.raises(MessageHubReentryError, match="nothing was sent"):
                client.publish_events([("campaign.started", {"n": 1})])
        return 20

    assert breakers._lock.run(publish_often) == 20
    assert set(client.get_health_status()["circuit_breakers"].values()) <= {"closed"}
    assert client.publish_event("campaign.started", {"n": 2})
