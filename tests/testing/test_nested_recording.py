"""What a signal handler or __del__ sends is recorded, also if it interrupts the recording of the same thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from message_hub_sync.testing import MessageHubTestFramework, RecordingMiddleware


@pytest.fixture
def framework() -> Any:
    """A hub of this test."""
    with MessageHubTestFramework() as framework:
        yield framework


def in_time(work: Callable[[], Any]) -> None:
    """Run in a thread that must end."""
    failures: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    assert failures == []


def test_an_event_published_inside_a_recording_of_events_is_recorded(framework: MessageHubTestFramework) -> None:
    mock = framework.create_mock_service("quest-service")
    mock.subscribe_to_events(["quest.started"])
    client = framework.client("campaign-service")
    with framework.intercept(client) as traffic:
        for lock in (
            traffic._attempts._changed,
            traffic._handled._changed,
            traffic._lock,
            framework._lock,
            framework.faults(client)._changed,
        ):

            def interrupted(held: Any = lock) -> None:
                with held:
                    client.publish_event("quest.started", {"n": 1})
                    assert framework.faults(client).pending == []

            in_time(interrupted)
        assert len(traffic.events_published) == 5
    for _ in range(5):
        mock.expect_event("quest.started", within=60)


def test_a_sending_inside_a_recording_by_the_middleware_is_recorded(framework: MessageHubTestFramework) -> None:
    recording = RecordingMiddleware()
    client = framework.client("campaign-service", middleware=[recording])

    def interrupted() -> None:
        with recording._changed:
            client.publish_event("quest.started", {"n": 1})

    in_time(interrupted)
    assert len(recording.sent) == 1
