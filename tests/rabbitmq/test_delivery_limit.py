"""The delivery limit of a queue is found out, and asking creates no queue."""

from __future__ import annotations

import time

import pika
import pytest

from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.testing import MessageHubTestFramework
from message_hub_sync.transport.topology import QueueSpec

pytestmark = pytest.mark.rabbitmq

LONG = "q" * 195
QUORUM = {"x-queue-type": "quorum"}


def test_the_limit_of_each_kind_of_queue_is_found_out(rabbitmq_url: str) -> None:
    with MessageHubTestFramework(rabbitmq_url) as framework:
        connection = pika.BlockingConnection(pika.URLParameters(framework.url))
        version = int(connection._impl.server_properties["version"].split(".")[0])  # type: ignore[index]
        connection.close()
        default = 20 if version >= 4 else None
        queues: dict[str, tuple[dict[str, object], int | None]] = {
            "classic": ({}, None),
            "priorities": ({"x-max-priority": 9}, None),
            "quorum": (QUORUM, default),
            "limited": ({**QUORUM, "x-delivery-limit": 5}, 5),
            "ours": ({**QUORUM, "x-delivery-limit": 100_000}, 100_000),
            "others-too": ({**QUORUM, "x-delivery-limit": 7, "x-max-length": 9, "x-message-ttl": 60_000}, 7),
            f"{LONG}-ours": ({**QUORUM, "x-delivery-limit": 100_000}, 100_000),
            f"{LONG}-none": (QUORUM, default),
            f"{LONG}-limit": ({**QUORUM, "x-delivery-limit": 5}, 0),
            f"{LONG}-c": ({}, None),
        }
        transport = _transport(ClientConfig("operator", parse_addresses(framework.url)))
        for name, (arguments, _) in queues.items():
            transport.declare_queue(QueueSpec(name, arguments=arguments), time.monotonic() + 30)
        found = {name: transport.delivery_limit(name, time.monotonic() + 30) for name in queues}
        assert found == {name: limit for name, (_, limit) in queues.items()}
        assert transport.delivery_limit("missing", time.monotonic() + 30) == 0
        assert transport.queue_stats(["missing"], time.monotonic() + 30) == {"missing": None}
        transport.close(time.monotonic() + 5)
