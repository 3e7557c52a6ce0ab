"""Declares exchanges, queues and bindings. Each call has a channel of its own, as an error closes the channel."""

from __future__ import annotations

from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import QueueStats
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.delivery_limit import LIMIT, first_difference
from message_hub_sync.transport.rabbitmq.rpc_channel import temporary_channel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, entity_error
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

__all__ = ["Declarations"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_ACCESS_REFUSED, _NOT_FOUND, _RESOURCE_LOCKED, _PRECONDITION_FAILED = 403, 404, 405, 406


class Declarations:
    """Declares for one client. Every method runs on an I/O thread, ``deadline`` is in monotonic seconds.

    Every method may raise:

    * :class:`MessageHubAuthorizationError`: the user lacks a permission.
    * :class:`MessageHubConfigurationError`: what exists on the broker contradicts the declaration.
    * ``ConnectionEnded``, ``RpcTimedOut``: the connection ended; no answer before the deadline.
    """

    def __init__(self) -> None:
        # The entities that were warned about. Both I/O threads use it without a lock: a race logs one warning twice.
        self._adopted: set[str] = set()
        #: The quorum queues that exist with another delivery limit than declared. Read by any thread.
        self.other_limits: set[str] = set()

    def topology(self, connection: ThreadedConnection, topology: Topology, name: str, deadline: float) -> None:
        """Declare the exchange, the queue with the name ``name``, and its bindings."""
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
        """Declare one queue with the name ``name``. One that exists with other arguments is used as it is."""
        what = f"declaring the queue {name!r}"
        try:
            with temporary_channel(connection, deadline) as channel:
                channel.call(
                    lambda pika, done: pika.queue_declare(
                        name,
                        passive=spec.passive,
                        durable=spec.durable,
                        exclusive=spec.exclusive,
                        auto_delete=spec.auto_delete,
                        arguments=spec.arguments or None,
                        callback=done,
                    ),
                    deadline,
                )
        except ChannelClosed as closed:
            # 1: it exists with other arguments: use it as it is.
            # 2: the user may not declare it: use it if it exists.
            # 3: anything else is an error.
            if closed.code == _PRECONDITION_FAILED:
                difference = first_difference(closed.text)
                if difference is not None and (difference.name == LIMIT or difference.current == "quorum"):
                    self.other_limits.add(name)
                self._adopt(f"queue {name!r}", closed)
            elif closed.code == _ACCESS_REFUSED:
                self._check_exists(connection, what, closed, name, None, deadline)
            else:
                raise entity_error(closed, what) from None

    def exchange(self, connection: ThreadedConnection, spec: ExchangeSpec, deadline: float) -> None:
        """Declare one exchange. One that exists with other arguments is used as it is, unless its type differs."""
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
                self._check_exists(connection, what, closed, None, spec.name, deadline)
            else:
                raise entity_error(closed, what) from None

    def _adopt(self, entity: str, closed: ChannelClosed) -> None:
        """Warn once that the entity exists with other arguments and is used as it is."""
        # It may have been declared by a replica with the async client, by an operator or by an earlier version.
        if entity not in self._adopted:
            self._adopted.add(entity)
            logger.warning(
                "the %s exists with other arguments and is used as it is: %s", entity, printable(closed.text)
            )

    def _check_exists(
        self,
        connection: ThreadedConnection,
        what: str,
        denied: ChannelClosed,
        queue: str | None,
        exchange: str | None,
        deadline: float,
    ) -> None:
        """The user may not declare the entity: check whether it exists, which needs no configure permission.

        :param what: what was done, for the error text.
        :param denied: the error of the declare; raised if the entity does not exist.
        """
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
            raise entity_error(denied, what) from None

    def stats(self, connection: ThreadedConnection, name: str, deadline: float) -> QueueStats | None:
        """The number of ready messages and of consumers of one queue; ``None`` if it does not exist."""
        try:
            with temporary_channel(connection, deadline) as channel:
                answer = channel.call(
                    lambda pika, done: pika.queue_declare(name, passive=True, callback=done), deadline
                )
        except ChannelClosed as closed:
            if closed.code == _NOT_FOUND:
                return None
            raise entity_error(closed, f"reading the statistics of the queue {name!r}") from None
        return QueueStats(depth=answer.method.message_count, consumers=answer.method.consumer_count)

    def delete(self, connection: ThreadedConnection, name: str, deadline: float) -> None:
        """Delete a queue with its bindings and messages. A queue that does not exist is no error."""
        try:
            with temporary_channel(connection, deadline) as channel:
                channel.call(lambda pika, done: pika.queue_delete(name, callback=done), deadline)
        except ChannelClosed as closed:
            if closed.code != _NOT_FOUND:
                raise entity_error(closed, f"deleting the queue {name!r}") from None
