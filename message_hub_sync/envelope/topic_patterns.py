"""Whether a pattern of a topic exchange matches a routing key. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["matches", "words"]


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
