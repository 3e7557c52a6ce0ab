from __future__ import annotations

from typing import Any

import pytest
from scripted_transport import ScriptedConsumer

from message_hub_sync.consuming.delivery_limit import DeliveryLimit
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.topology import QueueSpec


def came_back(**headers: Any) -> Delivery:
    return Delivery(b"{}", Properties(headers=headers), "", "q", "q", True, 1, 1, None)


def test_a_count_in_a_queue_without_a_declared_limit_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    limit = DeliveryLimit(QueueSpec("image-service.quest.begun"))
    assert not limit.possible(None)
    for count in (1, 2):
        limit.look_at(came_back(**{"x-delivery-count": count}))
    assert limit.possible(None)
    [record] = caplog.records
    assert "set_policy message-hub-limit '^image\\-service\\.quest\\.begun$'" in record.getMessage()


@pytest.mark.parametrize(
    ("arguments", "headers"), [({}, {}), ({"x-queue-type": "quorum", "x-delivery-limit": 7}, {"x-delivery-count": 1})]
)
def test_without_a_count_or_with_a_declared_limit_nothing_is_told(
    arguments: dict[str, Any], headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    limit = DeliveryLimit(QueueSpec("q", arguments=arguments))
    limit.look_at(came_back(**headers))
    assert not limit.possible(ScriptedConsumer("q"))
    assert caplog.records == []
