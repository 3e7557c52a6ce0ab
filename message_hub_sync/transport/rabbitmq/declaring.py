"""Making exchanges, queues and bindings exist, on throwaway channels, adopting what is there already."""

from __future__ import annotations

from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import QueueStats
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.rpc import temporary_channel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, entity_error
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

__all__ = ["Declarations"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_ACCESS_REFUSED, _NOT_FOUND, _RESOURCE_LOCKED, _PRECONDITION_FAILED = 403, 404, 405, 406


class Declarations:
    """Declares for one client.

    Mutable: ``_adopted``, what was already warned about; used by the I/O threads, where the worst a race
    can do is one warning twice.
    """

    def __init__(self) -> None:
        self._adopted: set[str] = set()

    def topology(self, connection: ThreadedConnection, topology: Topology, name: str, deadline: float) -> None:
        """Declare all of it, the queue under its present name.

        :raises MessageHubAuthorizationError: the user may neither declare nor look.
        :raises MessageHubConfigurationError: something there cannot be adopted.
        """
        if topology.exchange is not None:
            self.exchange(connection, topology.exchange, deadline)
        self.queue(connection, topology.queue, name, deadline)
        for binding in topology.bindings:
            what = f"binding the queue {name!r} to the exchange {binding.exchange!r}"
            try:
                with temporary_channel(connection, deadline) as channel:
                    channel.call(
                        lambda pika, done, binding=binding: pika.queue_bind(  # type: ignore[misc]
                            name, binding.exchange, binding.routing_key, callback=done
                        ),
                        deadline,
                    )
            except ChannelClosed as closed:
                raise entity_error(closed, what) from None

    def queue(self, connection: ThreadedConnection, spec: QueueSpec, name: str, deadline: float) -> None:
        """Declare one queue under its present name. Errors as :meth:`topology`."""
        what = f"declaring the queue {name!r}"
        try:
            with temporary_channel(connection, deadline) as channel:
                channel.call(
                    lambda pika, done: pika.queue_declare(
                        name,
                        durable=spec.durable,
                        exclusive=spec.exclusive,
                        auto_delete=spec.auto_delete,
                        arguments=spec.arguments or None,
                        callback=done,
                    ),
                    deadline,
                )
        except ChannelClosed as closed:
            if closed.code == _PRECONDITION_FAILED:
                self._adopt(f"queue {name!r}", closed)
            elif closed.code == _ACCESS_REFUSED:
                self._look(connection, what, closed, name, None, deadline)
            else:
                raise entity_error(closed, what) from None

    def exchange(self, connection: ThreadedConnection, spec: ExchangeSpec, deadline: float) -> None:
        """Declare one exchange. Errors as :meth:`topology`."""
        what = f"declaring the exchange {spec.name!r}"
        try:
            with temporary_channel(connection, deadline) as channel:
                channel.call(
                    lambda pika, done: pika.exchange_declare(spec.name, spec.kind, durable=spec.durable, callback=done),
                    deadline,
                )
        except ChannelClosed as closed:
            if closed.code == _PRECONDITION_FAILED and "'type'" not in closed.text:
                self._adopt(f"exchange {spec.name!r}", closed)
            elif closed.code == _ACCESS_REFUSED:
                self._look(connection, what, closed, None, spec.name, deadline)
            else:
                raise entity_error(closed, what) from None

    def _adopt(self, entity: str, closed: ChannelClosed) -> None:
        """It exists with other arguments: an async replica, an operator or an earlier version made it so."""
        if entity not in self._adopted:
            self._adopted.add(entity)
            logger.warning(
                "the %s exists with other arguments and is used as it is: %s", entity, printable(closed.text)
            )

    def _look(
        self,
        connection: ThreadedConnection,
        what: str,
        refused: ChannelClosed,
        queue: str | None,
        exchange: str | None,
        deadline: float,
    ) -> None:
        """May not be configured by us; whether it is there can be seen without that permission."""
        try:
            with temporary_channel(connection, deadline) as channel:
                if queue is not None:
                    channel.call(lambda pika, done: pika.queue_declare(queue, passive=True, callback=done), deadline)
                else:
                    channel.call(
                        lambda pika, done: pika.exchange_declare(exchange, passive=True, callback=done),
                        deadline,
                    )
        except ChannelClosed as closed:
            if closed.code == _RESOURCE_LOCKED:
                raise entity_error(closed, what) from None
            raise entity_error(refused, what) from None

    def stats(self, connection: ThreadedConnection, name: str, deadline: float) -> QueueStats | None:
        """Depth and consumers of one queue, ``None`` when it does not exist."""
        try:
            with temporary_channel(connection, deadline) as channel:
                answer = channel.call(
                    lambda pika, done: pika.queue_declare(name, passive=True, callback=done), deadline
                )
        except ChannelClosed as closed:
            if closed.code == _NOT_FOUND:
                return None
            raise entity_error(closed, f"looking at the queue {name!r}") from None
        return QueueStats(depth=answer.method.message_count, consumers=answer.method.consumer_count)

    def delete(self, connection: ThreadedConnection, name: str, deadline: float) -> None:
        """Remove a queue with its bindings and what is in it."""
        try:
            with temporary_channel(connection, deadline) as channel:
                channel.call(lambda pika, done: pika.queue_delete(name, callback=done), deadline)
        except ChannelClosed as closed:
            if closed.code != _NOT_FOUND:
                raise entity_error(closed, f"deleting the queue {name!r}") from None
