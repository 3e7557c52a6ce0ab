"""Hooks in a client's transport: they report what passes through it, and can change it. The client is not modified."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.errors import MessageHubConnectionError, MessageValidationError
from message_hub_sync.transport.base import (
    ConnectionStatus,
    Consumer,
    Delivery,
    DeliverySink,
    Outgoing,
    PublishResult,
    Receipt,
    Transport,
)
from message_hub_sync.transport.topology import Topology

__all__ = ["Interference", "Listener", "TransportHooks", "hooks_of"]

Publish = Callable[[Outgoing, float], Receipt]


class Listener(Protocol):
    """Receives what passes through the transport.

    Its methods are called in the client's threads. They must be quick and must not raise.
    """

    def published(self, outgoing: Outgoing, receipt: Receipt) -> None:
        """One attempt to publish. The receipt may not be resolved yet."""

    def acknowledged(self, delivery: Delivery) -> None:
        """The client acknowledged a delivery: it was handled, or moved to a retry or dead-letter queue."""

    def consuming(self, topology: Topology) -> None:
        """The client is about to declare a queue and to consume from it. This method may block, and may raise."""


class Interference(Protocol):
    """Replaces operations of the transport, to inject faults."""

    def publish(self, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        """Carry out one attempt to publish. ``publish`` is the transport's own method; it need not be called."""

    def ack(self, delivery: Delivery, consumer: Consumer) -> bool:
        """Return true if the delivery must not be acknowledged, because it was dealt with here."""

    def status(self, connections: Sequence[ConnectionStatus]) -> Sequence[ConnectionStatus]:
        """The connection statuses to report instead of ``connections``."""


class TransportHooks:
    """Replaces methods of one transport while there are listeners or an interference. Thread-safe."""

    def __init__(self, client: MessageHubClient) -> None:
        session = client._lifecycle.session()
        self.transport: Transport = session.transport
        self._subscriptions = session.subscriptions
        self._lock = threading.RLock()
        self._listeners: tuple[Listener, ...] = ()  # replaced as a whole, guarded by _lock; read without
        self._interference: Interference | None = None  # written under _lock; read without
        # The original bound methods: read them before any is replaced.
        self._publish = self.transport.publish
        self._publish_many = self.transport.publish_many
        self._consume = self.transport.consume
        self._consume_many = self.transport.consume_many
        self._status = self.transport.status

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener`` for everything from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
            self._replace()

    def remove_listener(self, listener: Listener) -> None:
        """Stop calling ``listener``. The last removal restores the original methods if there is no interference."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not listener)
            if not self._listeners and self._interference is None:
                self._restore()

    def set_interference(self, interference: Interference | None) -> None:
        """Use ``interference`` from now on; ``None`` removes it."""
        with self._lock:
            self._interference = interference
            if interference is not None:
                self._replace()
            elif not self._listeners:
                self._restore()

    # --- in place of the transport's methods ------------------------------------------------------

    def _replace(self) -> None:
        # On the instance, not by a wrapper: the client's parts keep a reference to this transport object.
        # Clients without hooks pay nothing.
        vars(self.transport).update(
            publish=self._on_publish,
            publish_many=self._on_publish_many,
            consume=self._on_consume,
            consume_many=self._on_consume_many,
            status=self._on_status,
        )
        for queue_consumer in self._subscriptions.consumers():
            consumer = queue_consumer.consumer
            if consumer is not None:
                self._watch(consumer)

    def _restore(self) -> None:
        for name in ("publish", "publish_many", "consume", "consume_many", "status"):
            vars(self.transport).pop(name, None)
        for queue_consumer in self._subscriptions.consumers():
            consumer = queue_consumer.consumer
            if consumer is not None:
                vars(consumer).pop("ack", None)

    def _watch(self, consumer: Consumer) -> None:
        if "ack" in vars(consumer):
            return
        ack = consumer.ack

        def on_ack(delivery: Delivery) -> None:
            interference = self._interference
            if interference is None or not interference.ack(delivery, consumer):
                ack(delivery)
            for listener in self._listeners:
                listener.acknowledged(delivery)

        vars(consumer)["ack"] = on_ack

    def _on_publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        def publish(outgoing: Outgoing, deadline: float) -> Receipt:
            return self._publish(outgoing, deadline, own_channel=own_channel, together=together)

        interference = self._interference
        if interference is None:
            receipt = publish(outgoing, deadline)
        else:
            receipt = interference.publish(outgoing, deadline, publish)
        for listener in self._listeners:
            listener.published(outgoing, receipt)
        return receipt

    def _on_publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        if self._interference is not None:
            # One by one: each message may get a different fault.
            return [self._on_one_of_many(outgoing, deadline) for outgoing in batch]
        receipts = self._publish_many(batch, deadline)
        for outgoing, receipt in zip(batch, receipts, strict=True):
            for listener in self._listeners:
                listener.published(outgoing, receipt)
        return receipts

    def _on_one_of_many(self, outgoing: Outgoing, deadline: float) -> Receipt:
        try:
            return self._on_publish(outgoing, deadline)
        except (MessageHubConnectionError, MessageValidationError) as error:
            receipt = Receipt()
            invalid = isinstance(error, MessageValidationError)
            receipt.resolve(PublishResult.INVALID if invalid else PublishResult.NOT_WRITTEN, str(error))
            return receipt

    def _on_consume(self, topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        for listener in self._listeners:
            listener.consuming(topology)
        consumer = self._consume(topology, prefetch=prefetch, deadline=deadline)
        self._watch(consumer)
        return consumer

    def _on_consume_many(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> Sequence[Consumer]:
        for listener in self._listeners:
            for topology, _ in wanted:
                listener.consuming(topology)
        consumers = self._consume_many(wanted, deadline, sinks)
        for consumer in consumers:
            self._watch(consumer)
        return consumers

    def _on_status(self) -> Sequence[ConnectionStatus]:
        interference = self._interference
        return self._status() if interference is None else interference.status(self._status())


def hooks_of(client: MessageHubClient) -> TransportHooks:
    """The hooks of this client. There is one object for each transport; the transport keeps it. Thread-safe."""
    kept = vars(client._lifecycle.session().transport)
    # setdefault is atomic: two threads that call this at the same time get the same object.
    hooks: TransportHooks = kept.get("_hooks") or kept.setdefault("_hooks", TransportHooks(client))
    return hooks
