"""The throwaway broker of a run: fresh queues on it, filled where something is to be consumed."""

from __future__ import annotations

from types import TracebackType
from typing import Any
from uuid import uuid4

import pika

from benchmarks.work import encoded, envelope, payload_of
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

__all__ = ["Hub"]


class Hub:
    """A RabbitMQ node that lives as long as the ``with`` block. For one thread."""

    def __init__(self) -> None:
        # The machine may be full of other things: alarms would block publishers.
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
        """The name of a service whose inbox is new and holds that many messages, on disk."""
        service = f"bench-{uuid4().hex[:8]}"
        body = encoded(payload_of(body_bytes))
        with self._channel() as channel:
            queue = f"{service}.messages"
            channel.queue_declare(queue, durable=True)
            if messages:
                # A transaction's commit is the one answer to wait for.
                channel.tx_select()
                for _ in range(messages):
                    properties, headers = envelope(service)
                    channel.basic_publish("", queue, body, pika.BasicProperties(headers=headers, **properties))
                channel.tx_commit()
        return service

    def forget(self, service: str) -> None:
        """Delete the service's inbox with what is in it."""
        with self._channel() as channel:
            channel.queue_delete(f"{service}.messages")

    def _channel(self) -> Any:
        return _Channel(pika.ConnectionParameters(self.host, self.port, heartbeat=0))


class _Channel:
    """A connection with one channel, closed at the end of the block: workers run between, for minutes."""

    def __init__(self, parameters: Any) -> None:
        self._parameters = parameters

    def __enter__(self) -> Any:
        self._connection = pika.BlockingConnection(self._parameters)
        return self._connection.channel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
