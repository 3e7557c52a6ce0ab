"""The calls that receive: subscriptions, as calls, as decorators, and as a group of handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, TypeVar, overload
from uuid import UUID

from message_hub_sync import catalogue
from message_hub_sync.client.calls import ClientCalls
from message_hub_sync.consuming.consumed_queue import (
    ConsumedQueue,
    ConsumeOptions,
    consume_options,
    event_queues,
    inbox_queues,
)
from message_hub_sync.consuming.decoded_delivery import Kind
from message_hub_sync.consuming.deduplication import DeduplicationStore
from message_hub_sync.consuming.handler_group import DeclaredHandler, HandlerGroup, check_event_types_named
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.envelope.values import Message
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import shown

__all__ = ["ReceivingCalls"]

logger = SafeLogger("message_hub_sync.client")

C = TypeVar("C", bound=Callable[..., Any])


class ReceivingCalls(ClientCalls):
    """The part of the client that receives. Any thread may call it."""

    def subscribe(
        self,
        event_types: Iterable[str],
        callback: Callable[..., Any],
        durable: bool = True,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Subscription:
        """Call ``callback`` with each event of these types. Processes of one service share the events.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``, ``#``).
        :param callback: gets what the annotation of its first parameter asks for: without one the payload as JSON
            text, else ``dict``, ``Event``, ``Event[Model]``, a model or ``bytes``. If it returns, the event is
            acknowledged. If it raises, the event is retried, then dead-lettered.
        :param durable: whether the queues stay when this process ends. ``False``: a queue that only this client uses,
            without retries, deleted when its connection ends.
        :param prefetch: the largest number of unacknowledged events of each queue: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: the subscription, which consumes now.
        :raises MessageValidationError: a value, or the callback's signature, is invalid.
        :raises MessageHubConnectionError: the queues were not consumed within ``connect_timeout``, or the client is
            closed.
        :raises MessageHubAuthorizationError: the broker does not let this user declare or consume a queue.
        :raises MessageHubConfigurationError: the queue is consumed already with other options, or a queue or exchange
            on the broker contradicts the settings.
        """
        return self._subscribe(event_types, callback, durable, consume_options(prefetch, workers, retry, deduplicate))

    def _subscribe(
        self, event_types: Iterable[str], callback: Callable[..., Any], durable: bool, options: ConsumeOptions
    ) -> Subscription:
        self._entered()
        consumed_queues = event_queues(self._config, event_types, durable=durable)
        subscription = self._subscription("event", consumed_queues, callback, options)
        subscription.start()
        _check_catalogue(subscription)
        return subscription

    def subscribe_messages(
        self,
        callback: Callable[..., Any],
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Subscription:
        """Call ``callback`` with each message to this service. This declares the service's inbox.

        :param callback: gets the ``Message`` envelope, or what its annotation asks for. What it returns is the reply
            to a request; ``None`` sends none, so that the caller waits until its timeout. What it raises reaches the
            caller of a request at once, and is not retried then.
        :param prefetch: the largest number of unacknowledged messages: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: the subscription, which consumes now.
        :raises MessageValidationError: a value, or the callback's signature, is invalid.
        :raises MessageHubConnectionError: the inbox was not consumed within ``connect_timeout``, or the client is
            closed.
        :raises MessageHubAuthorizationError: the broker does not let this user declare or consume the inbox.
        :raises MessageHubConfigurationError: the inbox is consumed already with other options, or a queue or exchange
            on the broker contradicts the settings.
        """
        options = consume_options(prefetch, workers, retry, deduplicate)
        self._entered()
        subscription = self._subscription("message", inbox_queues(self._config), callback, options)
        subscription.start()
        return subscription

    def on_event(
        self,
        *event_types: str,
        durable: bool = True,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Callable[[C], C]:
        """Subscribe a function to events, as a decorator: ``@client.on_event("character.created")``. It consumes at
        once.

        To declare handlers without consuming, use a :class:`HandlerGroup`.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``, ``#``).
        :param durable: whether the queues stay when this process ends. ``False``: a queue that only this client uses,
            without retries, deleted when its connection ends.
        :param prefetch: the largest number of unacknowledged events of each queue: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: a decorator, which returns the function as it is. It raises what :meth:`subscribe` raises.
        :raises MessageValidationError: no event types are named, or one of them cannot be subscribed to.
        """
        check_event_types_named(event_types, "@client.on_event")
        event_queues(self._config, event_types, durable=durable)  # now: the decorator may never be applied

        def decorate(callback: C) -> C:
            self.subscribe(
                event_types,
                callback,
                durable,
                prefetch=prefetch,
                workers=workers,
                retry=retry,
                deduplicate=deduplicate,
            )
            return callback

        return decorate

    @overload
    def on_message(self, callback: C) -> C: ...

    @overload
    def on_message(
        self,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Callable[[C], C]: ...

    def on_message(
        self,
        callback: Any = None,
        *,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Any:
        """Subscribe a function to the messages of this service, as a decorator: ``@client.on_message``, or with
        options in parentheses.

        It consumes at once. To declare handlers without consuming, use a :class:`HandlerGroup`.

        :param callback: the function, if it is used without parentheses.
        :param prefetch: the largest number of unacknowledged messages: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: the function as it is; with parentheses, a decorator. It raises what
            :meth:`subscribe_messages` raises.
        """

        def decorate(callback: C) -> C:
            self.subscribe_messages(callback, prefetch=prefetch, workers=workers, retry=retry, deduplicate=deduplicate)
            return callback

        return decorate if callback is None else decorate(callback)

    def include(self, group: HandlerGroup) -> list[Subscription]:
        """Subscribe all handlers of a group, all at once. If one of them fails, subscribe none.

        :param group: a :class:`HandlerGroup`. It takes no more handlers afterwards.
        :returns: one subscription for each handler, in the order in which they were declared.
        :raises MessageHubConfigurationError: ``group`` is not a group, was included in this client before, or a queue
            is consumed already with other options.
        :raises MessageHubConnectionError: a queue was not consumed within ``connect_timeout``, or the client is
            closed.
        :raises MessageHubAuthorizationError: the broker user may not declare or consume a queue.
        """
        if not isinstance(group, HandlerGroup):
            raise MessageHubConfigurationError(f"group must be a HandlerGroup, not {shown(group)}")
        self._entered()
        # setdefault is atomic: of two threads one includes the group.
        mine = object()
        if self._groups.setdefault(group, mine) is not mine:
            raise MessageHubConfigurationError(
                f"a group must be included once in a client, not twice: {group!r} is included in "
                f"{self._config.service_name} already"
            )
        with ExitStack() as undo:
            # Each step runs even if another one raises (for example at a second Ctrl-C). The step that was registered
            # last runs first.
            undo.callback(self._groups.pop, group, None)
            declared = group._begin_include()
            undo.callback(group._undo_include)
            if not declared:
                logger.warning(
                    "%r has no handlers, so including it subscribes to nothing: import the modules that declare them "
                    "before include()",
                    group,
                )
            subscriptions = [self._declared(each) for each in declared]
            deadline = time.monotonic() + self._config.connect_timeout
            self._lifecycle.subscriptions().start_all(subscriptions, deadline)
            undo.pop_all()
        for subscription in subscriptions:
            _check_catalogue(subscription)
        return subscriptions

    def _declared(self, declared: DeclaredHandler) -> Subscription:
        if declared.kind == "event":
            queues = event_queues(self._config, declared.event_types, durable=declared.durable)
        else:
            queues = inbox_queues(self._config)
        return self._subscription(declared.kind, queues, declared.callback, declared.options)

    def _subscription(
        self,
        kind: Kind,
        consumed_queues: tuple[ConsumedQueue, ...],
        callback: Callable[..., Any],
        options: ConsumeOptions,
    ) -> Subscription:
        def reply(message: Message[Any], payload: Any) -> UUID:
            return self._publishing().replies.reply(message, payload)

        handler = handler_for(callback, kind, reply if kind == "message" else None)
        return Subscription(self._lifecycle.subscriptions, self._config, consumed_queues, handler, options)


def _check_catalogue(subscription: Subscription) -> None:
    for pattern in subscription.event_types:
        catalogue.check_subscribe(pattern)
