"""Deliveries taken from the stream before pika sees them, however the network cuts it into pieces."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import exceptions as amqp
from pika import frame, spec

from message_hub_sync.envelope.encode import event_properties
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.consumer_channel import ConsumerChannel
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_ack, properties_to_pika

CHANNEL, FRAGMENT, LIMIT = 7, 100, 1_000


def consumer_channel() -> ConsumerChannel:
    """One that receives, on a connection that only keeps frame_handlers."""
    consumer: Any = SimpleNamespace(
        tag_prefix="a.1234",
        max_message_bytes=1_000,
        cancelled=False,
        sink=SimpleQueue(),
        discard_deliveries=lambda: None,
    )
    channel: Any = SimpleNamespace(connection=SimpleNamespace(frame_handlers={}), number=CHANNEL)
    return ConsumerChannel(consumer, channel, "a.b.c", 1)


def delivery(tag: int, body: bytes, channel: int = CHANNEL) -> list[bytes]:
    """The frames of one, its body in pieces of ``FRAGMENT`` bytes."""
    properties = properties_to_pika(event_properties(source="a", event_type="b.c"))
    return [
        frame.Method(channel, spec.Basic.Deliver("a.1234.7", tag, tag % 2 == 0, "events", "b.c")).marshal(),
        frame.Header(channel, len(body), properties).marshal(),
        *(frame.Body(channel, body[at : at + FRAGMENT]).marshal() for at in range(0, len(body), FRAGMENT)),
    ]


def arrived(stream: bytes, cuts: list[int]) -> tuple[list[tuple[int, bool, bytes]], list[bytes]]:
    """Tags, redelivered and bodies of what was delivered; and the frames that were left to pika."""
    taking, left = consumer_channel(), []
    held = b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        held += stream[start:end]
        position = 0
        while len(held) - position >= 8:
            taken = taking.take(held, position)
            if taken == position:
                size = int.from_bytes(held[position + 3 : position + 7], "big") + 8
                if len(held) - position < size:
                    break
                left.append(held[position : position + size])
                taken = position + size
            position = taken
        held = held[position:]
    assert held == b""
    found = []
    deliveries: SimpleQueue[Delivery | None] = taking.consumer.sink
    while not deliveries.empty():
        one = deliveries.get()
        assert one is not None
        assert one.properties.headers["event_type"] == "b.c"
        found.append((one.delivery_tag, one.redelivered, one.body))
    return found, left


@settings(max_examples=300)
@given(st.data())
def test_every_delivery_arrives_once_and_in_order(data: st.DataObject) -> None:
    bodies = data.draw(st.lists(st.binary(max_size=3 * FRAGMENT), max_size=6))
    others = [frame.Heartbeat().marshal(), frame.Method(CHANNEL, spec.Basic.CancelOk("a.1234.7")).marshal()]
    frames, foreign = [], []
    for tag, body in enumerate(bodies, 1):
        frames += delivery(tag, body)
        if data.draw(st.booleans()):
            foreign.append(data.draw(st.sampled_from(others)))
            frames.append(foreign[-1])
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    found, left = arrived(stream, cuts)
    assert found == [(tag, tag % 2 == 0, body) for tag, body in enumerate(bodies, 1)]
    assert left == foreign


def test_frames_of_another_channel_are_left_alone() -> None:
    frames = delivery(1, b"{}", channel=CHANNEL + 1)
    found, left = arrived(b"".join([*frames, *delivery(1, b"{}")]), [])
    assert len(found) == 1
    assert left == frames


def test_a_delivery_whose_frame_does_not_end_as_frames_do_is_left_to_pika() -> None:
    whole = b"".join(delivery(1, b"{}"))
    for end in (len(delivery(1, b"{}")[0]), len(whole)):
        damaged = bytearray(whole)
        damaged[end - 1] = 0
        found, _ = arrived(bytes(damaged), [])
        assert found == []


def test_one_timer_at_a_time_says_what_waits_however_often_that_was_said_before() -> None:
    timers: list[Callable[[], None]] = []
    written: list[bytes] = []
    taking = consumer_channel()
    taking.connection = SimpleNamespace(  # type: ignore[assignment]
        call_later=lambda seconds, callback: timers.append(callback), write=written.append, usable=True
    )
    for tag in (1, 2, 3):  # each said at once, as a full batch is
        taking.pending_acks.mark_handled(tag)
        taking.flush_within(0.05)
        taking.flush()
    taking.pending_acks.mark_handled(4)
    taking.flush_within(0.05)
    assert len(timers) == 1
    timers.pop()()
    assert written == [encode_ack(CHANNEL, tag, False) for tag in (1, 2, 3, 4)]
    taking.pending_acks.mark_handled(5)
    taking.flush_within(0.05)
    timers.pop()()
    assert written[4:] == [encode_ack(CHANNEL, 5, False)]


def test_a_body_that_is_too_large_is_counted_and_not_kept() -> None:
    taking = consumer_channel()
    piece = frame.Body(CHANNEL, b"x" * 100_000).marshal()
    method, header = delivery(1, b"")
    header = frame.Header(CHANNEL, 600 * 100_000, spec.BasicProperties(headers={"own": 1})).marshal()
    tracemalloc.start()
    try:
        for each in (method, header, *[piece] * 600):
            assert taking.take(each, 0) == len(each)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    found: Any = taking.consumer.sink.get_nowait()
    assert (found.body, found.properties.headers) == (b"", {"own": 1, "x-body-bytes": 60_000_000})


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("fragment", [LIMIT + 1, 100])
def test_a_body_is_kept_up_to_the_limit(size: int, fragment: int) -> None:
    method, header, *_ = delivery(1, b"x" * size)
    pieces = [frame.Body(CHANNEL, (b"x" * size)[at : at + fragment]).marshal() for at in range(0, size, fragment)]
    taking = consumer_channel()
    stream = b"".join([method, header, *pieces, *delivery(2, b"{}")])
    assert taking.take(stream, 0) == len(stream)
    first, second = (taking.consumer.sink.get_nowait() for _ in range(2))
    assert first is not None
    assert second is not None
    assert len(first.body) == (size if size <= LIMIT else 0)
    assert first.properties.headers.get("x-body-bytes") == (None if size <= LIMIT else size)
    assert (second.body, "x-body-bytes" in second.properties.headers) == (b"{}", False)


@pytest.mark.parametrize("size", [10, LIMIT + 1])
def test_a_large_body_decoded_by_pika_is_not_kept_either(size: int) -> None:
    taking = consumer_channel()
    method = SimpleNamespace(delivery_tag=1, redelivered=False, exchange="events", routing_key=b"b.\xff")
    taking.deliver(None, method, spec.BasicProperties(message_id="a"), b"x" * size)
    found = taking.consumer.sink.get_nowait()
    assert found is not None
    assert (len(found.body), found.routing_key) == (size if size <= LIMIT else 0, "b.\\xff")
    assert found.properties.headers == ({} if size <= LIMIT else {"x-body-bytes": size})


def test_a_routing_key_that_is_not_utf_8_is_taken_as_text() -> None:
    # The frames of its body must not go to pika, which would keep all of them.
    plain, header, *body = delivery(1, b"x" * 250)
    method = plain.replace(b"\x03b.c\xce", b"\x03b.\xff\xce")
    assert method != plain
    for stream in ([method, header, *body], [method, *delivery(1, b"{}")[1:]]):
        taking = consumer_channel()
        assert taking.take(b"".join(stream), 0) == len(b"".join(stream))
        found = taking.consumer.sink.get_nowait()
        assert found is not None
        assert found.routing_key == "b.\\xff"


@pytest.mark.parametrize(
    "order",
    ["MB", "MHH", "MM", "MHM", "MHBB", "MHBM"],
    ids=["no header", "two headers", "no content", "no body", "more than the body", "a part of the body"],
)
def test_a_delivery_without_its_content_ends_the_connection(order: str) -> None:
    method, header, first, _ = delivery(2, b"x" * 150)
    frames = {"M": method, "H": header, "B": first}
    taking = consumer_channel()
    for each in delivery(1, b"{}"):
        taking.take(each, 0)
    *before, last = (frames[each] for each in order)
    for each in before:
        taking.take(each, 0)
    with pytest.raises(amqp.UnexpectedFrameError):
        taking.take(last, 0)
    assert taking.consumer.sink.get_nowait() is not None
    assert taking.consumer.sink.empty(), "it has the id of the message before"


def test_what_comes_after_a_cancel_goes_to_no_handler() -> None:
    taking, late = consumer_channel(), []
    owner: Any = taking.consumer
    owner.cancelled = True
    owner.arrived_late = lambda channel, tag: late.append((channel, tag))
    stream = b"".join(delivery(7, b"{}"))
    assert taking.take(stream, 0) == len(stream)
    assert owner.sink.empty()
    assert late == [(taking, 7)]
