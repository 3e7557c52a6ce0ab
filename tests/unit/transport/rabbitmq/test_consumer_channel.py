"""Deliveries taken from the stream before pika sees them, however the network cuts it into pieces."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec

from message_hub_sync.envelope.encode import event_properties
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.rabbitmq.consumer_channel import ConsumerChannel
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_ack, properties_to_pika

CHANNEL, FRAGMENT = 7, 100


def consumer_channel() -> ConsumerChannel:
    """One that receives, on a connection that only keeps frame_handlers."""
    consumer: Any = SimpleNamespace(
        tag_prefix="a.1234", cancelled=False, deliveries=SimpleQueue(), discard_deliveries=lambda: None
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
    deliveries: SimpleQueue[Delivery | None] = taking.consumer.deliveries
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
