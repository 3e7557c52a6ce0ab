"""What a caller's type checker knows of the test framework. Checked by mypy --strict, never run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from typing_extensions import assert_type

from message_hub_sync import Event, Message, MessageHubClient, Subscription
from message_hub_sync.catalogue import CharacterCreated
from message_hub_sync.testing import MessageHubTestFramework, MockService, RabbitMQNode, make_event

with MessageHubTestFramework("amqp://localhost:5672") as framework:
    assert_type(framework, MessageHubTestFramework)
    assert_type(framework.url, str)
    service = framework.create_mock_service("service-a")
    assert_type(service, MockService)
    assert_type(service.send_message("service-b", {"test": "data"}), UUID)
    assert_type(service.subscribe_to_events(["test.event"]), Subscription)
    assert_type(framework.client("service-c"), MessageHubClient)

    sent = service.publish_event("test.event", {"data": "test"})
    assert_type(framework.verify_message_delivery(source="service-a", destination="service-b", message_id=sent), bool)
    success, received_by = framework.verify_event_delivery(
        source="service-a", event_type="test.event", event_id=sent, subscribers=["service-b"]
    )
    assert_type(success, bool)
    assert_type(received_by, list[str])

    assert_type(service.expect_event(CharacterCreated), Event[CharacterCreated])
    assert_type(service.expect_event("test.event", within=1), Event[Any])
    assert_type(service.expect_message(), Message[Any])

with RabbitMQNode() as node:
    assert_type(node.url, str)
    assert_type(node.ctl("list_queues"), str)


def made() -> None:
    assert_type(make_event(CharacterCreated(character_id="1")), Event[CharacterCreated])
    assert_type(make_event("quest.started", {}), Event[dict[str, Any]])
    assert_type(make_event("quest.started", CharacterCreated(character_id="1")), Event[CharacterCreated])
    make_event(42)  # type: ignore[call-overload]
