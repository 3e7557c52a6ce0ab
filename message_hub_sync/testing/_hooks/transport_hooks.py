"""Listening in at a client's transport, and interfering there, without the client knowing."""

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
    Outgoing,
    PublishResult,
    Receipt,
    Transport,
)
from message_hub_sync.transport.topology import Topology

__all__ = ["Interference", "Listener", "TransportHooks", "hooks_of"]

Publish = Callable[[Outgoing, float], Receipt]


class Listener(Protocol):
    """Told of what passes. Called in the client's own threads: quick, and raising nothing."""

    def published(self, outgoing: Outgoing, receipt: Receipt) -> None:
        """One attempt to publish; the receipt may not be settled yet."""

    def settled(self, delivery: Delivery) -> None:
        """The client is done with a delivery: handled, or moved on."""

    def consuming(self, topology: Topology) -> None:
        """The client is about to declare a queue and to consume from it. May raise, and take its time."""


class Interference(Protocol):
    """Stands between a client and its hub."""

    def publish(self, outgoing: Outgoing, deadline: float, publish: Publish) -> Receipt:
        """Carry out an attempt to publish, with ``publish`` or without."""

    def ack(self, delivery: Delivery, consumer: Consumer) -> bool:
        """Whether the delivery is dealt with, so that it is not settled."""

    def status(self, connections: Sequence[ConnectionStatus]) -> Sequence[ConnectionStatus]:
        """What health is told."""


class TransportHooks:
    """What stands in the place of a transport's methods while somebody listens or interferes.

    The methods are replaced on the one instance, since a client's parts hold on to its transport from the
    beginning; untouched clients pay nothing. Mutable: the listeners, a tuple replaced as a whole; ``interference``,
    one reference; both under ``_lock``, and read without.
    """

    def __init__(self, client: MessageHubClient) -> None:
        session = client._lifecycle.session()
        self.transport: Transport = session.transport
        self._subscriptions = session.subscriptions
        self._lock = threading.Lock()
        self._listeners: tuple[Listener, ...] = ()
        self._interference: Interference | None = None
        # The originals, bound, fetched before anything is replaced.
        self._publish = self.transport.publish
        self._publish_many = self.transport.publish_many
        self._consume = self.transport.consume
        self._status = self.transport.status

    def listen(self, listener: Listener) -> None:
        """Tell ``listener`` of everything from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
            self._replace()

    def leave(self, listener: Listener) -> None:
        """Tell it no more. With the last one gone, and nobody interfering, everything is as it was."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not listener)
            if not self._listeners and self._interference is None:
                self._restore()

    def interfere(self, interference: Interference | None) -> None:
        """Have it stand in between from now on; ``None``: nobody."""
        with self._lock:
            self._interference = interference
            if interference is not None:
                self._replace()
            elif not self._listeners:
                self._restore()

    # --- in place of the transport's methods ------------------------------------------------------

    def _replace(self) -> None:
        vars(self.transport).update(
            publish=self._on_publish,
            publish_many=self._on_publish_many,
            consume=self._on_consume,
            status=self._on_status,
        )
        for queue_consumer in self._subscriptions.consumers():
            consumer = queue_consumer.consumer
            if consumer is not None:
                self._watch(consumer)

    def _restore(self) -> None:
        for name in ("publish", "publish_many", "consume", "status"):
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
                listener.settled(delivery)

        vars(consumer)["ack"] = on_ack

    def _on_publish(self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False) -> Receipt:
        def publish(outgoing: Outgoing, deadline: float) -> Receipt:
            return self._publish(outgoing, deadline, own_channel=own_channel)

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
            # One by one: each may meet another fault.
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

    def _on_status(self) -> Sequence[ConnectionStatus]:
        interference = self._interference
        return self._status() if interference is None else interference.status(self._status())


def hooks_of(client: MessageHubClient) -> TransportHooks:
    """The hooks of this client in this process: one for each transport, kept by it."""
    kept = vars(client._lifecycle.session().transport)
    # setdefault is atomic: of two threads that come at once, both get the same one.
    hooks: TransportHooks = kept.get("_hooks") or kept.setdefault("_hooks", TransportHooks(client))
    return hooks
