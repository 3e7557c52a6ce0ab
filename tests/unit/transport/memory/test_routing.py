"""Topic routing, against the rule as one would write it down."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_hub_sync.envelope.topic_patterns import matches, words
from message_hub_sync.transport.memory.routing import TopicExchange


def obvious(pattern: Sequence[str], key: Sequence[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(obvious(pattern[1:], key[taken:]) for taken in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and obvious(pattern[1:], key[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "", "*", "#"]), max_size=7),
    st.lists(st.sampled_from(["a", "b", ""]), max_size=7),
)
def test_matching_agrees_with_the_obvious_definition(pattern: list[str], key: list[str]) -> None:
    assert matches(pattern, key) == obvious(pattern, key)


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("character.created", "character.created", True),
        ("character.*", "character.created", True),
        ("character.*", "character", False),
        ("character.*", "character.created.twice", False),
        ("character.#", "character", True),
        ("character.#", "character.created.twice", True),
        ("#.created", "created", True),
        ("#.a.#.b", "x.a.a.y.b", True),
        ("#.a.#.b", "x.a.b.y", False),
        ("#", "", True),
        ("*", "", False),
        ("", "", True),
        ("*.*", ".", True),
        ("a.*", "a.", True),
    ],
)
def test_patterns_fit_as_in_rabbitmq(pattern: str, key: str, fits: bool) -> None:
    assert matches(words(pattern), words(key)) is fits


def test_a_queue_with_several_fitting_bindings_is_a_target_once() -> None:
    exchange = TopicExchange("events", durable=True)
    for pattern in ("a.*", "#", "a.b"):
        exchange.bind("both", pattern)
    exchange.bind("other", "a.#")
    assert exchange.route("a.b") == ("both", "other")


def test_routes_follow_the_bindings_as_they_change() -> None:
    exchange = TopicExchange("events", durable=True)
    assert exchange.route("a.b") == ()
    exchange.bind("late", "a.*")
    assert exchange.route("a.b") == ("late",)
    exchange.unbind("late")
    assert exchange.route("a.b") == ()
