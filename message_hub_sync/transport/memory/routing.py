"""Which queues a topic exchange hands a message to. Pure; the hub's lock guards the exchange."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TopicExchange", "matches", "words"]

#: Routes remembered per exchange. Keys are few in practice; a publisher that makes them up must not fill memory.
_MAX_ROUTES = 10_000


def words(key: str) -> tuple[str, ...]:
    """The words of a routing key or pattern, as RabbitMQ splits it: an empty key has none."""
    return tuple(key.split(".")) if key else ()


def matches(pattern: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a pattern fits a key: ``*`` is exactly one word, ``#`` any number of them, none included."""
    at_pattern = at_key = 0
    after_hash = -1  # where to go on in the pattern when the words tried after its last '#' do not fit
    swallowed = 0  # the first word of the key that this '#' has not taken yet
    while at_key < len(key):
        word = pattern[at_pattern] if at_pattern < len(pattern) else None
        if word == "#":
            at_pattern += 1
            after_hash, swallowed = at_pattern, at_key
        elif word is not None and (word == "*" or word == key[at_key]):
            at_pattern += 1
            at_key += 1
        elif after_hash >= 0:
            swallowed += 1
            at_pattern, at_key = after_hash, swallowed
        else:
            return False
    return all(word == "#" for word in pattern[at_pattern:])


class TopicExchange:
    """A topic exchange: its bindings, and the routes worked out since they last changed.

    Mutable: ``_bindings`` and ``_routes``, guarded by the lock of the hub it belongs to.
    """

    def __init__(self, name: str, durable: bool) -> None:
        self.name = name
        self.durable = durable
        self._bindings: dict[tuple[str, str], tuple[str, ...]] = {}
        self._routes: dict[str, tuple[str, ...]] = {}

    def bind(self, queue: str, pattern: str) -> None:
        """Have ``queue`` receive what fits ``pattern``. Binding twice is binding once."""
        self._bindings[queue, pattern] = words(pattern)
        self._routes.clear()

    def unbind(self, queue: str) -> None:
        """Forget every binding of ``queue``."""
        self._bindings = {key: found for key, found in self._bindings.items() if key[0] != queue}
        self._routes.clear()

    def route(self, key: str) -> tuple[str, ...]:
        """The queues that receive ``key``, each once however many of its bindings fit."""
        found = self._routes.get(key)
        if found is None:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            split = words(key)
            fitting = (queue for (queue, _), pattern in self._bindings.items() if matches(pattern, split))
            found = self._routes[key] = tuple(dict.fromkeys(fitting))
        return found
