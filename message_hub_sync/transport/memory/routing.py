"""Topic exchanges: the queues to which a routing key leads. No I/O; the hub's lock guards an exchange."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TopicExchange", "matches", "words"]

#: Cached routes per exchange. There are few routing keys in practice; the limit is for a publisher that generates them.
_MAX_ROUTES = 10_000


def words(key: str) -> tuple[str, ...]:
    """The words of a routing key or pattern, as RabbitMQ splits them: an empty key has none."""
    return tuple(key.split(".")) if key else ()


def matches(pattern: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a pattern matches a key: ``*`` matches exactly one word, ``#`` any number of words, also none."""
    at_pattern = at_key = 0
    after_hash = -1  # the pattern's index after its last '#': match from there again if a word does not match
    swallowed = 0  # the index of the first word of the key that this '#' does not match
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
