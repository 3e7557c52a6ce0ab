"""What other clients of RabbitMQ lose with a connection: prefetch, acknowledgements, reply queues, order, consumers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Message, MessageHubClient, MessageHubDeliveryError, MessageHubRetryError
from message_hub_sync.consuming.retry_policy import RetryPolicy


def interrupt(client: MessageHubClient) -> None:
    client._lifecycle.session().transport.interrupt()


def consumed(hub: Hub, queue: str) -> bool:
    stats = hub.raw().queue_stats([queue], time.monotonic() + 20)[queue]
    return stats is not None and stats.consumers > 0


def wait_until_consumed(hub: Hub, queue: str) -> None:
    deadline = time.monotonic() + 30
    pause = threading.Event()
    while not consumed(hub, queue):
        assert time.monotonic() < deadline, "the queue is not consumed again"
        pause.wait(0.02)


def test_a_consumer_that_reconnects_takes_no_more_than_its_prefetch(hub: Hub) -> None:
    """celery lowers the prefetch at a reconnect and cannot raise it again; others forget it."""
    go_on, handled = threading.Event(), Collector()

    def slow(message: Message) -> None:
        go_on.wait(60)
        handled(message.payload["n"])

    client = hub.client("image")
    client.subscribe_messages(slow, prefetch=3)
    inbox = f"{hub.name('image')}.messages"
    sender = hub.client("character")
    sender.send_messages([(hub.name("image"), {"n": number}) for number in range(10)])

    for _ in range(2):
        interrupt(client)
        wait_until_consumed(hub, inbox)
        deadline = time.monotonic() + 30
        while (depth := hub.depth(inbox)) != 7:
            assert time.monotonic() < deadline, f"{depth} messages wait, not 7"
    go_on.set()

    handled.until(lambda items: set(items) == set(range(10)))


def test_what_is_handled_after_a_reconnect_is_acknowledged_soon(hub: Hub) -> None:
    """celery-batches: a timer that belonged to the lost connection was never started again."""
    handled = Collector()
    client = hub.client("image")
    client.subscribe_messages(lambda message: handled(message.payload["n"]))
    inbox = f"{hub.name('image')}.messages"
    sender = hub.client("character")

    for number in range(3):
        sender.send_message(hub.name("image"), {"n": number})
        handled.wait(number + 1, timeout=30)
        threading.Event().wait(1)  # the acknowledgement is sent within 50 ms
        interrupt(client)
        wait_until_consumed(hub, inbox)

    assert handled.stays(3, seconds=0.5) == [0, 1, 2]


def test_a_service_that_answers_still_answers_after_its_connection_and_the_callers_were_lost(hub: Hub) -> None:
    """aio-pika and amqp-ts: after a reconnect the exclusive reply queue, or its consumer, was not there."""
    service = hub.client("image")
    service.subscribe_messages(lambda message: {"n": message.payload["n"] + 1}, workers=2)
    caller = hub.client("character")
    inbox = f"{hub.name('image')}.messages"

    for number in range(4):
        assert caller.request(hub.name("image"), {"n": number}, timeout=30).payload == {"n": number + 1}
        interrupt(service if number % 2 else caller)
        wait_until_consumed(hub, inbox)


def test_a_retry_that_waits_while_the_connection_is_lost_is_not_lost(hub: Hub) -> None:
    """dramatiq holds delayed messages unacknowledged in the process; NServiceBus lost those of an absent endpoint."""
    attempts = Collector()

    def fails_once(message: Message) -> None:
        attempts(message.payload["n"])
        if "x-attempts" not in message.headers:
            raise MessageHubRetryError(delay=1)

    client = hub.client("image", retry=RetryPolicy(attempts=3, delays=(1,)))
    client.subscribe_messages(fails_once)
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    attempts.wait(timeout=30)
    client.close(10)  # the message moves to the retry queue before it ends, and waits there for a second

    again = hub.client("image")
    again.subscribe_messages(fails_once)
    assert attempts.wait(2, timeout=30) == [1, 1]


def test_threads_that_publish_while_the_connection_is_cut_again_and_again_all_return(hub: Hub) -> None:
    """amqp091-go, aio-pika: a publish or a wait for its confirm never returned after the connection had ended."""
    received = Collector()
    hub.client("image").subscribe_messages(lambda message: received(message.payload["n"]))
    client = hub.client("character", delivery_timeout=20)
    finished = threading.Event()

    def cut() -> None:
        while not finished.wait(0.05):
            interrupt(client)

    def send(number: int) -> Any:
        try:
            client.send_message(hub.name("image"), {"n": number})
        except MessageHubDeliveryError as error:
            assert error.outcome == "unknown"  # noqa: PT017  # any other outcome would be wrong
            return None
        return number

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            sent = list(pool.map(send, range(100), timeout=120))
    finally:
        finished.set()
        cutter.join(20)

    certain = {number for number in sent if number is not None}
    received.until(certain.issubset)


@pytest.mark.parametrize("workers", [1, 4])
def test_messages_come_in_order_also_after_the_connection_was_lost(hub: Hub, workers: int) -> None:
    """What was prefetched and not handled goes back in its order (several workers: each is handled, no order)."""
    handled, gate = Collector(), threading.Semaphore(0)

    def handle(message: Message) -> None:
        gate.acquire(timeout=30)
        handled(message.payload["n"])

    client = hub.client("image")
    client.subscribe_messages(handle, workers=workers)
    hub.client("character").send_messages([(hub.name("image"), {"n": number}) for number in range(30)])
    gate.release(8)
    handled.wait(8, timeout=30)
    threading.Event().wait(0.3)  # acknowledged
    interrupt(client)
    gate.release(60)

    items = handled.until(lambda items: set(items) == set(range(30)))
    if workers == 1:
        first = list(dict.fromkeys(items))
        assert first == sorted(first)


def test_what_waits_here_for_its_handler_goes_with_its_queue(hub: Hub) -> None:
    """Whoever deletes a queue deletes its messages: those that were prefetched, too."""
    began, go_on, handled = threading.Event(), threading.Event(), Collector()

    def slow(message: Message) -> None:
        began.set()
        assert go_on.wait(60)
        handled(message["payload"]["n"])

    image, character = hub.client("image"), hub.client("character")
    image.subscribe_messages(slow)
    for number in range(5):
        character.send_message(hub.name("image"), {"n": number})
    assert began.wait(30)
    queue = f"{hub.name('image')}.messages"
    hub.raw().delete_many([queue], time.monotonic() + 20)
    wait_until_consumed(hub, queue)
    go_on.set()
    character.send_message(hub.name("image"), {"n": 5})
    assert handled.wait(2) == [0, 5]
    assert handled.stays(2) == [0, 5]
