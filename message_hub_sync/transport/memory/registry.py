"""The hubs of this process, by name."""

from __future__ import annotations

import threading

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.transport.memory.broker import Hub
from message_hub_sync.transport.memory.clock import Clock, SystemClock

__all__ = ["drop_hub", "open_hub"]


class _Registry:
    """Mutable: ``_hubs``, guarded by ``_lock``. A hub stays until it is dropped, as a broker does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hubs: dict[str, Hub] = {}

    def open(self, name: str, clock: Clock | None) -> Hub:
        with self._lock:
            hub = self._hubs.get(name)
            if hub is None:
                hub = self._hubs[name] = Hub(name, clock or SystemClock(f"memory-{name}"))
        if clock is not None and hub.clock is not clock:
            raise MessageHubConfigurationError(
                f"memory://{name} has another clock already: open it with its clock first, or drop_hub({name!r})"
            )
        return hub

    def drop(self, name: str) -> None:
        with self._lock:
            hub = self._hubs.pop(name, None)
        if hub is not None:
            hub.clear()

    def after_fork_in_child(self) -> None:
        """A forked child has hubs of its own: the parent's timer threads are not here, its locks may be held."""
        self.__init__()  # type: ignore[misc]


_registry = _Registry()
call_after_fork_in_child(_registry.after_fork_in_child)


def open_hub(name: str, clock: Clock | None = None) -> Hub:
    """The hub of this process that ``memory://name`` leads to, made where there is none yet.

    :param clock: a :class:`VirtualClock` for tests; ``None`` is the real clock, or the one the hub has.
    :raises MessageHubConfigurationError: the hub exists with another clock.
    """
    return _registry.open(name, clock)


def drop_hub(name: str) -> None:
    """Forget a hub with all that is in it: the next client to connect finds a new one.

    Close its clients first: those that stay keep the old hub, empty.
    """
    _registry.drop(name)
