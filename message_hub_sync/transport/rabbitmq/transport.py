"""The transport over RabbitMQ: two connections, made on first need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from message_hub_sync.config import ClientConfig
from message_hub_sync.transport.base import (
    ConnectionState,
    ConnectionStatus,
    Consumer,
    Outgoing,
    QueueStats,
    Receipt,
)
from message_hub_sync.transport.rabbitmq.consume_connection import ConsumeConnection
from message_hub_sync.transport.rabbitmq.declaring import Declarations
from message_hub_sync.transport.rabbitmq.publish_connection import PublishConnection
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology, declared_name

__all__ = ["RabbitMQTransport"]


class RabbitMQTransport:
    """Carries one client's messages (see :class:`~message_hub_sync.transport.base.Transport`).

    One connection publishes and one consumes, because a broker under a memory alarm stops reading from
    connections that publish, and acknowledgements must still reach it. Each has one I/O thread.

    Mutable: only what its parts guard.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._declarations = Declarations()
        self._publish_connection = PublishConnection(config, self._listeners)
        self._consume_connection = ConsumeConnection(
            config, self._declarations, f"{config.service_name}.{uuid4().hex[:8]}"
        )

    def connect(self, deadline: float) -> None:
        """As the seam has it."""
        self._publish_connection.recovering.wait_open(deadline)

    def publish(self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False) -> Receipt:
        """As the seam has it."""
        if own_channel:
            return self._publish_connection.publish_on_own_channel(outgoing, deadline)
        return self._publish_connection.publish(outgoing, deadline)

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        """As the seam has it."""
        return self._publish_connection.publish_many(list(batch), deadline)

    def declare(self, topology: Topology, deadline: float) -> None:
        """As the seam has it."""
        name = declared_name(topology.queue)
        self._asking().call(
            lambda connection: self._declarations.topology(connection, topology, name, _sooner(deadline)), deadline
        )

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        """As the seam has it."""
        self._asking().call(
            lambda connection: self._declarations.exchange(connection, exchange, _sooner(deadline)), deadline
        )

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        """As the seam has it."""
        name = declared_name(queue)
        self._asking().call(
            lambda connection: self._declarations.queue(connection, queue, name, _sooner(deadline)), deadline
        )

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        """As the seam has it."""
        return self._consume_connection.consume(topology, prefetch, deadline)

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        """As the seam has it."""
        return self._asking().call(
            lambda connection: {name: self._declarations.stats(connection, name, _sooner(deadline)) for name in names},
            deadline,
        )

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        """As the seam has it."""
        self._asking().call(
            lambda connection: self._declarations.delete(connection, queue, _sooner(deadline)), deadline
        )

    def status(self) -> Sequence[ConnectionStatus]:
        """As the seam has it."""
        return [
            recovering.status()
            for recovering in (self._publish_connection.recovering, self._consume_connection.recovering)
            if recovering.needed
        ]

    def on_connected(self, listener: Callable[[], None]) -> None:
        """As the seam has it."""
        self._listeners.append(listener)

    def interrupt(self) -> None:
        """As the seam has it."""
        for recovering in (self._publish_connection.recovering, self._consume_connection.recovering):
            recovering.interrupt()

    def close(self, deadline: float) -> None:
        """As the seam has it. Consumers first: what they settled must still be read."""
        self._consume_connection.close(deadline)
        self._publish_connection.recovering.close(deadline)

    def after_fork_in_child(self) -> None:
        """As the seam has it."""
        self._publish_connection.recovering.after_fork_in_child()
        self._consume_connection.recovering.after_fork_in_child()

    def _asking(self) -> RecoveringConnection:
        """The connection that answers questions: the consuming one where it is up, for it is never blocked.

        Where the publishing one is blocked, its questions stay unanswered: then the other one is made for them.
        """
        blocked = self._publish_connection.recovering.state is ConnectionState.BLOCKED
        if blocked or self._consume_connection.recovering.state is ConnectionState.OPEN:
            return self._consume_connection.recovering
        return self._publish_connection.recovering


def _sooner(deadline: float) -> float:
    return min(deadline, RecoveringConnection.restore_deadline())
