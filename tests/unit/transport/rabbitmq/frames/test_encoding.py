"""What is encoded is what pika decodes, and what AMQP cannot carry is said so."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec

from message_hub_sync.consuming import republished_properties
from message_hub_sync.consuming.republished_properties import headers_to_republish
from message_hub_sync.envelope import header_names
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.frames.decoding import decode, frame_start
from message_hub_sync.transport.rabbitmq.frames.encoding import (
    encode_ack,
    encode_publish,
    encode_reject,
    properties_from_pika,
)

FRAGMENT = 4096 - 8

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.recursive(
    texts
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none()
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
some_properties = st.builds(
    Properties,
    message_id=st.none() | texts,
    correlation_id=st.none() | texts,
    type=st.none() | texts,
    app_id=st.none() | texts,
    content_type=st.none() | texts,
    content_encoding=st.none() | texts,
    delivery_mode=st.none() | st.integers(0, 255),
    priority=st.none() | st.integers(0, 255),
    expiration=st.none() | texts,
    timestamp=st.none() | st.integers(0, 2**63),
    reply_to=st.none() | texts,
    user_id=st.none() | texts,
    headers=st.dictionaries(texts, values, max_size=5),
)


def frames_of(data: bytes) -> list[Any]:
    frames = []
    while data:
        kind, _, size = frame_start(data, 0)
        assert size <= len(data), "an incomplete frame"
        frames.append(decode(kind, data[:size]))
        data = data[size:]
    return frames


@given(properties=some_properties, body=st.binary(max_size=3 * FRAGMENT), mandatory=st.booleans(), key=texts)
def test_a_publish_comes_out_of_pika_as_it_went_in(
    properties: Properties, body: bytes, mandatory: bool, key: str
) -> None:
    frames = frames_of(encode_publish(Outgoing("events", key, body, properties, mandatory), 7, FRAGMENT))
    method, header, fragments = frames[0], frames[1], frames[2:]
    assert {each.channel_number for each in frames} == {7}
    assert (method.method.exchange, method.method.routing_key, method.method.mandatory) == ("events", key, mandatory)
    assert header.body_size == len(body)
    assert b"".join(each.fragment for each in fragments) == body
    assert all(len(each.fragment) <= FRAGMENT for each in fragments)
    assert properties_from_pika(header.properties) == properties


AS_IT_WAS: list[Any] = [
    0.5,
    -0.0,
    1e308,
    5e-324,
    0.10000000149011612,  # a float of 32 bits
    Decimal("12.50"),
    Decimal("0.00000"),
    Decimal(-(2**31)),
    Decimal(2**31 - 1).scaleb(-255),
    2**63 - 1,
    -(2**63),
    2**32 - 1,
    True,
    None,
    "ümläut 🐉",
    b"\x00\xff",
    datetime(1970, 1, 1, tzinfo=timezone.utc),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
    {},
    [],
    [0.5, [Decimal("1.5"), {"deep": [1.25, None, b"\xff"]}], {}],
    {"table": {"float": 2.5, "text": "x", "list": [[]], "when": datetime(2026, 1, 2, tzinfo=timezone.utc)}},
]


@pytest.mark.parametrize("value", AS_IT_WAS, ids=ascii)
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_header_that_came_is_moved_on_as_it_was(value: Any, rounds: int) -> None:
    expected = Properties(content_encoding="ü", headers={"before": 1, "value": value, "after": 0.5}, app_id="me")
    properties = expected
    for _ in range(rounds):
        moved = dataclasses.replace(properties, headers=headers_to_republish(properties.headers, {}))
        _, header, _ = frames_of(encode_publish(Outgoing("", "q.dead", b"{}", moved), 1, FRAGMENT))
        properties = properties_from_pika(header.properties)
    assert properties == expected
    assert repr(properties.headers["after"]) == "0.5"
    assert isinstance(properties.headers["value"], type(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Decimal("12.345678901234567890123"), "12.345678901234567890123"),
        (Decimal("NaN"), "NaN"),
    ],
)
def test_a_number_that_amqp_has_not_is_moved_on_as_text(value: Any, text: str) -> None:
    moved = Properties(headers=headers_to_republish({"value": value}, {}))
    _, header, _ = frames_of(encode_publish(Outgoing("", "q.dead", b"{}", moved), 1, FRAGMENT))
    assert properties_from_pika(header.properties).headers == {"value": text}


def test_acknowledgements_and_rejections_are_those_of_amqp() -> None:
    (ack,) = frames_of(encode_ack(3, 2**40, True))
    assert isinstance(ack.method, spec.Basic.Ack)
    assert (ack.channel_number, ack.method.delivery_tag, ack.method.multiple) == (3, 2**40, True)
    (reject,) = frames_of(encode_reject(3, 5))
    assert isinstance(reject.method, spec.Basic.Reject)
    assert (reject.method.delivery_tag, reject.method.requeue) == (5, True)


@pytest.mark.parametrize(
    "properties",
    [
        Properties(correlation_id="x" * 256),
        Properties(headers={"x" * 256: 1}),
        Properties(headers={"share": float("nan")}),
        Properties(headers={"inner": {"shares": [float("inf")]}}),
        Properties(headers={"number": 2**63}),
        Properties(headers={"what": object()}),
        Properties(timestamp=-1),
        Properties(priority=256),
    ],
    # Not ids=str: the object's text holds its address, and pytest-xdist wants the same ids in each process.
    ids=["long text", "long header name", "NaN", "infinity", "65 bits", "object", "negative time", "large priority"],
)
def test_what_amqp_cannot_carry_is_a_validation_error(properties: Properties) -> None:
    with pytest.raises(MessageValidationError, match="cannot be carried by AMQP"):
        encode_publish(Outgoing("", "x", b"{}", properties), 1, FRAGMENT)


def test_headers_larger_than_a_frame_are_refused_because_they_would_end_the_connection() -> None:
    fitting = Properties(headers={"note": "x" * (FRAGMENT - 200)})
    encode_publish(Outgoing("", "x", b"{}", fitting), 1, FRAGMENT)
    with pytest.raises(MessageValidationError, match="must fit into one frame of 4096 bytes"):
        encode_publish(Outgoing("", "x", b"{}", Properties(headers={"note": "x" * FRAGMENT})), 1, FRAGMENT)


def test_short_strings_that_are_no_utf8_become_text() -> None:
    found = properties_from_pika(spec.BasicProperties(message_id=b"\xff\x00", headers={b"\xfe": 1}))
    assert (found.message_id, found.headers) == ("\\xff\x00", {"\\xfe": 1})


@pytest.mark.parametrize(
    "given", [b"\xff" * 64, b"\xff" * 255, b"\xff" + "\u00e9".encode() * 127, "\u00e9".encode() * 127]
)
def test_what_short_strings_become_fits_into_a_short_string_again(given: bytes) -> None:
    found = properties_from_pika(spec.BasicProperties(message_id=given, app_id=given, headers={given: 1}))
    assert found.message_id is not None
    assert 127 < len(found.message_id.encode()) <= 255
    encode_publish(Outgoing("", "x", b"{}", found), 1, FRAGMENT)


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=255, max_size=255),
    own=st.dictionaries(texts, values, max_size=5),
    spoofed=values,
)
def test_what_a_reduced_message_bears_fits_into_the_smallest_frame(
    text: str, own: dict[str, Any], spoofed: Any
) -> None:
    names = (
        each
        for each in vars(header_names).values()
        if isinstance(each, str) and len(each) > 2 and each.startswith("x-")
    )
    headers = {**{f"own-{number}": "n" * 100 for number in range(100)}, **own, **dict.fromkeys(names, text)}
    headers["x-crashes"] = spoofed
    texts = dict.fromkeys(("message_id", "correlation_id", "type", "app_id", "content_type", "reply_to"), text)
    properties = republished_properties.reduced_properties(
        Properties(**texts, content_encoding=text, headers=headers), text
    )
    encode_publish(Outgoing("", "q" * 255, b"{}", properties), 1, FRAGMENT)
    assert properties.headers["x-reason"] == text.encode()[:128].decode("utf-8", "ignore")
