"""Handlers that are declared in a module and consumed only in a process that includes them in a client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from message_hub_sync.consuming.annotations import callback_name
from message_hub_sync.consuming.consumed_queue import ConsumeOptions, check_durable, consume_options, event_patterns
from message_hub_sync.consuming.decoded_delivery import Kind
from message_hub_sync.consuming.deduplication import DeduplicationStore
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.locks import Lock

__all__ = ["DeclaredHandler", "HandlerGroup", "check_event_types_named"]

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class DeclaredHandler:
    """A callback of a group, with what its subscription will need. ``event_types``: empty for messages."""

    kind: Kind
    callback: Callable[..., Any]
    options: ConsumeOptions
    event_types: tuple[str, ...] = ()
    durable: bool = True


class HandlerGroup:
    """Collects handlers without consuming.

    A module-level group needs no client, and importing its module connects to nothing::

        handlers = HandlerGroup()

        @handlers.on_event("character.created")
        def welcome(event: Event) -> None: ...

    ``client.include(handlers)`` subscribes all of them, in the process that is to consume. One group may be included
    in any number of clients, once in each. After the first include it accepts no more handlers: the clients that have
    included it would not subscribe them. Any thread may use it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._declared: list[DeclaredHandler] = []  # guarded by _lock
        self._includes = 0  # guarded by _lock: the clients that have included it, or are about to
        self._process = os.getpid()

    def on_event(
        self,
        *event_types: str,
        durable: bool = True,
        prefetch: int = 64,
        workers: int = 1,
        retry: RetryPolicy | None = None,
        deduplicate: DeduplicationStore | None = None,
    ) -> Callable[[C], C]:
        """Declare a handler of events: ``@group.on_event("character.created")``.

        :param event_types: names, ``EventType`` objects or patterns (``character.*``, ``#``).
        :param durable: whether the queues stay when the consuming process ends. ``False``: a queue that only that
            client uses, without retries, deleted when its connection ends.
        :param prefetch: the largest number of unacknowledged events of each queue: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: a decorator, which returns the function as it is.
        :raises MessageValidationError: a value, or the signature of the function, is invalid.
        :raises MessageHubConfigurationError: the group was included before.
        """
        check_event_types_named(event_types, "@group.on_event")
        patterns = tuple(event_patterns(event_types))
        check_durable(durable)
        options = consume_options(prefetch, workers, retry, deduplicate)

        def declare(callback: C) -> C:
            self._declare(DeclaredHandler("event", callback, options, patterns, durable))
            return callback

        return declare

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
        """Declare a handler of the messages to the service: ``@group.on_message``, or with options in parentheses.

        :param callback: the function, if it is used without parentheses.
        :param prefetch: the largest number of unacknowledged messages: 1 to 65,535.
        :param workers: threads that run the callback, for all its queues. With more than one, the order is not kept.
        :param retry: the retry policy; by default that of the client.
        :param deduplicate: a store that remembers what was handled, so that repeated deliveries are dropped.
        :returns: the function as it is; with parentheses, a decorator.
        :raises MessageValidationError: a value, or the signature of the function, is invalid.
        :raises MessageHubConfigurationError: the group was included before.
        """
        options = consume_options(prefetch, workers, retry, deduplicate)

        def declare(callback: C) -> C:
            self._declare(DeclaredHandler("message", callback, options))
            return callback

        return declare if callback is None else declare(callback)

    def _declare(self, declared: DeclaredHandler) -> None:
        # Check it now, not at include(): the traceback then shows the handler's module.
        handler_for(declared.callback, declared.kind)
        if not self._guard().run(self._append, declared):
            raise MessageHubConfigurationError(
                f"handler {callback_name(declared.callback)} must be declared before its group is included in a "
                "client, not after it: import all modules that declare handlers first"
            )

    def _append(self, declared: DeclaredHandler) -> bool:
        if not self._includes:
            self._declared.append(declared)
        return not self._includes

    def _begin_include(self) -> list[DeclaredHandler]:
        """For ``client.include``: the declared handlers, in order. From now on the group takes no more handlers."""
        return self._guard().run(self._count_include, 1)

    def _undo_include(self) -> None:
        """An ``include`` failed: if there is no other one, the group takes handlers again."""
        self._guard().run(self._count_include, -1)

    def _count_include(self, change: int) -> list[DeclaredHandler]:
        self._includes += change
        return list(self._declared)

    def _guard(self) -> Lock:
        # A thread of the parent may have held the lock at the fork, and does not exist here to release it.
        if self._process != os.getpid():
            self._lock = Lock()
            self._process = os.getpid()
        return self._lock

    def __repr__(self) -> str:
        count = len(self._declared)
        return f"<HandlerGroup of {count} handler{'s' * (count != 1)}>"


def check_event_types_named(event_types: tuple[Any, ...], decorator: str) -> None:
    """Check that ``@on_event`` was not used without parentheses: it would take the handler for an event type.

    :raises MessageValidationError: it was used without parentheses.
    """
    if len(event_types) == 1 and isinstance(event_types[0], (list, tuple, set, frozenset)):
        raise MessageValidationError(
            f"on_event must be given each event type by itself, not a {type(event_types[0]).__name__}: "
            f'{decorator}("character.created", "character.deleted")'
        )
    if len(event_types) == 1 and callable(event_types[0]):
        raise MessageValidationError(
            "on_event must be given event types, not a function: "
            f'name them in parentheses, {decorator}("character.created")'
        )
