"""The broker allows a user fewer channels than the client needs. It answers with the end of the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.transport.topology import event_subscription

pytestmark = pytest.mark.rabbitmq

REASON = "number of channels opened for user 'limited' has reached the maximum allowed user limit"


@pytest.fixture
def limited(bench: Any) -> Iterator[str]:
    """The URL of a user whose channels can be limited."""
    bench.node.ctl("add_user", "limited", "limited")
    bench.node.ctl("set_permissions", "limited", ".*", ".*", ".*")
    yield bench.node.url.replace("guest:guest", "limited:limited")
    bench.node.ctl("delete_user", "limited")


def limit(bench: Any, channels: int) -> None:
    bench.node.ctl("set_user_limits", "limited", f'{{"max-channels": {channels}}}')


def wanted(bench: Any, *numbers: int) -> list[Any]:
    return [(event_subscription(bench.service, f"character.event_{number}"), 5) for number in numbers]


def test_a_consumer_for_which_no_channel_is_left_fails_at_once_and_the_others_go_on(
    bench: Any, limited: str, eventually: Callable[..., bool]
) -> None:
    limit(bench, 2)
    transport = bench.transport(limited)
    two = transport.consume_many(wanted(bench, 1, 2), bench.within())
    with pytest.raises(MessageHubConnectionError, match=REASON):
        transport.consume_many(wanted(bench, 3), bench.within(120))
    assert eventually(lambda: all(consumer.active for consumer in two))
    # What is known now costs the connection no more.
    connection = transport._consume_connection.recovering._connection
    for call in (
        lambda: transport.consume_many(wanted(bench, 3), bench.within(120)),
        lambda: transport.queue_stats([two[0].queue], bench.within(120)),
        lambda: transport.delete_many(["some.queue"], bench.within(120)),
        lambda: transport.declare(wanted(bench, 4)[0][0], bench.within(120)),
    ):
        with pytest.raises(MessageHubConnectionError, match=REASON):
            call()
    assert transport._consume_connection.recovering._connection is connection
    # A channel that is given back can be used.
    two[0].cancel(bench.within())
    two[0].close(bench.within())
    assert transport.queue_stats([two[1].queue], bench.within())[two[1].queue] is not None


def test_of_consumers_that_do_not_fit_any_more_at_a_reconnect_as_many_as_fit_are_restored(
    bench: Any, limited: str, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport(limited)
    consumers = transport.consume_many(wanted(bench, 1, 2, 3), bench.within())
    limit(bench, 2)
    transport.interrupt()
    assert eventually(lambda: any(consumer.error for consumer in consumers))
    assert eventually(lambda: sum(bool(consumer.active) for consumer in consumers) == 2)
    (left,) = [consumer for consumer in consumers if not consumer.active]
    assert REASON in left.error
    connection = transport._consume_connection.recovering._connection
    # It is restored when another one gives its channel back.
    other = next(consumer for consumer in consumers if consumer.active)
    other.cancel(bench.within())
    other.close(bench.within())
    assert eventually(lambda: bool(left.active))
    assert left.error is None
    assert transport._consume_connection.recovering._connection is connection


def test_a_client_that_gets_no_channel_to_publish_on_is_told_at_once(bench: Any, limited: str) -> None:
    limit(bench, 1)
    transport = bench.transport(limited)
    bench.consume(transport)
    with pytest.raises(MessageHubConnectionError, match=REASON):
        transport.publish(bench.message(), bench.within(120))
