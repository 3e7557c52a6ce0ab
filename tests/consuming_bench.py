"""Consumers over a scripted transport: the test plays the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collector import Collector
from scripted_transport import ScriptedConsumer, ScriptedTransport, Step

from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming.consumed_queue import ConsumeOptions, ConsumerContext, event_queues, inbox_queues
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.consuming.suspects import Suspects
from message_hub_sync.envelope.values import Properties
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.requests.reply_sender import ReplySender
from message_hub_sync.requests.request_caller import RequestCaller
from message_hub_sync.transport.base import Delivery
from message_hub_sync.transport.topology import Topology

__all__ = ["ID", "Bench", "OneConsumer"]

ID = "4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e2000{}"


class OneConsumer(ScriptedTransport):
    """Hands out one consumer, and tells each settlement."""

    def __init__(self, *steps: Step) -> None:
        super().__init__(*steps)
        self.settled = Collector()
        self.consumers: list[ScriptedConsumer] = []

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        consumer = ScriptedConsumer(topology.queue.name)
        consumer.ack = lambda delivery: self.settled(delivery.delivery_tag)  # type: ignore[method-assign]
        self.consumers.append(consumer)
        return consumer


class Bench:
    """SubscriptionRegistry over a script. :meth:`deliver` plays the broker."""

    def __init__(self, *steps: Step, retry: RetryPolicy | None = None) -> None:
        self.transport = OneConsumer(*steps)
        self.config = ClientConfig("image-service", MemoryAddress("unused"))
        metrics = ServiceMetrics("image-service")
        publisher = Publisher(self.transport, self.config, None, metrics)  # type: ignore[arg-type]
        self.requests = RequestCaller(self.transport, self.config, publisher, metrics)
        replies = ReplySender(self.config, publisher)
        context = ConsumerContext(
            self.transport,
            self.config,
            metrics,
            retry or RetryPolicy(),
            claim_reply=self.requests.claim_reply,
            send_reply=replies.answer,
            send_error=replies.fail,
            suspects=Suspects(self.transport, "image-service"),
        )
        self.subscriptions = SubscriptionRegistry(context)
        self.tag = 0

    def subscribe(
        self,
        callback: Callable[..., Any],
        *event_types: str,
        durable: bool = True,
        options: ConsumeOptions | None = None,
        start: bool = True,
    ) -> Subscription:
        consumed_queues = event_queues(self.config, event_types or ["quest.started"], durable=durable)
        handler = handler_for(callback, "event")
        subscription = Subscription(
            lambda: self.subscriptions, self.config, consumed_queues, handler, options or ConsumeOptions()
        )
        if start:
            subscription.start()
        return subscription

    def subscribe_messages(self, callback: Callable[..., Any]) -> Subscription:
        consumed_queues = inbox_queues(self.config)
        handler = handler_for(callback, "message")
        subscription = Subscription(lambda: self.subscriptions, self.config, consumed_queues, handler, ConsumeOptions())
        subscription.start()
        return subscription

    def deliver(
        self,
        *,
        to: int = -1,
        redelivered: bool = False,
        channel_generation: int = 1,
        origin: object = None,
        **properties: Any,
    ) -> int:
        self.tag += 1
        fields = {"message_id": ID.format(self.tag), "headers": {}, **properties}
        consumer = self.transport.consumers[to]
        consumer.sink.put(
            Delivery(
                body=b"{}",
                properties=Properties(**fields),
                exchange="events",
                routing_key="quest.started",
                queue=consumer.queue,
                redelivered=redelivered,
                delivery_tag=self.tag,
                channel_generation=channel_generation,
                origin=origin,
            )
        )
        return self.tag
