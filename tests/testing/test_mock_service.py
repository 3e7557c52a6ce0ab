"""Mock services: what they record, what is expected of them, how they answer and fail."""

from __future__ import annotations

import time

import pytest

from message_hub_sync import Event, MessageHubRemoteError, MessageValidationError, RetryPolicy
from message_hub_sync.catalogue import CharacterCreated, EventType
from message_hub_sync.envelope.encode import event_properties
from message_hub_sync.testing import MessageHubTestFramework
from message_hub_sync.transport.base import Outgoing


def test_received_messages_have_payload_headers_and_ids(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    sent = a.send_message("service-b", {"number": 1}, correlation_id="order-7", priority=3, headers={"tenant": "north"})
    message = b.expect_message()
    assert message in b.messages_received
    assert (message.id, message.source, message.correlation_id) == (sent, "service-a", "order-7")
    assert (message.payload, message.priority, message.headers["tenant"]) == ({"number": 1}, 3, "north")


def test_received_events_have_payload_headers_and_ids(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    b.subscribe_to_events(["character.*"])
    published = a.publish_event("character.created", {"character_id": "42"}, headers={"tenant": "north"})
    event = b.expect_event("character.created")
    assert event in b.events_received
    assert (event.id, event.event_type, event.source) == (published, "character.created", "service-a")
    assert (event.payload, event.headers["tenant"]) == ({"character_id": "42"}, "north")


def test_each_arrival_meets_one_expectation(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    a.subscribe_to_events("test.event")
    for number in range(3):
        a.send_message("service-a", {"number": number})
        a.publish_event("test.event", {"number": number})
    assert a.expect_message(where={"number": 1}).payload == {"number": 1}
    assert [a.expect_message().payload["number"] for _ in range(2)] == [0, 2]
    assert [a.expect_event().payload["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(AssertionError, match=r"no further message within 0\.01 s"):
        a.expect_message(within=0.01)
    with pytest.raises(AssertionError, match=r"no further event test\.event within 0.01 s"):
        a.expect_event("test.event", within=0.01)
    assert len(a.messages_received) == len(a.events_received) == 3


def test_an_event_is_expected_by_name_type_or_model(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    a.subscribe_to_events([EventType("test.typed", "", None, (), CharacterCreated), "character.created"])
    for _ in range(3):
        a.publish_event("character.created", {"character_id": "42", "name": "Frodo"})
    assert a.expect_event("character.created").payload["name"] == "Frodo"
    event: Event[CharacterCreated] = a.expect_event(CharacterCreated, where=lambda one: one.payload.name == "Frodo")
    assert isinstance(event.payload, CharacterCreated)
    assert a.expect_event(CharacterCreated, where={"name": "Frodo"}).payload.character_id == "42"


def test_a_failed_expectation_lists_what_did_arrive(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    message_id = a.send_message("service-a", {"number": 1})
    a.expect_message()
    with pytest.raises(AssertionError) as caught:
        a.expect_message(where={"number": 2}, within=0.01)
    assert str(caught.value).splitlines() == [
        "service-a received no message that fits within 0.01 s",
        "what did arrive (1):",
        f"  - message to service-a {message_id} from service-a: {{'number': 1}}",
    ]


def test_a_long_list_of_arrivals_is_cut(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    for number in range(30):
        a.send_message("service-a", {"number": number, "text": "x" * 1000})
    a.expect_message(where={"number": 29})
    with pytest.raises(AssertionError) as caught:
        a.expect_message(where={"number": 30}, within=0.01)
    lines = str(caught.value).splitlines()
    assert lines[2] == "  … 10 before these"
    assert len(lines) == 23
    assert all(len(line) < 500 for line in lines)


def test_a_failed_expectation_says_why_a_payload_does_not_fit(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    a.subscribe_to_events("character.created")
    # As another program may send it: the catalogue of this one would refuse.
    properties = event_properties(source="elsewhere", event_type="character.created")
    outgoing = Outgoing("events", "character.created", b'{"name": 7}', properties)
    a.client._lifecycle.session().transport.publish(outgoing, time.monotonic() + 5)
    with pytest.raises(AssertionError, match=r"does not fit .*name: Input should be a valid string"):
        a.expect_event(CharacterCreated, within=0.2)
    assert a.expect_event("character.created").payload == {"name": 7}


def test_an_event_that_cannot_come_is_not_waited_for(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    a.subscribe_to_events("character.created")
    with pytest.raises(AssertionError, match=r"cannot receive character\.updated.*subscribed to character\.created"):
        a.expect_event("character.updated", within=3600)


def test_requests_are_answered(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    b.reply_with({"ok": True})
    assert a.request("service-b", {}).payload == {"ok": True}
    b.reply_with(lambda message: {"double": 2 * message.payload["number"]})
    assert a.request("service-b", {"number": 21}).payload == {"double": 42}
    b.fail_next(1, KeyError("race"))
    with pytest.raises(MessageHubRemoteError, match="KeyError"):
        a.request("service-b", {})


def test_told_to_fail_it_is_delivered_again(framework: MessageHubTestFramework) -> None:
    a = framework.create_mock_service("service-a", retry=RetryPolicy(attempts=2, delays=(1,)))
    a.fail_next(1, ValueError("not yet"))
    sent = a.send_message("service-a", {"number": 1})
    assert a.expect_message().id == sent
    [(failed, error)] = a.deliveries_failed
    assert (failed.id, str(error)) == (sent, "not yet")
    assert len(a.messages_received) == 1


def test_a_broken_handler_is_named_with_its_exception_and_message(framework: MessageHubTestFramework) -> None:
    mock = framework.create_mock_service("campaign-service")
    mock.subscribe_to_events("character.validated")
    client = framework.client("character-service", retry=RetryPolicy.none())

    def validate(event: Event) -> None:
        client.publish_event("character.validated", {"character_id": "42", "valid": event.payload["race"] == "elf"})

    client.subscribe(["character.created"], validate)
    event_id = mock.publish_event("character.created", {"character_id": "42"})
    with pytest.raises(AssertionError) as caught:
        mock.expect_event("character.validated", within=1)
    text = str(caught.value)
    assert text.startswith("campaign-service received no event character.validated within 1 s\nnothing arrived\n")
    assert "handlers that failed meanwhile:" in text
    assert "KeyError: 'race'" in text
    assert f"message {event_id} of character-service.character.created" in text
    assert "validate" in text


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_how_often_to_fail_is_a_whole_number(memory: MessageHubTestFramework, wrong: int) -> None:
    with pytest.raises(MessageValidationError, match="whole number"):
        memory.create_mock_service("service-a").fail_next(wrong)


def test_where_and_exceptions_are_checked(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    with pytest.raises(MessageValidationError, match="function of the envelope"):
        a.expect_message(where=7)  # type: ignore[arg-type]
    with pytest.raises(MessageValidationError, match="exception must be an exception or an exception class, not str"):
        a.fail_next(1, str)  # type: ignore[arg-type]
    with pytest.raises(MessageValidationError, match="must be the model of an event type: "):
        a.expect_event(Event)
