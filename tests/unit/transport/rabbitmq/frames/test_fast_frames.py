"""Our own encoding and decoding of the common frames, held to pika's under random values and bytes."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec

from message_hub_sync.envelope.encode import event_properties, message_properties
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.frames import fast_decoding, fast_encoding
from message_hub_sync.transport.rabbitmq.frames.encoding import properties_from_pika, properties_to_pika

FRAGMENT = 4096

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
short = st.none() | texts
octets = st.none() | st.integers(0, 255)
common_values = texts | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none()
any_values = common_values | st.dictionaries(texts, texts, max_size=2) | st.lists(st.integers(0, 9), max_size=2)


def properties(values: Any) -> st.SearchStrategy[Properties]:
    return st.builds(
        Properties,
        message_id=short,
        correlation_id=short,
        type=short,
        app_id=short,
        content_type=short,
        content_encoding=short,
        delivery_mode=octets,
        priority=octets,
        expiration=short,
        timestamp=st.none() | st.integers(0, 2**40),
        reply_to=short,
        user_id=short,
        headers=st.dictionaries(texts, values, max_size=6),
    )


def pika_frames(outgoing: Outgoing, channel: int) -> bytes:
    method = spec.Basic.Publish(
        exchange=outgoing.exchange, routing_key=outgoing.routing_key, mandatory=outgoing.mandatory
    )
    frames = frame.Method(channel, method).marshal()
    frames += frame.Header(channel, len(outgoing.body), properties_to_pika(outgoing.properties)).marshal()
    for start in range(0, len(outgoing.body), FRAGMENT):
        frames += frame.Body(channel, outgoing.body[start : start + FRAGMENT]).marshal()
    return bytes(frames)


def with_its_moment_first(values: Any) -> st.SearchStrategy[Properties]:
    """As the hub's own messages are: ids, both forms of the moment, that of the headers first."""
    return st.builds(
        lambda common, message_id, correlation_id, seconds, moment: dataclasses.replace(
            common,
            message_id=message_id,
            correlation_id=correlation_id,
            timestamp=seconds,
            headers={"timestamp": moment, **{name: v for name, v in common.headers.items() if name != "timestamp"}},
        ),
        properties(values),
        texts,
        texts,
        st.integers(0, 2**40),
        texts,
    )


def shift_types(properties: Properties) -> Properties:
    """The same in the eyes of ``==``, where there is a 0 or a 1: of other types, hence other bytes."""
    other = {0: False, 1: True}
    headers = {
        name: other.get(value, value) if type(value) is int else int(value) if type(value) is bool else value
        for name, value in properties.headers.items()
    }
    return dataclasses.replace(properties, headers=headers)


@settings(max_examples=400)
@given(
    with_its_moment_first(common_values), st.binary(max_size=300), texts, texts, st.booleans(), st.integers(1, 65535)
)
def test_a_publish_is_encoded_byte_for_byte_as_pika_does(
    given_properties: Properties, body: bytes, exchange: str, key: str, mandatory: bool, channel: int
) -> None:
    # Twice, because a kind is remembered; and as its own twin, which must not be taken for it.
    for each in (given_properties, given_properties, shift_types(given_properties)):
        outgoing = Outgoing(exchange, key, body, each, mandatory)
        assert fast_encoding.encode_publish(outgoing, channel, FRAGMENT) == pika_frames(outgoing, channel)


@settings(max_examples=400)
@given(properties(any_values) | with_its_moment_first(any_values))
def test_any_publish_is_encoded_as_pika_does_or_left_to_it(given_properties: Properties) -> None:
    outgoing = Outgoing("events", "a.b", b"{}", given_properties)
    assert fast_encoding.encode_publish(outgoing, 1, FRAGMENT) in (None, pika_frames(outgoing, 1))


@pytest.mark.parametrize("size", [0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 2 * FRAGMENT, 5 * FRAGMENT + 7])
def test_a_body_of_any_size_is_cut_into_frames_as_pika_does(size: int) -> None:
    outgoing = Outgoing(
        "", "q", bytes(range(256)) * (size // 256) + b"x" * (size % 256), event_properties(source="a", event_type="b.c")
    )

    assert fast_encoding.encode_publish(outgoing, 1, FRAGMENT) == pika_frames(outgoing, 1)


def test_the_hubs_own_messages_are_never_left_to_pika() -> None:
    message = message_properties(source="a", destination="b", ttl=1.5, priority=3, headers={"n": 1})
    event = event_properties(source="a", event_type="b.c", correlation_id="é" * 100)
    for each in (message, event):
        assert fast_encoding.encode_publish(Outgoing("", "q", b"{}", each), 1, FRAGMENT) is not None


def test_large_headers_are_not_remembered() -> None:
    large = event_properties(source="a", event_type="b.c", headers={"n": "x" * 5000})
    before = fast_encoding._kind.cache_info().currsize
    assert fast_encoding.encode_publish(Outgoing("", "q", b"{}", large), 1, 100_000) is None
    assert fast_encoding._kind.cache_info().currsize == before


@pytest.mark.parametrize(
    "changed",
    [
        {"message_id": "x" * 256},
        {"priority": 256},
        {"timestamp": -1},
        {"headers": {"n": 2**63}},
        {"headers": {"n" * 256: "v"}},
        {"headers": {"n": float("nan")}},
    ],
)
def test_what_amqp_cannot_carry_is_left_for_pika_to_refuse(changed: dict[str, Any]) -> None:
    usual = event_properties(source="a", event_type="a.b")
    extra = changed.pop("headers", {})
    usual.headers.update(extra)
    assert fast_encoding.encode_publish(Outgoing("events", "a.b", b"{}", usual), 1, FRAGMENT) is not None or extra
    outgoing = Outgoing("events", "a.b", b"{}", dataclasses.replace(usual, **changed))
    assert fast_encoding.encode_publish(outgoing, 1, FRAGMENT) is None


@given(st.integers(1, 65535), st.integers(0, 2**64 - 1), st.booleans())
def test_an_ack_is_encoded_byte_for_byte_as_pika_does(channel: int, tag: int, multiple: bool) -> None:
    assert (
        fast_encoding.encode_ack(channel, tag, multiple)
        == frame.Method(channel, spec.Basic.Ack(tag, multiple)).marshal()
    )


def header_payload(given_properties: Properties, size: int) -> bytes:
    return bytes(frame.Header(1, size, properties_to_pika(given_properties)).marshal()[7:-1])


def by_pika(payload: bytes) -> Properties:
    decoded = spec.BasicProperties()
    decoded.decode(payload[12:])
    return properties_from_pika(decoded)


def with_a_moment_somewhere(values: Any) -> st.SearchStrategy[Properties]:
    """Headers with ``timestamp`` among them, as a name and, as AMQP writes that, inside other texts."""
    names = texts | st.just("timestamp")
    confusing = values | st.just("\x09timestampS") | st.just("\x09timestampS\0\0\0\1x")
    return st.builds(
        lambda common, headers: dataclasses.replace(common, headers=headers),
        properties(values),
        st.dictionaries(names, confusing, max_size=6),
    )


@settings(max_examples=800)
@given(properties(any_values) | with_a_moment_somewhere(any_values), st.integers(0, 2**40))
def test_properties_are_decoded_as_pika_does(given_properties: Properties, size: int) -> None:
    payload = header_payload(given_properties, size)
    decoded = fast_decoding.decode_properties(payload)
    if decoded is None:
        assert (
            any(isinstance(value, (dict, list)) for value in given_properties.headers.values())
            or any("timestampS" in str(value) for value in given_properties.headers.values())
            or (given_properties.timestamp or 0) > 253_402_300_799
        )
    else:
        assert decoded == by_pika(payload)


@settings(max_examples=800)
@given(properties(common_values) | with_a_moment_somewhere(common_values), st.data())
def test_a_damaged_header_is_decoded_as_pika_does_or_left_to_it(
    given_properties: Properties, data: st.DataObject
) -> None:
    payload = bytearray(header_payload(given_properties, 3))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(12, len(payload) - 1))] = data.draw(st.integers(0, 255))
    decoded = fast_decoding.decode_properties(bytes(payload))
    if decoded is not None:
        assert decoded == by_pika(bytes(payload))


@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing(payload: bytes) -> None:
    fast_decoding.decode_properties(payload)
    fast_decoding.decode_deliver(payload)


@given(texts, st.integers(0, 2**64 - 1), st.booleans(), texts, texts)
def test_a_delivery_is_decoded_as_pika_does(tag: str, number: int, redelivered: bool, exchange: str, key: str) -> None:
    method = spec.Basic.Deliver(tag, number, redelivered, exchange, key)
    payload = bytes(frame.Method(1, method).marshal()[7:-1])
    assert fast_decoding.decode_deliver(payload) == (number, redelivered, exchange, key)


def test_a_delivery_that_is_cut_short_is_left_to_pika() -> None:
    payload = bytes(frame.Method(1, spec.Basic.Deliver("tag", 1, False, "events", "a.b")).marshal()[7:-1])
    assert fast_decoding.decode_deliver(payload[:-1]) is None
    assert fast_decoding.decode_deliver(payload + b"x") is None


def test_a_timestamp_beyond_all_calendars_is_left_to_pika() -> None:
    payload = bytearray(header_payload(Properties(headers={}, timestamp=1), 3))
    payload[-8:] = struct.pack(">Q", 2**64 - 1)
    assert fast_decoding.decode_properties(bytes(payload)) is None


def test_two_messages_of_a_kind_share_no_headers() -> None:
    payload = header_payload(event_properties(source="a", event_type="b.c"), 3)
    first, second = fast_decoding.decode_properties(payload), fast_decoding.decode_properties(payload)
    assert first is not None
    assert second is not None
    first.headers["source"] = "changed"
    assert second.headers["source"] == "a"
    assert fast_decoding.decode_properties(payload) == second


def of_one_kind(first: Properties, draw: Callable[[Any], Any]) -> Properties:
    """Another message like ``first``: what differs from message to message is different, and as long."""

    def as_long(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        size = len(value.encode())
        return draw(st.text("ab\x09", min_size=size, max_size=size))

    headers = {name: as_long(value) if name == "timestamp" else value for name, value in first.headers.items()}
    ids = as_long(first.message_id or "") + as_long(first.correlation_id or "")
    # Of two ids that are as long together, the one may be as much longer as the other is shorter; 255 bytes at most.
    cut = draw(st.integers(max(0, len(ids) - 255), min(len(ids), 255)))
    return dataclasses.replace(
        first,
        message_id=ids[:cut],
        correlation_id=ids[cut:],
        timestamp=draw(st.integers(0, 253_402_300_799)),
        headers=headers,
    )


@settings(max_examples=600)
@given(properties(common_values) | with_a_moment_somewhere(common_values), st.data())
def test_what_was_learned_of_a_kind_decodes_others_as_pika_does(first: Properties, data: st.DataObject) -> None:
    for _ in range(3):
        payload = bytearray(header_payload(of_one_kind(first, data.draw), 3))
        if data.draw(st.booleans()):  # one that is nearly of the kind
            payload[data.draw(st.integers(12, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
        decoded = fast_decoding.decode_properties(bytes(payload))
        if decoded is not None:
            assert decoded == by_pika(bytes(payload))


def test_kinds_are_remembered_up_to_a_number() -> None:
    for number in range(2 * fast_decoding._MOST_KINDS):
        payload = header_payload(event_properties(source="a", event_type=f"b.c{number}"), 3)
        assert fast_decoding.decode_properties(payload) == by_pika(payload)
    assert len(fast_decoding._kinds) <= fast_decoding._MOST_KINDS
    assert len(fast_decoding._layouts) <= fast_decoding._MOST_KINDS


def test_of_two_kinds_of_one_size_each_has_its_ids_where_they_are() -> None:
    def of(correlation_id: str, message_id: str) -> bytes:
        found = event_properties(source="a", event_type="b.c")
        return header_payload(dataclasses.replace(found, correlation_id=correlation_id, message_id=message_id), 3)

    # "$" is 36, the size of a UUID's text: where the others have that size, the third has a "$".
    for payload in (of("c" * 36, "m" * 36), of("c" * 30, "m" * 42), of("c" * 30 + "$ccccc", "m" * 36)):
        assert fast_decoding.decode_properties(payload) == by_pika(payload)


def test_a_moment_that_stands_there_twice_is_left_to_pika() -> None:
    moment = b"\x09timestampS\0\0\0\x04"
    for first, second in ((b"2026", b"2027"), (b"2028", b"2027")):
        table = moment + first + moment + second
        usual = header_payload(event_properties(source="a", event_type="b.c"), 3)
        start = usual.index(b"\x09timestampS") - 4
        size = int.from_bytes(usual[start : start + 4], "big")
        payload = usual[:start] + len(table).to_bytes(4, "big") + table + usual[start + 4 + size :]
        assert by_pika(payload).headers == {"timestamp": second.decode()}
        assert fast_decoding.decode_properties(payload) in (None, by_pika(payload))
