"""What is encoded is what pika decodes, and what AMQP cannot carry is said so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from message_hub_sync.envelope import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.encoding import (
    encode_ack,
    encode_publish,
    encode_reject,
    properties_from_pika,
)

FRAGMENT = 4096 - 8

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.recursive(
    texts | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | st.binary(max_size=20),
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
        size, value = frame.decode_frame(data)
        assert size, "an incomplete frame"
        frames.append(value)
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
        Properties(headers={"share": 0.5}),
        Properties(headers={"number": 2**63}),
        Properties(headers={"what": object()}),
        Properties(timestamp=-1),
        Properties(priority=256),
    ],
    ids=str,
)
def test_what_amqp_cannot_carry_is_a_validation_error(properties: Properties) -> None:
    with pytest.raises(MessageValidationError, match="cannot be carried by AMQP"):
        encode_publish(Outgoing("", "x", b"{}", properties), 1, FRAGMENT)


def test_headers_larger_than_a_frame_are_refused_because_they_would_end_the_connection() -> None:
    fitting = Properties(headers={"note": "x" * (FRAGMENT - 200)})
    encode_publish(Outgoing("", "x", b"{}", fitting), 1, FRAGMENT)
    with pytest.raises(MessageValidationError, match="4096 bytes are allowed"):
        encode_publish(Outgoing("", "x", b"{}", Properties(headers={"note": "x" * FRAGMENT})), 1, FRAGMENT)


def test_short_strings_that_are_no_utf8_become_text() -> None:
    found = properties_from_pika(spec.BasicProperties(message_id=b"\xff\x00", headers={b"\xfe": 1}))
    assert (found.message_id, found.headers) == ("\\xff\x00", {"\\xfe": 1})
