"""A client under test is listened to without being changed."""

from __future__ import annotations

import pytest

from message_hub_sync import Event, Message, MessageHubClient, MessageHubDeliveryError, RetryPolicy
from message_hub_sync.catalogue import CharacterCreated, CharacterUpdated
from message_hub_sync.testing import MessageHubTestFramework


@pytest.fixture
def client(framework: MessageHubTestFramework) -> MessageHubClient:
    return framework.client("character-service")


def test_what_a_client_publishes_is_seen(framework: MessageHubTestFramework, client: MessageHubClient) -> None:
    with framework.intercept(client) as traffic:
        client.publish_event(CharacterCreated(character_id="42", name="Frodo"))
        client.publish_event("character.updated", {"character_id": "42"})
    client.publish_event("character.deleted", {"character_id": "42"})
    event = traffic.published(CharacterCreated, where=lambda one: one.payload.name == "Frodo")
    assert event.payload == CharacterCreated(character_id="42", name="Frodo")
    assert event.source == "character-service"
    assert traffic.published(CharacterUpdated).id == traffic.published("character.updated").id
    assert [one.event_type for one in traffic.events_published] == ["character.created", "character.updated"]


def test_what_a_client_sends_is_seen(framework: MessageHubTestFramework, client: MessageHubClient) -> None:
    framework.create_mock_service("llm-service")
    with framework.intercept(client) as traffic:
        sent = client.send_messages([("llm-service", {"number": number}) for number in range(3)])
        assert traffic.sent("llm-service", where={"number": 1}).id == sent[1]
    assert [message.id for message in traffic.messages_sent] == sent


def test_what_was_not_confirmed_was_not_published(framework: MessageHubTestFramework, client: MessageHubClient) -> None:
    framework.faults(client).nack()
    with framework.intercept(client) as traffic:
        with pytest.raises(MessageHubDeliveryError):
            client.publish_event("character.created", {"character_id": "1"})
        client.publish_event("character.created", {"character_id": "2"})
        with pytest.raises(AssertionError) as caught:
            traffic.published(CharacterCreated, where={"character_id": "1"}, within=0.01)
    assert "published no event character.created that fits" in str(caught.value)
    assert "{'character_id': '2'}" in str(caught.value)
    assert len(traffic.events_published) == 1


def test_a_message_sent_twice_is_seen_once(framework: MessageHubTestFramework, client: MessageHubClient) -> None:
    framework.faults(client).cut_after()
    with framework.intercept(client) as traffic:
        client.publish_event("character.created", {"character_id": "1"})
    assert len(traffic.events_published) == 1


def test_what_a_client_handles_is_seen(framework: MessageHubTestFramework, client: MessageHubClient) -> None:
    mock = framework.create_mock_service("campaign-service")
    client.subscribe(["campaign.theme_changed"], lambda event: None)
    with framework.intercept(client) as traffic:
        client.subscribe_messages(lambda message: {"ok": True})  # consumers made meanwhile are listened to as well
        mock.publish_event("campaign.theme_changed", {"campaign_id": "7", "theme": "dark"})
        assert traffic.received("campaign.theme_changed", where={"theme": "dark"}).source == "campaign-service"
        mock.request("character-service", {"question": 1})
        assert traffic.received_message(where={"question": 1}).source == "campaign-service"
        assert [len(one) for one in (traffic.events_received, traffic.messages_received)] == [1, 1]
        assert traffic.messages_sent[0].payload == {"ok": True}


def test_what_failed_was_not_handled(virtual: MessageHubTestFramework) -> None:
    client, mock = virtual.client("character-service"), virtual.create_mock_service("campaign-service")
    fails = [True, False]

    def handle(event: Event) -> None:
        if fails.pop(0):
            raise KeyError("race")

    client.subscribe(["campaign.theme_changed"], handle)
    with virtual.intercept(client) as traffic:
        event_id = mock.publish_event("campaign.theme_changed", {"campaign_id": "7"})
        virtual.advance(0)
        with pytest.raises(AssertionError) as caught:
            traffic.received("campaign.theme_changed", within=0.01)
        assert "KeyError: 'race'" in str(caught.value)
        assert str(event_id) in str(caught.value)
        virtual.advance(1)
        event = traffic.received("campaign.theme_changed")
    assert (event.id, event.event_type) == (event_id, "campaign.theme_changed")
    assert traffic.events_published == []


def test_a_given_up_message_is_neither_handled_nor_sent(virtual: MessageHubTestFramework) -> None:
    client = virtual.client("character-service", retry=RetryPolicy.none())

    def handle(message: Message) -> None:
        raise KeyError("race")

    client.subscribe_messages(handle)
    with virtual.intercept(client) as traffic:
        client.send_message("character-service", {})
        virtual.advance(0)
    assert len(traffic.messages_sent) == 1
    assert traffic.messages_received == []


def test_two_may_listen_and_leave_in_any_order(memory: MessageHubTestFramework) -> None:
    client = memory.client("character-service")
    one, other = memory.intercept(client), memory.intercept(client)
    first, second = one.__enter__(), other.__enter__()
    client.publish_event("test.event", {"number": 1})
    one.__exit__(None, None, None)
    client.publish_event("test.event", {"number": 2})
    other.__exit__(None, None, None)
    client.publish_event("test.event", {"number": 3})
    assert [event.payload["number"] for event in first.events_published] == [1]
    assert [event.payload["number"] for event in second.events_published] == [1, 2]
    assert "publish" not in vars(client._lifecycle.session().transport)
