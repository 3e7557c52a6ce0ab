"""The hubs of this process, by name."""

from __future__ import annotations

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.transport.memory.broker import Hub
from message_hub_sync.transport.memory.clock import Clock, SystemClock
from message_hub_sync.transport.memory.lock_order import REGISTRY

__all__ = ["drop_hub", "open_hub"]


class _Registry:
    """The hubs by name. Like a broker, a hub stays when its last client leaves; only :meth:`drop` removes it."""

    def __init__(self) -> None:
        self._lock = Lock(REGISTRY)
        self._hubs: dict[str, Hub] = {}  # guarded by _lock

    def open(self, name: str, clock: Clock | None) -> Hub:
        hub = self._find_or_create(name, clock)
        if clock is not None and hub.clock is not clock:
            raise MessageHubConfigurationError(
                f"memory://{name} exists with another clock: open it with this clock before its first use, or call "
                f"drop_hub({name!r}) first"
            )
        return hub

    @locked
    def _find_or_create(self, name: str, clock: Clock | None) -> Hub:
        hub = self._hubs.get(name)
        if hub is None:
            hub = self._hubs[name] = Hub(name, clock or SystemClock(f"memory-{name}"))
        return hub

    def drop(self, name: str) -> None:
        hub = self._lock.run(self._hubs.pop, name, None)
        if hub is not None:
            hub.clear()

    def after_fork_in_child(self) -> None:
        """In a forked child: start without hubs."""
        # The parent's timer threads do not run in the child, and its locks may be held there for ever.
        self.__init__()  # type: ignore[misc]


_registry = _Registry()
call_after_fork_in_child(_registry.after_fork_in_child)


def open_hub(name: str, clock: Clock | None = None) -> Hub:
    """The hub of this process with the address ``memory://name``. It is created if it does not exist.

    :param clock: the hub's clock, for example a :class:`VirtualClock` for tests. ``None``: the clock of an existing
        hub, a :class:`SystemClock` for a new one.
    :raises MessageHubConfigurationError: the hub exists with another clock.
    """
    return _registry.open(name, clock)


def drop_hub(name: str) -> None:
    """Remove a hub with its exchanges, queues and messages. The next client that connects gets a new one.

    Close its clients first: a client that is still connected keeps the old hub, which is then empty.
    """
    _registry.drop(name)
