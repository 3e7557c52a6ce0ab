"""Declares exchanges, queues and bindings. An error of the broker closes the channel that was used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from pika.channel import Channel

from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import QueueStats
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.delivery_limit import LIMIT, first_difference
from message_hub_sync.transport.rabbitmq.io_tasks import Answer, Steps
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel, open_channel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, entity_error
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

__all__ = ["Declarations"]

logger = SafeLogger("message_hub_sync.rabbitmq")

_ACCESS_REFUSED, _NOT_FOUND, _RESOURCE_LOCKED, _PRECONDITION_FAILED = 403, 404, 405, 406


class Declarations:
    """Declares for one client. Every method is a part of a task on an I/O thread.

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
        # The exchanges that exist, by the connection that declared them; an answer that is not there yet belongs to the
        # task that declares. So 200 tasks declare their exchange once. Each I/O thread changes its connection's only.
        self._exchanges: WeakKeyDictionary[ThreadedConnection, dict[ExchangeSpec, Answer]] = WeakKeyDictionary()

    def topology(
        self, connection: ThreadedConnection, topology: Topology, name: str, prefetch: int = 0
    ) -> Steps[RpcChannel]:
        """Declare the exchange, the queue with the name ``name``, and its bindings.

        :param prefetch: the prefetch of the returned channel; 0 is no limit.
        :returns: an open channel; the caller closes it.
        """
        while True:
            known = topology.exchange is None or (yield from self.exchange(connection, topology.exchange))
            channel = yield from self.queue(connection, topology.queue, name)
            try:
                yield from channel.call(lambda pika, done: _bind(pika, done, topology, name, prefetch))
            except ChannelClosed as closed:
                if closed.code == _NOT_FOUND and known and topology.exchange is not None:
                    # The exchange was deleted after this connection had declared it.
                    self._exchanges[connection].pop(topology.exchange, None)
                    continue
                exchanges = ", ".join(repr(binding.exchange) for binding in topology.bindings)
                raise entity_error(closed, f"binding the queue {name!r} to the exchange {exchanges}") from None
            except Exception:
                channel.close()
                raise
            return channel

    def queue(self, connection: ThreadedConnection, spec: QueueSpec, name: str) -> Steps[RpcChannel]:
        """Declare one queue with the name ``name``. One that exists with other arguments is used as it is.

        :returns: an open channel; the caller closes it.
        """
        what = f"declaring the queue {name!r}"
        channel = yield from open_channel(connection)
        try:
            yield from channel.call(
                lambda pika, done: pika.queue_declare(
                    name,
                    passive=spec.passive,
                    durable=spec.durable,
                    exclusive=spec.exclusive,
                    auto_delete=spec.auto_delete,
                    arguments=spec.arguments or None,
                    callback=done,
                )
            )
        except ChannelClosed as closed:
            # 1: it exists with other arguments: use it as it is.
            # 2: the user may not declare it: use it if it exists.
            # 3: anything else is an error.
            difference = first_difference(closed.text) if closed.code == _PRECONDITION_FAILED else None
            if difference is not None:
                if difference.name == LIMIT or difference.current == "quorum":
                    self.other_limits.add(name)
                self._adopt(f"queue {name!r}", closed)
                return (yield from open_channel(connection))
            if closed.code == _ACCESS_REFUSED:
                return (yield from self._existing(connection, what, closed, name, None))
            raise entity_error(closed, what) from None
        except Exception:
            channel.close()
            raise
        return channel

    def exchange(self, connection: ThreadedConnection, spec: ExchangeSpec) -> Steps[bool]:
        """Declare one exchange, unless this connection has done it.

        One that exists with other arguments is used as it is, unless its type differs.

        :returns: whether this connection had declared it before.
        """
        known = self._exchanges.setdefault(connection, {})
        while (other := known.get(spec)) is not None:
            error = yield from other.wait()
            if error is None:
                return True
            if isinstance(error, MessageHubError):
                raise type(error)(str(error))  # another object: raising adds a traceback
        declared = known[spec] = Answer(connection)
        try:
            channel = yield from self._declare_exchange(connection, spec)
        except Exception as failed:
            del known[spec]
            connection.lock.run(declared.set, failed)
            raise
        channel.close()
        connection.lock.run(declared.set, None)
        return False

    def _declare_exchange(self, connection: ThreadedConnection, spec: ExchangeSpec) -> Steps[RpcChannel]:
        what = f"declaring the exchange {spec.name!r}"
        channel = yield from open_channel(connection)
        try:
            yield from channel.call(
                lambda pika, done: pika.exchange_declare(spec.name, spec.kind, durable=spec.durable, callback=done)
            )
        except ChannelClosed as closed:
            difference = first_difference(closed.text) if closed.code == _PRECONDITION_FAILED else None
            if difference is not None and difference.name != "type":
                self._adopt(f"exchange {spec.name!r}", closed)
            elif closed.code == _ACCESS_REFUSED:
                return (yield from self._existing(connection, what, closed, None, spec.name))
            else:
                raise entity_error(closed, what) from None
        except Exception:
            channel.close()
            raise
        return channel

    def _adopt(self, entity: str, closed: ChannelClosed) -> None:
        """Warn once that the entity exists with other arguments and is used as it is."""
        # It may have been declared by a replica with the async client, by an operator or by an earlier version.
        if entity not in self._adopted:
            self._adopted.add(entity)
            logger.warning(
                "the %s exists with other arguments and is used as it is: %s", entity, printable(closed.text)
            )

    def _existing(
        self, connection: ThreadedConnection, what: str, denied: ChannelClosed, queue: str | None, exchange: str | None
    ) -> Steps[RpcChannel]:
        """The user may not declare the entity: check whether it exists, which needs no configure permission.

        :param what: what was done, for the error text.
        :param denied: the error of the declare; raised if the entity does not exist.
        """
        channel = yield from open_channel(connection)
        try:
            if queue is not None:
                yield from channel.call(lambda pika, done: pika.queue_declare(queue, passive=True, callback=done))
            else:
                yield from channel.call(lambda pika, done: pika.exchange_declare(exchange, passive=True, callback=done))
        except ChannelClosed as closed:
            if closed.code == _RESOURCE_LOCKED:
                raise entity_error(closed, what) from None
            raise entity_error(denied, what) from None
        except Exception:
            channel.close()
            raise
        return channel

    def stats(self, connection: ThreadedConnection, names: Sequence[str]) -> Steps[dict[str, QueueStats | None]]:
        """The number of ready messages and of consumers of queues; ``None`` for one that does not exist."""
        found: dict[str, QueueStats | None] = {}
        channel = yield from open_channel(connection)
        try:
            for name in names:
                if channel.closed_by is not None:
                    channel = yield from open_channel(connection)
                found[name] = yield from self._stats(channel, name)
        except Exception:
            channel.close()
            raise
        channel.close()
        return found

    def _stats(self, channel: RpcChannel, name: str) -> Steps[QueueStats | None]:
        try:
            answer = yield from channel.call(lambda pika, done: pika.queue_declare(name, passive=True, callback=done))
        except ChannelClosed as closed:
            if closed.code == _NOT_FOUND:
                return None
            raise entity_error(closed, f"reading the statistics of the queue {name!r}") from None
        return QueueStats(depth=answer.method.message_count, consumers=answer.method.consumer_count)

    def delete(self, connection: ThreadedConnection, names: Sequence[str]) -> Steps[None]:
        """Delete queues with their bindings and messages. A queue that does not exist is no error."""
        channel = yield from open_channel(connection)
        try:
            yield from channel.call(lambda pika, done: _delete(pika, done, names))
        except ChannelClosed as closed:
            raise entity_error(closed, f"deleting the queue {', '.join(map(repr, names))}") from None
        except Exception:
            channel.close()
            raise
        channel.close()


def _bind(pika: Channel, done: Callable[..., None], topology: Topology, name: str, prefetch: int) -> None:
    # The answer to the last method stands for all of them: had one failed, the channel would be closed.
    for binding in topology.bindings:
        pika.queue_bind(name, binding.exchange, binding.routing_key)
    pika.basic_qos(prefetch_count=prefetch, callback=done)


def _delete(pika: Channel, done: Callable[..., None], names: Sequence[str]) -> None:
    *others, last = names
    for name in others:
        pika.queue_delete(name)
    pika.queue_delete(last, callback=done)
