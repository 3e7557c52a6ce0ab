"""Closing while messages are under way: what was written is awaited, and nothing more is written."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from pika import frame, spec
from scripted_broker import ScriptedBroker

from message_hub_sync import MessageHubClient, MessageHubDeliveryError, MessageHubError
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.envelope.values import Properties
from message_hub_sync.publishing.publisher import BULK_SLICE, SLICES_UNDER_WAY
from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq import RabbitMQTransport, confirm_channel
from message_hub_sync.transport.rabbitmq.confirm_channel import ConfirmChannel
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


class Silent(ScriptedBroker):
    """Takes messages and confirms them only when the test says so."""

    def __init__(self) -> None:
        super().__init__({"Basic.Publish": self._taken})
        self.taken = 0  # guarded by changed
        self.peer: socket.socket | None = None

    def _taken(self, peer: socket.socket) -> None:
        with self.changed:
            self.peer = peer
            self.taken += 1
            self.changed.notify_all()

    def confirm_all(self) -> None:
        """Confirm what was taken so far."""
        assert self.peer is not None
        self.peer.sendall(frame.Method(1, spec.Basic.Ack(self.taken, multiple=True)).marshal())


@pytest.fixture
def broker() -> Iterator[Silent]:
    broker = Silent()
    yield broker
    broker.close()


@pytest.fixture
def transport(broker: Silent) -> Iterator[RabbitMQTransport]:
    transport = RabbitMQTransport(ClientConfig("svc", parse_addresses(broker.url)))
    yield transport
    transport.close(soon(5))


def message() -> Outgoing:
    return Outgoing("", "svc.messages", b"{}", Properties("4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001"), mandatory=True)


def test_closing_waits_for_the_confirm_of_a_message_that_nobody_awaits_yet(
    broker: Silent, transport: RabbitMQTransport
) -> None:
    receipt = transport.publish(message(), soon())  # its caller has not come to wait for it
    assert broker.wait_for(lambda: broker.taken == 1)
    threading.Timer(0.3, broker.confirm_all).start()

    transport.close(soon())

    assert receipt.result is PublishResult.CONFIRMED


def test_closing_waits_for_a_single_call_between_its_write_and_its_wait(
    broker: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, written, go_on = ConfirmChannel.submit, threading.Event(), threading.Event()

    def paused(self: ConfirmChannel, *arguments: object) -> None:
        submit(self, *arguments)  # type: ignore[arg-type]
        written.set()
        assert go_on.wait(60)

    monkeypatch.setattr(ConfirmChannel, "submit", paused)
    client = MessageHubClient("svc", broker.url, delivery_timeout=60, close_timeout=60)
    errors: list[BaseException] = []

    def send() -> None:
        try:
            client.send_message("another", {})
        except BaseException as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    assert written.wait(60)
    threading.Timer(0.3, lambda: (broker.confirm_all(), go_on.set())).start()

    client.close()

    sender.join(60)
    assert errors == []


def test_closing_does_not_wait_for_what_its_caller_has_given_up(broker: Silent, transport: RabbitMQTransport) -> None:
    transport.publish(message(), soon()).abandoned = True
    began = time.monotonic()
    transport.close(soon(600))
    assert time.monotonic() - began < 60


def test_closing_during_a_bulk_call_confirms_what_was_written_and_has_nothing_more_written(broker: Silent) -> None:
    count = BULK_SLICE * (SLICES_UNDER_WAY + 5)
    client = MessageHubClient("svc", broker.url, close_timeout=60)
    errors: list[MessageHubError] = []

    def send() -> None:
        try:
            client.send_messages([("another", {"n": n}) for n in range(count)], timeout=60)
        except MessageHubError as error:
            errors.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    # The next slice waits for the first confirms.
    assert broker.wait_for(lambda: broker.taken == BULK_SLICE * (SLICES_UNDER_WAY + 1), 60)
    written = broker.taken
    threading.Timer(0.3, broker.confirm_all).start()

    client.close()

    sender.join(60)
    (error,) = errors
    assert isinstance(error, MessageHubDeliveryError)
    assert [(failure.index, failure.outcome) for failure in error.failures] == [
        (index, "rejected") for index in range(written, count)
    ]
    assert broker.taken == written


def test_messages_that_nobody_waits_for_are_written_together_and_within_milliseconds(
    broker: Silent, transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.connect(soon())
    writes: list[int] = []
    write = ThreadedConnection.write

    def counted(self: ThreadedConnection, data: bytes) -> None:
        writes.append(len(data))
        write(self, data)

    monkeypatch.setattr(ThreadedConnection, "write", counted)
    receipts = []

    def publish() -> None:
        # With the lock held, no write comes between: so the test does not depend on the speed of the machine.
        receipts.extend(transport.publish(message(), soon(), together=True) for _ in range(50))

    channel = transport._publish_connection._channel(soon())
    assert channel is not None
    transport.publish(message(), soon(), together=True)  # starts the timer
    channel.connection.lock.run(publish)

    assert broker.wait_for(lambda: broker.taken == 51)
    broker.confirm_all()
    assert {receipt.wait(soon()) for receipt in receipts} == {PublishResult.CONFIRMED}
    assert len(writes) <= 2


def test_a_message_that_nobody_waits_for_is_written_with_the_next_one_that_somebody_waits_for(
    broker: Silent, transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm_channel, "_SOON", 600.0)
    transport.publish(message(), soon(), together=True)

    transport.publish(message(), soon())

    assert broker.wait_for(lambda: broker.taken == 2)


@pytest.mark.parametrize("timer", ["runs", "has not started"])
def test_a_message_that_is_not_written_when_its_connection_ends_is_resolved(
    broker: Silent, transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch, timer: str
) -> None:
    monkeypatch.setattr(confirm_channel, "_SOON", 600.0)
    channel = transport._publish_connection._channel(soon())
    assert channel is not None
    before = transport.publish(message(), soon(), together=True) if timer == "runs" else None

    broker.cut()
    assert broker.wait_for(lambda: broker.connections == 2, 60)
    after = Receipt()
    channel.submit_soon(after, message(), b"")  # of a caller that took the channel before it was lost

    assert after.wait(soon()) is PublishResult.NOT_WRITTEN
    if before is not None:
        assert before.wait(soon()) is PublishResult.NOT_WRITTEN
    assert broker.taken == 0
