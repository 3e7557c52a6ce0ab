"""Middleware in the test kit: of mock services, over retries on a virtual clock, and of replayed dead letters."""

from __future__ import annotations

import pytest

from message_hub_sync import RetryPolicy
from message_hub_sync.testing import MessageHubTestFramework, RecordingMiddleware


def test_a_replayed_dead_letter_passes_the_middleware_of_the_service_again() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework(virtual_clock=True) as framework:
        service = framework.create_mock_service(
            "image-service", middleware=[recording], retry=RetryPolicy(attempts=2, delays=(1,))
        )
        service.fail_next(2, ValueError("no such theme"))
        sender = framework.client("character-service")
        sender.send_message("image-service", {"n": 1}, ttl=None)
        framework.advance(1)
        recording.wait_for_handled(2)
        letter = framework.export_dead_letter("image-service.messages")

        framework.replay(letter)
        first, second, replayed = recording.wait_for_handled(3)

    assert [(one.attempt, type(one.error)) for one in (first, second)] == [(1, ValueError), (2, ValueError)]
    # It has all attempts again, and is the same message.
    assert (replayed.attempt, replayed.error, replayed.payload) == (1, None, {"n": 1})
    assert {one.message_id for one in (first, second, replayed)} == {letter.message_id}
    assert [one.attempt for one in recording.arrivals] == [1, 2, 1]
    # Neither the moves nor the replay are calls of the service that send.
    assert recording.sent == []


def test_a_dead_letter_that_a_handler_gets_alone_passes_no_middleware() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework() as framework:
        client = framework.client("image-service", middleware=[recording], retry=RetryPolicy.none())
        client.subscribe_messages(lambda message: 1 / 0)
        framework.client("character-service").send_message("image-service", {"n": 1})
        recording.wait_for_handled(1)
        letter = framework.export_dead_letter("image-service.messages")
        assert letter.replay(lambda message: message.payload) == {"n": 1}
        assert len(recording.handled) == 1


def test_records_are_whole_and_can_be_forgotten() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework() as framework:
        framework.create_mock_service("image-service")
        client = framework.client("character-service", middleware=[recording])
        message_id = client.send_message("image-service", {"n": 1}, correlation_id="one", headers={"mine": "own"})
    (sent,) = recording.sent
    assert (sent.kind, sent.destination, sent.message_id) == ("message", "image-service", message_id)
    assert (sent.correlation_id, sent.payload, sent.headers["mine"]) == ("one", {"n": 1}, "own")
    assert repr(recording) == "<RecordingMiddleware: 1 sent, 0 arrived, 0 handled>"
    recording.clear()
    assert recording.sent == []


def test_waiting_for_what_does_not_come_fails_in_time() -> None:
    with pytest.raises(AssertionError, match=r"0 of 1 deliveries were handled within 0\.05 s"):
        RecordingMiddleware().wait_for_handled(1, timeout=0.05)
