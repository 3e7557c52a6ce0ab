"""Faults happen exactly where a test says, on either transport."""

from __future__ import annotations

import threading
import time

import pytest

from message_hub_sync import (
    Event,
    MemoryDeduplication,
    MessageHubClient,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageValidationError,
)
from message_hub_sync.testing import MessageHubTestFramework


def test_a_lost_confirm_leaves_the_outcome_unknown(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).lose_confirm()
    with pytest.raises(MessageHubDeliveryError) as caught:
        a.send_message("service-b", {}, timeout=2)
    assert caught.value.outcome == "unknown"
    assert b.expect_message().id == caught.value.message_id
    assert framework.faults(a).pending == []
    a.send_message("service-b", {})


def test_a_nack_is_a_rejection(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).nack(times=2)
    for _ in range(2):
        with pytest.raises(MessageHubDeliveryError) as caught:
            a.send_message("service-b", {})
        assert caught.value.outcome == "rejected"
    sent = a.send_message("service-b", {})
    assert b.expect_message().id == sent
    assert framework.verify_no_cross_talk(["service-b"])
    assert len(b.messages_received) == 1


def test_an_unroutable_message_is_rejected_and_an_unroutable_event_unnoticed(
    framework: MessageHubTestFramework,
) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    b.subscribe_to_events("test.event")
    framework.faults(a).unroutable(times=2)
    with pytest.raises(MessageHubDeliveryError, match="no inbox"):
        a.send_message("service-b", {})
    a.publish_event("test.event", {})
    assert framework.verify_no_cross_talk(["service-b"])
    assert (b.messages_received, b.events_received) == ([], [])


def test_a_connection_cut_before_costs_nothing(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).cut_before()
    sent = a.send_message("service-b", {})
    assert b.expect_message().id == sent
    assert framework.verify_no_cross_talk(["service-b"])
    assert len(b.messages_received) == 1


def test_a_connection_cut_after_sends_twice_under_one_id(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).cut_after()
    sent = a.send_message("service-b", {})
    assert [b.expect_message().id for _ in range(2)] == [sent, sent]


def test_a_cut_gives_back_what_is_being_handled(framework: MessageHubTestFramework) -> None:
    handled: list[bool] = []
    cut, again = threading.Event(), threading.Event()
    a, client = framework.create_mock_service("service-a"), framework.client("service-b")

    def handle(event: Event) -> None:
        handled.append(event.redelivered)
        if not event.redelivered:
            framework.faults(client).cut()
            cut.set()
        else:
            again.set()

    client.subscribe(["test.event"], handle)
    a.publish_event("test.event", {})
    assert cut.wait(30)
    assert again.wait(30)
    assert handled == [False, True]


def test_a_blocked_hub_accepts_nothing_until_it_does(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    a.client.connect()
    faults = framework.faults(a)
    faults.block()
    assert a.client.get_health_status()["status"] == "blocked"
    with pytest.raises(MessageHubDeliveryError, match="memory or disk alarm"):
        a.send_message("service-b", {}, timeout=0.5)
    waiting = threading.Thread(target=lambda: a.send_message("service-b", {"late": True}))
    waiting.start()
    b.send_message("service-a", {})
    a.expect_message()  # consuming goes on
    assert b.messages_received == []
    faults.unblock()
    waiting.join(30)
    assert b.expect_message().payload == {"late": True}
    assert a.client.get_health_status()["status"] == "ok"


def test_a_delay_holds_a_message_back(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    faults = framework.faults(a)
    faults.delay(0.2)
    started = time.monotonic()
    a.send_message("service-b", {})
    assert time.monotonic() - started >= 0.2
    b.expect_message()
    faults.delay(3600)
    with pytest.raises(MessageHubConnectionError, match="nothing was sent"):
        a.send_message("service-b", {}, timeout=0.5)
    taken = threading.Event()
    faults.delay(3600, where=lambda message: taken.set() or True)
    waiting = threading.Thread(target=lambda: a.send_message("service-b", {"late": True}, timeout=30))
    waiting.start()
    assert taken.wait(30)
    faults.clear()
    assert b.expect_message().payload == {"late": True}
    waiting.join(30)


def test_a_lost_acknowledgement_delivers_again(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(b).redeliver()
    sent = a.send_message("service-b", {})
    assert [b.expect_message().id for _ in range(2)] == [sent, sent]
    assert framework.faults(b).pending == []


def test_deduplication_is_tested_with_a_lost_acknowledgement(virtual: MessageHubTestFramework) -> None:
    handled: list[str] = []
    client, mock = virtual.client("service-b"), virtual.create_mock_service("service-a")
    client.subscribe(["test.event"], lambda text: handled.append(text), deduplicate=MemoryDeduplication())
    virtual.faults(client).redeliver()
    mock.publish_event("test.event", {})
    virtual.advance(1)
    virtual.advance(0)
    assert virtual.faults(client).pending == []
    assert handled == ["{}"]


def test_faults_choose_what_they_meet(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).nack(where={"number": 1})
    a.send_message("service-b", {"number": 0})
    with pytest.raises(MessageHubDeliveryError):
        a.send_message("service-b", {"number": 1})
    a.send_message("service-b", {"number": 1})
    assert [b.expect_message().payload["number"] for _ in range(2)] == [0, 1]


def test_a_bulk_call_names_the_one_that_met_a_fault(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    framework.faults(a).nack(where={"number": 3})
    with pytest.raises(MessageHubDeliveryError) as caught:
        a.client.send_messages([("service-b", {"number": number}) for number in range(5)])
    assert [failure.index for failure in caught.value.failures] == [3]
    assert [b.expect_message().payload["number"] for _ in range(4)] == [0, 1, 2, 4]


def test_the_move_of_a_failed_message_meets_no_fault(virtual: MessageHubTestFramework) -> None:
    a = virtual.create_mock_service("service-a")
    a.fail_next()
    a.send_message("service-a", {})
    virtual.faults(a).nack()
    virtual.advance(1)
    a.expect_message()
    assert virtual.faults(a).pending == ["nack"]


def test_the_framework_leaves_a_client_as_it_was(memory: MessageHubTestFramework) -> None:
    with MessageHubClient("service-a", memory.url) as client:
        client.subscribe_messages(lambda message: None)
        transport = client._lifecycle.session().transport
        with memory.intercept(client):
            memory.faults(client).nack(times=5)
            assert "publish" in vars(transport)
        memory.stop()
        assert "publish" not in vars(transport)
        client.publish_event("test.event", {})


def test_what_is_planned_is_checked(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    with pytest.raises(MessageValidationError, match="whole number"):
        memory.faults(a).nack(times=0)
    with pytest.raises(ValueError, match="client must be a MessageHubClient or a MockService, not 'service-a'"):
        memory.faults("service-a")  # type: ignore[arg-type]
