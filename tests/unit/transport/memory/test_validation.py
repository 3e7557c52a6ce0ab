"""What may cross into the hub, and that what crosses is a copy."""

from __future__ import annotations

import decimal
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.memory.validation import checked_copy
from message_hub_sync.transport.topology import EVENT_EXCHANGE, Binding, QueueSpec, Topology


def outgoing(**properties: Any) -> Outgoing:
    return Outgoing("", "inbox", b"{}", Properties(**properties))


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        2**63,
        -(2**63) - 1,
        {1, 2},
        ("a",),
        object(),
        "\ud800",
        [1, [float("inf")]],
        {"inner": float("nan")},
        {1: "a key that is no text"},
        decimal.Decimal("NaN"),
        decimal.Decimal(2**31),
        decimal.Decimal("1e400"),
    ],
)
def test_a_header_that_amqp_cannot_carry_is_refused(value: Any) -> None:
    with pytest.raises(
        MessageValidationError, match=r"must be a (value that AMQP can carry|text of at most 255 bytes)"
    ):
        checked_copy(outgoing(headers={"field": value}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**63),
        2**63 - 1,
        "ümläut",
        b"\x00\xff",
        1.5,
        [1, "two", {"three": [3, 0.5]}],
        {},
        decimal.Decimal("12.50"),
        decimal.Decimal(-(2**31)),
        datetime(2026, 1, 1, tzinfo=timezone.utc),
    ],
)
def test_every_kind_of_amqp_value_arrives_as_it_was(value: Any) -> None:
    carried = checked_copy(outgoing(headers={"field": value})).properties.headers["field"]
    assert carried == value
    assert type(carried) is type(value)


def test_a_datetime_loses_what_a_timestamp_on_the_wire_loses() -> None:
    moment = datetime(2026, 1, 1, 2, 0, 0, 999, tzinfo=timezone(timedelta(hours=2)))
    carried = checked_copy(outgoing(headers={"at": moment})).properties.headers["at"]
    assert carried == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert carried.tzinfo is timezone.utc


@pytest.mark.parametrize(
    "properties",
    [
        {"correlation_id": "x" * 256},
        {"correlation_id": "ü" * 128},
        {"app_id": 7},
        {"priority": 256},
        {"priority": -1},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"delivery_mode": "2"},
        {"headers": {"n" * 256: 1}},
        {"headers": None},
    ],
)
def test_a_property_that_amqp_cannot_carry_is_refused(properties: dict[str, Any]) -> None:
    with pytest.raises(MessageValidationError):
        checked_copy(outgoing(**properties))


@pytest.mark.parametrize("body", ["text", bytearray(b"{}"), None])
def test_a_body_that_is_not_bytes_is_refused(body: Any) -> None:
    with pytest.raises(MessageValidationError, match=r"^body must be bytes, not (str|bytearray|NoneType)$"):
        checked_copy(Outgoing("", "inbox", body, Properties()))


def test_of_a_batch_the_others_go_when_one_message_cannot(client: Any) -> None:
    client.declare("inbox")
    receipts = client.transport.publish_many([outgoing(), outgoing(headers={"x": object()}), outgoing()], 0)
    assert [receipt.result for receipt in receipts] == [
        PublishResult.CONFIRMED,
        PublishResult.INVALID,
        PublishResult.CONFIRMED,
    ]
    assert "header 'x' must be a value that AMQP can carry" in receipts[1].reason
    assert receipts[1].reason.endswith("not object")
    assert client.depth("inbox") == 2


@pytest.mark.parametrize("expiration", ["-1", "1.5", "soon", "", "315360000001", "²"])
def test_an_expiration_that_is_no_number_closes_the_channel(client: Any, expiration: str) -> None:
    client.declare("inbox")
    receipt = client.publish("inbox", expiration=expiration)
    assert (receipt.result, receipt.code) == (PublishResult.CHANNEL_ERROR, 406)
    assert "invalid expiration" in receipt.reason


def test_a_foreign_user_id_closes_the_channel(client: Any) -> None:
    client.declare("inbox")
    receipt = client.publish("inbox", user_id="somebody")
    assert (receipt.result, receipt.code) == (PublishResult.CHANNEL_ERROR, 406)
    assert client.publish("inbox", user_id="guest").result is PublishResult.CONFIRMED


def test_what_the_sender_changes_later_is_not_seen(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox")
    sent = outgoing(headers={"list": [1], "table": {"k": "v"}}, message_id="first")
    client.transport.publish(sent, 0)
    sent.properties.headers["list"].append(2)
    sent.properties.headers["table"]["k"] = "changed"
    sent.properties.message_id = "second"
    (delivery,) = taken(consumer)
    assert delivery.properties.headers == {"list": [1], "table": {"k": "v"}}
    assert delivery.properties.message_id == "first"


def test_each_receiver_of_an_event_has_its_own_copy(client: Any, taken: Any) -> None:
    receivers = [
        client.consume(Topology(QueueSpec(name), EVENT_EXCHANGE, (Binding("events", "#"),)))
        for name in ("first", "second")
    ]
    client.publish("a.b", exchange="events", headers={"list": [1], "plain": "x"})
    (mine,), (other,) = map(taken, receivers)
    mine.properties.headers["list"].append(2)
    mine.properties.headers["plain"] = "y"
    mine.properties.priority = 9
    assert other.properties.headers == {"list": [1], "plain": "x"}
    assert other.properties.priority is None


def test_what_a_receiver_changes_is_not_delivered_again(client: Any, taken: Any) -> None:
    consumer = client.consume("inbox")
    client.publish("inbox", headers={"plain": "x"})
    (delivery,) = taken(consumer)
    delivery.properties.headers["plain"] = "changed"
    consumer.requeue(delivery)
    (again,) = taken(consumer)
    assert again.properties.headers == {"plain": "x"}
