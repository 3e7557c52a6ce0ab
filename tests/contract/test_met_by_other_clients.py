"""Situations in which other AMQP clients lost messages, stopped or mixed up answers."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from collector import Collector
from contract.conftest import Hub
from contract.test_after_a_lost_connection import interrupt, wait_until_consumed
from pydantic import BaseModel

from message_hub_sync import (
    Event,
    Message,
    MessageHubDeliveryError,
    MessageHubRemoteError,
    MessageValidationError,
    RetryPolicy,
)
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.topology import QueueSpec, Topology

# --- many threads, one client ------------------------------------------------------------------------


def test_bodies_of_many_frames_from_many_threads_are_not_mixed(hub: Hub) -> None:
    """The .NET client and bunny: frames of two threads were interleaved, and the broker closed the connection."""
    received = Collector()
    hub.client("image").subscribe_messages(lambda message: received((message.payload["n"], message.payload["text"])))
    client = hub.client("character", delivery_timeout=60)
    sizes = (0, 1, 4_096, 131_064, 131_072, 300_000)

    def send(number: int) -> None:
        text = f"{number:02}" * (sizes[number % len(sizes)] // 2)
        client.send_message(hub.name("image"), {"n": number, "text": text})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(send, range(48)))

    got = received.wait(48, timeout=60)
    assert dict(got) == {n: f"{n:02}" * (sizes[n % len(sizes)] // 2) for n in range(48)}


def test_handlers_of_several_workers_that_publish_do_not_disturb_each_other(hub: Hub) -> None:
    """The .NET client: a consumer that published in its callback was cut off once in a hundred messages."""
    middle, received = hub.client("image"), Collector()
    hub.client("campaign").subscribe_messages(lambda message: received(message.payload["n"]))

    def pass_on(message: Message) -> None:
        middle.send_message(hub.name("campaign"), {"n": message.payload["n"], "text": "x" * 5_000})

    middle.subscribe_messages(pass_on, workers=4)
    hub.client("character").send_messages([(hub.name("image"), {"n": number}) for number in range(200)])

    assert sorted(received.wait(200, timeout=60)) == list(range(200))


# --- whose answer it is ------------------------------------------------------------------------------


def test_a_returned_message_is_told_to_the_thread_that_sent_it(hub: Hub) -> None:
    """Spring AMQP and the Go client: a return was matched to another publish, or came after its own confirm."""
    received = Collector()
    hub.client("image").subscribe_messages(lambda message: received(message.payload["n"]))
    client = hub.client("character", delivery_timeout=60)

    def send(number: int) -> str:
        destination = hub.name("image") if number % 3 else hub.name("nobody")
        try:
            client.send_message(destination, {"n": number})
        except MessageHubDeliveryError as error:
            return error.outcome
        return "confirmed"

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(send, range(300)))

    assert outcomes == ["confirmed" if number % 3 else "rejected" for number in range(300)]
    assert sorted(received.wait(200)) == [number for number in range(300) if number % 3]


def test_messages_that_could_not_be_encoded_do_not_shift_the_answers_of_the_next_ones(hub: Hub) -> None:
    """The Java and .NET clients counted a publish before they wrote it: each error moved all later confirms by one."""
    received = Collector()
    hub.client("image").subscribe_messages(lambda message: received(message.payload["n"]))
    client = hub.client("character")
    for number in range(20):
        with pytest.raises(MessageValidationError):
            client.send_message(hub.name("image"), {"n": number}, headers={"big": "x" * 200_000})
        client.send_message(hub.name("image"), {"n": number})
        with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
            client.send_message(hub.name("nobody"), {"n": number})

    assert received.stays(20) == list(range(20))


# --- a queue that goes -------------------------------------------------------------------------------


def test_a_subscription_of_which_one_queue_is_deleted_consumes_both_also_after_a_loss(hub: Hub) -> None:
    """Spring AMQP, EasyNetQ, rascal: the cancel was ignored, or one deleted queue kept the others from recovery."""
    received = Collector()
    client = hub.client("image")
    subscription = client.subscribe(["quest.started", "quest.ended"], lambda event: received(event))
    first, second = subscription.queues

    hub.raw().delete(Topology(QueueSpec(first)), first, time.monotonic() + 30)
    wait_until_consumed(hub, first)
    interrupt(client)
    for queue in (first, second):
        wait_until_consumed(hub, queue)

    sender = hub.client("character")
    sender.publish_event("quest.started", {"n": 1})
    sender.publish_event("quest.ended", {"n": 2})
    assert len(received.stays(2)) == 2
    assert subscription.active


def test_a_queue_deleted_while_its_messages_are_handled_is_consumed_again(hub: Hub) -> None:
    """amqp-connection-manager: the consumer was silent for good, and the settled deliveries closed the channel."""
    inside, go_on, received = threading.Event(), threading.Event(), Collector()

    def handle(message: Message) -> None:
        inside.set()
        assert go_on.wait(60)
        received(message.payload["n"])

    client = hub.client("image")
    client.subscribe_messages(handle)
    inbox = f"{hub.name('image')}.messages"
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": 1})
    assert inside.wait(30)
    hub.raw().delete(Topology(QueueSpec(inbox)), inbox, time.monotonic() + 30)
    wait_until_consumed(hub, inbox)
    go_on.set()

    sender.send_message(hub.name("image"), {"n": 2})
    received.until(lambda items: 2 in items)
    assert received.items.count(2) == 1


# --- the message at the head -------------------------------------------------------------------------

UNREADABLE = {
    "compressed": (gzip.compress(b'{"n": 0}'), Properties(message_id="1", content_encoding="gzip")),
    "pickled": (b"\x80\x02}q\x00.", Properties(message_id="2", content_type="application/x-python-serialize")),
    "empty": (b"", Properties(message_id="3")),
    "undefined": (b"undefined", Properties(message_id="4")),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_message_at_the_head_blocks_nobody_also_with_a_prefetch_of_one(hub: Hub, kind: str) -> None:
    """celery, symfony, nestjs: it came back for ever, or ended the worker, or the worker did not start over it."""
    away = hub.client("image")
    away.subscribe_messages(lambda message: None)
    away.close()
    inbox = f"{hub.name('image')}.messages"
    body, properties = UNREADABLE[kind]
    hub.put(inbox, body, properties)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    received = Collector()
    hub.client("image").subscribe_messages(lambda message: received(message.payload["n"]), prefetch=1)

    assert received.wait() == [1]
    dead = hub.take(f"{inbox}.dead")
    assert (dead.body, dead.properties.message_id) == (body, properties.message_id)
    assert dead.properties.headers["x-reason"]


class Asked(BaseModel):
    """What the responder expects."""

    n: int


def test_a_caller_whose_request_does_not_fit_is_told_before_its_timeout(hub: Hub) -> None:
    """SlimMessageBus and nestjs: a request that could not be decoded had no reply, and its caller waited."""

    def answer(asked: Asked) -> dict[str, int]:
        return {"n": asked.n}

    hub.client("image").subscribe_messages(answer)
    began = time.monotonic()
    with pytest.raises(MessageHubRemoteError):
        hub.client("character").request(hub.name("image"), {"n": "no number"}, timeout=120)
    assert time.monotonic() - began < 60


# --- idle and busy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["message", "event", "bulk", "request"])
def test_the_first_call_after_an_idle_connection_was_closed_succeeds(hub: Hub, call: str) -> None:
    """kombu and pika: the first publish on a connection that had been closed meanwhile failed, or was lost."""
    received = Collector()

    def answer(message: Message) -> dict[str, Any]:
        received(message.payload["n"])
        return {}

    responder = hub.client("image")
    responder.subscribe_messages(answer)
    responder.subscribe(["quest.started"], lambda event: received(1))
    client = hub.client("character", delivery_timeout=60)
    client.request(hub.name("image"), {"n": 0}, timeout=60)
    for _ in range(3):
        interrupt(client)
        if call == "message":
            client.send_message(hub.name("image"), {"n": 1})
        elif call == "event":
            client.publish_event("quest.started", {"n": 1})
        elif call == "bulk":
            client.send_messages([(hub.name("image"), {"n": 1})] * 3)
        else:
            client.request(hub.name("image"), {"n": 1}, timeout=60)

    each = 3 if call == "bulk" else 1
    received.until(lambda items: items.count(1) >= 3 * each)


def test_a_handler_that_computes_for_long_does_not_cost_the_connection(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """pika and celery: no heartbeat was sent while a callback computed, so the broker closed the connection."""
    caplog.set_level(logging.INFO, "message_hub_sync.rabbitmq")
    received = Collector()

    def compute(message: Message) -> None:
        end = time.monotonic() + 4  # the broker gives a connection up after two seconds of silence
        while time.monotonic() < end:
            sum(range(1_000))
        received(message.payload["n"])

    client = hub.client("image", heartbeat=1)
    client.subscribe_messages(compute)
    hub.client("character").send_message(hub.name("image"), {"n": 1}, ttl=None)

    assert received.wait(timeout=60) == [1]
    assert received.stays(1) == [1]
    assert client.get_health_status()["connected"]


# --- headers -----------------------------------------------------------------------------------------


def test_headers_of_other_clients_arrive_and_survive_a_retry(hub: Hub) -> None:
    """aio-pika, FastStream, kombu: headers of kinds that their own side never writes were an error or were lost."""
    headers: dict[str, Any] = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "none": None, "true": True, "bytes": b"\x00\xff", "list": [1, "two", None], "table": {"deep": {"er": [1]}},
        "": "no name", "x-death-of-mine": 7,
    }  # fmt: skip
    attempts = Collector()

    def fail_once(message: Message) -> None:
        attempts(dict(message.headers))
        if len(attempts.items) == 1:
            raise LookupError("the first time")

    hub.client("image", retry=RetryPolicy(delays=(1,))).subscribe_messages(fail_once)
    hub.put(f"{hub.name('image')}.messages", b"{}", Properties(message_id=str(uuid4()), headers=headers))

    first, second = attempts.wait(2)
    for name, value in headers.items():
        if not name.startswith("x-"):
            assert first[name] == second[name] == value, name


@pytest.mark.parametrize("durable", [True, False])
def test_an_event_of_another_client_without_any_property_is_handled(hub: Hub, durable: bool) -> None:
    """NServiceBus and MassTransit: a message without the headers of their own client was dropped or blocked them."""
    received = Collector()

    def handle(event: Event) -> None:
        received((event.event_type, event.payload))

    hub.client("image").subscribe(["quest.started"], handle, durable=durable)
    hub.put("quest.started", b'{"n": 1}', Properties(content_type=None, delivery_mode=None), exchange="events")

    assert received.wait() == [("quest.started", {"n": 1})]
