"""The RabbitMQ transport: a publish and a consume connection, each opened on its first use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from message_hub_sync.config import ClientConfig
from message_hub_sync.transport.base import (
    ConnectionState,
    ConnectionStatus,
    Consumer,
    DeliverySink,
    Outgoing,
    QueueStats,
    Receipt,
)
from message_hub_sync.transport.rabbitmq.consume_connection import ConsumeConnection
from message_hub_sync.transport.rabbitmq.declaring import Declarations
from message_hub_sync.transport.rabbitmq.delivery_limit import delivery_limit
from message_hub_sync.transport.rabbitmq.io_tasks import Steps
from message_hub_sync.transport.rabbitmq.publish_connection import PublishConnection
from message_hub_sync.transport.rabbitmq.recovering_connection import RecoveringConnection
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology, declared_name

__all__ = ["RabbitMQTransport"]

#: The most channels that one call for several queues uses at the same time.
_CHANNELS = 8


class RabbitMQTransport:
    """Publishes and consumes for one client. Methods: see :class:`~message_hub_sync.transport.base.Transport`."""

    def __init__(self, config: ClientConfig) -> None:
        # Two connections, each with its own I/O thread: a broker with a memory alarm stops reading from connections
        # that publish, and it must still receive acks.
        self._listeners: list[Callable[[], None]] = []  # any thread appends; the I/O thread iterates over a copy
        self._declarations = Declarations()
        self._publish_connection = PublishConnection(config, self._listeners)
        self._consume_connection = ConsumeConnection(
            config, self._declarations, f"{config.service_name}.{uuid4().hex[:8]}"
        )

    def connect(self, deadline: float) -> None:
        self._publish_connection.recovering.wait_open(deadline)

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        if own_channel:
            return self._publish_connection.publish_on_own_channel(outgoing, deadline)
        if together:
            return self._publish_connection.publish(outgoing, deadline, together=True)
        return self._publish_connection.publish(outgoing, deadline)

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        return self._publish_connection.publish_many(list(batch), deadline)

    def declare(self, topology: Topology, deadline: float) -> None:
        name = declared_name(topology.queue)
        self._rpc_connection().call(
            lambda connection: _and_close(self._declarations.topology(connection, topology, name)), deadline
        )

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        self._rpc_connection().call(
            lambda connection: self._declarations.exchange(connection, exchange, again=True), deadline
        )

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        name = declared_name(queue)
        self._rpc_connection().call(
            lambda connection: _and_close(self._declarations.topology(connection, Topology(queue), name)), deadline
        )

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        return self.consume_many([(topology, prefetch)], deadline)[0]

    def consume_many(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> list[Consumer]:
        return list(self._consume_connection.consume(wanted, deadline, sinks))

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        answers = self._rpc_connection().call_all(
            [functools.partial(self._declarations.stats, names=part) for part in _parts(names)], deadline
        )
        return {name: stats for answer in answers for name, stats in answer.items()}

    def delivery_limit(self, queue: str, deadline: float) -> int | None:
        return self._rpc_connection().call(lambda connection: delivery_limit(connection, queue), deadline)

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        self.delete_many([queue], deadline)

    def delete_many(self, queues: Sequence[str], deadline: float) -> None:
        self._rpc_connection().call_all(
            [functools.partial(self._declarations.delete, names=part) for part in _parts(queues)], deadline
        )

    def status(self) -> Sequence[ConnectionStatus]:
        return [
            recovering.status()
            for recovering in (self._publish_connection.recovering, self._consume_connection.recovering)
            if recovering.needed
        ]

    def on_connected(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def interrupt(self) -> None:
        for recovering in (self._publish_connection.recovering, self._consume_connection.recovering):
            recovering.interrupt()

    def close(self, deadline: float) -> None:
        # Consume connection first, while there is most time left: the broker must still read its acks.
        self._consume_connection.close(deadline)
        self._publish_connection.recovering.close(deadline)

    def after_fork_in_child(self) -> None:
        self._publish_connection.recovering.after_fork_in_child()
        self._consume_connection.recovering.after_fork_in_child()

    def _rpc_connection(self) -> RecoveringConnection:
        """The connection on which to declare, delete and read statistics."""
        # 1: the publish connection is blocked: the broker does not read it, so use the consume connection (call()
        #    opens it if need be).
        # 2: the consume connection is open: use it, since the broker never blocks it.
        # 3: otherwise use the publish connection: a client without consumers needs no second one.
        blocked = self._publish_connection.recovering.state is ConnectionState.BLOCKED
        if blocked or self._consume_connection.recovering.state is ConnectionState.OPEN:
            return self._consume_connection.recovering
        return self._publish_connection.recovering


def _and_close(steps: Steps[RpcChannel]) -> Steps[None]:
    channel = yield from steps
    channel.close()


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    """The names in parts, each for a channel of its own: they are asked for at the same time."""
    return [part for number in range(_CHANNELS) if (part := names[number::_CHANNELS])]
