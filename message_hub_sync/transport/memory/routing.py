"""Topic exchanges: the queues to which a routing key leads. No I/O; the hub's lock guards an exchange."""

from __future__ import annotations

from message_hub_sync.envelope.topic_patterns import matches, words

__all__ = ["TopicExchange"]

#: Cached routes per exchange. There are few routing keys in practice; the limit is for a publisher that generates them.
_MAX_ROUTES = 10_000


class TopicExchange:
    """A topic exchange with its bindings. The caller of each method holds the hub's lock."""

    def __init__(self, name: str, durable: bool) -> None:
        self.name = name
        self.durable = durable
        self._bindings: dict[tuple[str, str], tuple[str, ...]] = {}  # guarded by the hub's lock
        self._routes: dict[str, tuple[str, ...]] = {}  # a cache, cleared with each change; guarded by the hub's lock

    def bind(self, queue: str, pattern: str) -> None:
        """Bind ``queue`` to the routing keys that match ``pattern``. A second equal binding changes nothing."""
        self._bindings[queue, pattern] = words(pattern)
        self._routes.clear()

    def unbind(self, queue: str) -> None:
        """Remove every binding of ``queue``."""
        self._bindings = {key: found for key, found in self._bindings.items() if key[0] != queue}
        self._routes.clear()

    def route(self, key: str) -> tuple[str, ...]:
        """The queues that receive a message with the routing key ``key``, each once even if several bindings match."""
        found = self._routes.get(key)
        if found is None:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            split = words(key)
            fitting = (queue for (queue, _), pattern in self._bindings.items() if matches(pattern, split))
            found = self._routes[key] = tuple(dict.fromkeys(fitting))
        return found
