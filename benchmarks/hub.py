"""The throwaway broker of a run. Each measurement gets a new queue there, filled if it consumes."""

from __future__ import annotations

from types import TracebackType
from typing import Any
from uuid import uuid4

import pika

from benchmarks.work import encoded, envelope, payload_of
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

__all__ = ["Hub"]


class Hub:
    """A RabbitMQ node that runs during the ``with`` block. Used by one thread."""

    def __init__(self) -> None:
        # The disk may be nearly full: a disk alarm would block the publishers.
        self._node = RabbitMQNode(install=True, config={"disk_free_limit.absolute": "1MB"})

    def __enter__(self) -> Hub:
        self._node.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._node.stop()

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        return self._node.port

    def version(self) -> str:
        with self._channel() as channel:
            return str(channel.connection._impl.server_properties.get("version", "unknown"))

    def fresh_queue(self, messages: int, body_bytes: int) -> str:
        """Declare a new inbox and fill it with so many persistent messages. Returns the service name."""
        service = f"bench-{uuid4().hex[:8]}"
        body = encoded(payload_of(body_bytes))
        with self._channel() as channel:
            queue = f"{service}.messages"
            channel.queue_declare(queue, durable=True)
            if messages:
                # In a transaction: only the commit's answer must be waited for.
                channel.tx_select()
                for _ in range(messages):
                    properties, headers = envelope(service)
                    channel.basic_publish("", queue, body, pika.BasicProperties(headers=headers, **properties))
                channel.tx_commit()
        return service

    def forget(self, service: str) -> None:
        """Delete the service's inbox and its messages."""
        with self._channel() as channel:
            channel.queue_delete(f"{service}.messages")

    def _channel(self) -> Any:
        return _Channel(pika.ConnectionParameters(self.host, self.port, heartbeat=0))


class _Channel:
    """A connection with one channel, only for the ``with`` block: between two uses, workers run for minutes."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters

    def __enter__(self) -> Any:
        self._connection = pika.BlockingConnection(self._parameters)
        return self._connection.channel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
