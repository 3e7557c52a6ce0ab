"""Middleware in the test kit: of mock services, over retries on a virtual clock, and of replayed dead letters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector

from message_hub_sync import MessageHubDeliveryError, Received, RetryPolicy, Sending
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.envelope.values import Properties
from message_hub_sync.testing import MessageHubTestFramework, RecordingMiddleware
from message_hub_sync.transport.base import Delivery, Outgoing


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


# --- what is recorded ------------------------------------------------------------------------------


def test_the_numbers_of_calls_rise_and_a_bulk_call_is_one() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework() as framework:
        framework.create_mock_service("image-service")
        client = framework.client("character-service", middleware=[recording])
        client.send_message("image-service", {"n": 1})
        client.send_messages([("image-service", {"n": 2}), ("image-service", {"n": 3})])
        with pytest.raises(MessageHubDeliveryError):
            client.send_message("nobody", {"n": 4})
        recording.clear()
        client.publish_event("character.created", {"character_id": "1"})
        client.send_message("image-service", {"n": 5})
        # Two records of one call must not be taken for one of an earlier call, so the numbers go on.
        assert [one.call for one in recording.sent] == [4, 5]


def test_each_record_has_the_number_of_its_call() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework() as framework:
        framework.create_mock_service("image-service")
        client = framework.client("character-service", middleware=[recording])
        client.send_message("image-service", {"n": 1})
        client.send_messages([("image-service", {"n": 2}), ("image-service", {"n": 3})])
        client.send_message("image-service", {"n": 4})
    assert [(one.call, one.payload["n"]) for one in recording.sent] == [(1, 1), (2, 2), (2, 3), (3, 4)]


def test_the_headers_of_a_delivery_are_recorded() -> None:
    recording = RecordingMiddleware()
    with MessageHubTestFramework() as framework:
        framework.client("image-service", middleware=[recording]).subscribe_messages(lambda message: {"n": 2})
        client = framework.client("character-service")
        message_id = client.send_message("image-service", {"n": 1}, correlation_id="one", headers={"mine": "own"})
        (handled,) = recording.wait_for_handled(1)
    (arrived,) = recording.arrivals
    for one in (arrived, handled):
        assert (one.headers["mine"], one.headers["source"]) == ("own", "character-service")
        assert (one.message_id, one.correlation_id, one.queue) == (str(message_id), "one", "image-service.messages")
        assert (one.redelivered, one.payload) == (False, {"n": 1})
    assert (arrived.result, handled.result) == (None, {"n": 2})


def test_recorded_headers_are_copies() -> None:
    recording = RecordingMiddleware()
    outgoing = Outgoing("", "image-service.messages", b"{}", Properties(str(uuid4()), headers={"mine": "own"}))
    recording.send((Sending(outgoing),), lambda: None)
    one = received(headers={"mine": "own"})
    recording.arrived(one)
    recording.handle(one, lambda: None)

    outgoing.properties.headers["mine"] = one.properties.headers["mine"] = "changed"

    assert [found.headers for found in (*recording.sent, *recording.arrivals, *recording.handled)] == [
        {"mine": "own"}
    ] * 3


def test_a_delivery_that_came_again_is_recorded_as_such() -> None:
    recording = RecordingMiddleware()
    recording.arrived(received(redelivered=True))
    recording.handle(received(), lambda: None)
    assert [found.redelivered for found in (*recording.arrivals, *recording.handled)] == [True, False]


def received(*, redelivered: bool = False, headers: dict[str, Any] | None = None) -> Received:
    properties = Properties(str(uuid4()), headers=headers or {})
    delivery = Delivery(b"{}", properties, "", "", "image-service.messages", redelivered, 1, 1, None)
    return Received(DecodedDelivery(delivery, "message", "image-service", 1_000))


# --- waiting ---------------------------------------------------------------------------------------


class Announcing(threading.Condition):
    """Notes each wait. The waiter holds the lock until it waits, so a record that is added afterwards wakes it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Collector()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits(timeout)
        return super().wait(timeout)


def send_one(recording: RecordingMiddleware) -> None:
    outgoing = Outgoing("", "image-service.messages", b"{}", Properties(str(uuid4())))
    recording.send((Sending(outgoing),), lambda: None)


def handle_one(recording: RecordingMiddleware) -> None:
    recording.handle(received(), lambda: None)


@pytest.mark.parametrize(
    ("wait", "add"),
    [
        (lambda recording: recording.wait_for_sent(2, timeout=60), send_one),
        (lambda recording: recording.wait_for_handled(2, timeout=60), handle_one),
    ],
    ids=["sent", "handled"],
)
def test_who_waits_wakes_up_when_another_thread_adds_a_record(
    wait: Callable[[RecordingMiddleware], list[Any]], add: Callable[[RecordingMiddleware], None]
) -> None:
    recording, found = RecordingMiddleware(), Collector()
    condition = recording._changed = Announcing()
    threading.Thread(target=lambda: found(wait(recording)), daemon=True).start()

    condition.waits.wait()
    add(recording)
    condition.waits.wait(2)
    assert found.items == []
    add(recording)

    assert len(found.wait()[0]) == 2
    # It has not polled: one wait for each record, each one until the end of its time.
    assert len(condition.waits.items) == 2
    assert all(seconds > 50 for seconds in condition.waits.items)


def test_what_is_there_is_not_waited_for() -> None:
    recording = RecordingMiddleware()
    condition = recording._changed = Announcing()
    send_one(recording)
    handle_one(recording)
    assert len(recording.wait_for_sent(1)) == len(recording.wait_for_handled(1)) == 1
    assert condition.waits.items == []
