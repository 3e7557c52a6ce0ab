"""Test tools for services that use the hub: mock services on a separate hub, faults, and a throwaway RabbitMQ node.

They work under any test runner. For pytest there are fixtures: ``pytest --fixtures`` lists them.
"""

from __future__ import annotations

from message_hub_sync.dead_letters import DeadLetter, load_dead_letter, save_dead_letter
from message_hub_sync.testing.faults import Faults
from message_hub_sync.testing.framework import MessageHubTestFramework
from message_hub_sync.testing.making import make_event, make_message
from message_hub_sync.testing.mock_service import MockService
from message_hub_sync.testing.rabbitmq_node import (
    RabbitMQNode,
    RabbitMQNodeError,
    RabbitMQNotAvailableError,
    provide_rabbitmq,
)
from message_hub_sync.testing.recording_middleware import RecordedDelivery, RecordedSending, RecordingMiddleware
from message_hub_sync.testing.traffic import Traffic

__all__ = [
    "DeadLetter",
    "Faults",
    "MessageHubTestFramework",
    "MockService",
    "RabbitMQNode",
    "RabbitMQNodeError",
    "RabbitMQNotAvailableError",
    "RecordedDelivery",
    "RecordedSending",
    "RecordingMiddleware",
    "Traffic",
    "load_dead_letter",
    "make_event",
    "make_message",
    "provide_rabbitmq",
    "save_dead_letter",
]
