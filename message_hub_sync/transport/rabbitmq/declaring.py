"""Declares exchanges, queues and bindings. An error of the broker closes the channel that was used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from pika.channel import Channel
from pika.spec import Queue

from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import QueueStats
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.delivery_limit import LIMIT, first_difference
from message_hub_sync.transport.rabbitmq.io_tasks import Answer, Steps
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed, entity_error
from message_hub_sync.transport.topology import Binding, ExchangeSpec, QueueSpec, Topology

__all__ = ["Declarations", "Start"]

logger = SafeLogger("message_hub_sync.rabbitmq")

#: Sends methods on a channel, the last one with the callback for its answer.
Start: TypeAlias = Callable[[Channel, Callable[..., None]], Any]
#: Given a new channel, returns what to send on it.
Use: TypeAlias = Callable[[RpcChannel], Start]

_ACCESS_REFUSED, _NOT_FOUND, _RESOURCE_LOCKED, _PRECONDITION_FAILED = 403, 404, 405, 406


def _answer_alone(_channel: RpcChannel) -> Start:
    """Use the queue for nothing: ask for an answer to what was sent before."""
    return lambda pika, done: pika.basic_qos(callback=done)


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
        self, connection: ThreadedConnection, topology: Topology, name: str, then: Use = _answer_alone
    ) -> Steps[RpcChannel]:
        """Declare the exchange, the queue with the name ``name``, and its bindings. Then use them.

        A queue that exists with other arguments is used as it is.

        :param then: called with a new channel; returns a call that sends the last methods, one of which is answered.
            May be called several times: an error of the broker closes the channel, and another one is needed.
        :returns: the channel; the caller closes it.
        """
        spec: QueueSpec | None = topology.queue
        while True:
            known = topology.exchange is None or (yield from self.exchange(connection, topology.exchange))
            channel = RpcChannel(connection)
            # Sent together: the broker handles them in order, and closes the channel at the first that fails.
            declare = functools.partial(_declare, spec, name, topology.bindings, then(channel))
            try:
                yield from channel.call(declare)
            except ChannelClosed as closed:
                if spec is not None and closed.method == Queue.Declare.INDEX:
                    yield from self._declare_failed(connection, name, closed)
                    spec = None
                elif known and closed.method == Queue.Bind.INDEX and closed.code == _NOT_FOUND and topology.exchange:
                    # The exchange was deleted after this connection had declared it.
                    self._exchanges[connection].pop(topology.exchange, None)
                else:
                    raise entity_error(closed, _what_failed(closed, topology, name)) from None
            except Exception:
                channel.close()
                raise
            else:
                return channel

    def _declare_failed(self, connection: ThreadedConnection, name: str, closed: ChannelClosed) -> Steps[None]:
        """A queue could not be declared. Raise unless it can be used as it is."""
        # 1: it exists with other arguments: use it as it is.
        # 2: the user may not declare it: use it if it exists.
        # 3: anything else is an error.
        what = f"declaring the queue {name!r}"
        difference = first_difference(closed.text) if closed.code == _PRECONDITION_FAILED else None
        if difference is not None:
            if difference.name == LIMIT or difference.current == "quorum":
                self.other_limits.add(name)
            self._adopt(f"queue {name!r}", closed)
        elif closed.code == _ACCESS_REFUSED:
            yield from self._check_exists(
                connection, what, closed, lambda pika, done: pika.queue_declare(name, passive=True, callback=done)
            )
        else:
            raise entity_error(closed, what)

    def exchange(self, connection: ThreadedConnection, spec: ExchangeSpec, *, again: bool = False) -> Steps[bool]:
        """Declare one exchange, unless this connection has done it.

        One that exists with other arguments is used as it is, unless its type differs.

        :param again: declare it also if this connection has done it: it was deleted since.
        :returns: whether this connection had declared it before.
        """
        known = self._exchanges.setdefault(connection, {})
        if again:
            known.pop(spec, None)
        while (other := known.get(spec)) is not None:
            error = yield from other.wait()
            if error is None:
                return True
            if isinstance(error, MessageHubError):
                raise type(error)(str(error))  # another object: raising adds a traceback
        declared = known[spec] = Answer(connection)
        try:
            yield from self._declare_exchange(connection, spec)
        except Exception as failed:
            if known.get(spec) is declared:
                del known[spec]
            connection.lock.run(declared.set, failed)
            raise
        connection.lock.run(declared.set, None)
        return False

    def _declare_exchange(self, connection: ThreadedConnection, spec: ExchangeSpec) -> Steps[None]:
        what = f"declaring the exchange {spec.name!r}"
        try:
            yield from _ask(
                connection,
                lambda pika, done: pika.exchange_declare(spec.name, spec.kind, durable=spec.durable, callback=done),
            )
        except ChannelClosed as closed:
            difference = first_difference(closed.text) if closed.code == _PRECONDITION_FAILED else None
            if difference is not None and difference.name != "type":
                self._adopt(f"exchange {spec.name!r}", closed)
            elif closed.code == _ACCESS_REFUSED:
                yield from self._check_exists(
                    connection,
                    what,
                    closed,
                    lambda pika, done: pika.exchange_declare(spec.name, passive=True, callback=done),
                )
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
        self, connection: ThreadedConnection, what: str, denied: ChannelClosed, look: Start
    ) -> Steps[None]:
        """The user may not declare the entity: check whether it exists, which needs no configure permission.

        :param what: what was done, for the error text.
        :param denied: the error of the declare; raised if the entity does not exist.
        :param look: declares it passively.
        """
        try:
            yield from _ask(connection, look)
        except ChannelClosed as closed:
            raise entity_error(closed if closed.code == _RESOURCE_LOCKED else denied, what) from None

    def stats(self, connection: ThreadedConnection, names: Sequence[str]) -> Steps[dict[str, QueueStats | None]]:
        """The number of ready messages and of consumers of queues; ``None`` for one that does not exist."""
        found: dict[str, QueueStats | None] = {}
        channel = RpcChannel(connection)
        try:
            for name in names:
                if channel.closed_by is not None:
                    channel = RpcChannel(connection)
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
        try:
            yield from _ask(connection, lambda pika, done: _delete(pika, done, names))
        except ChannelClosed as closed:
            raise entity_error(closed, f"deleting the queue {', '.join(map(repr, names))}") from None


def _ask(connection: ThreadedConnection, start: Start) -> Steps[Any]:
    """Send methods on a channel of their own, and wait for the answer to the last one."""
    channel = RpcChannel(connection)
    try:
        answer = yield from channel.call(start)
    except Exception:
        channel.close()
        raise
    channel.close()
    return answer


def _declare(
    spec: QueueSpec | None, name: str, bindings: Sequence[Binding], use: Start, pika: Channel, done: Callable[..., None]
) -> None:
    # Without a callback the broker sends no answer to a method that succeeds.
    if spec is not None:
        pika.queue_declare(
            name,
            passive=spec.passive,
            durable=spec.durable,
            exclusive=spec.exclusive,
            auto_delete=spec.auto_delete,
            arguments=spec.arguments or None,
        )
    for binding in bindings:
        pika.queue_bind(name, binding.exchange, binding.routing_key)
    use(pika, done)


def _what_failed(closed: ChannelClosed, topology: Topology, name: str) -> str:
    if closed.method == Queue.Declare.INDEX:
        return f"declaring the queue {name!r}"
    if closed.method == Queue.Bind.INDEX:
        exchanges = ", ".join(repr(binding.exchange) for binding in topology.bindings)
        return f"binding the queue {name!r} to the exchange {exchanges}"
    return f"consuming the queue {name!r}"


def _delete(pika: Channel, done: Callable[..., None], names: Sequence[str]) -> None:
    *others, last = names
    for name in others:
        pika.queue_delete(name)
    pika.queue_delete(last, callback=done)
