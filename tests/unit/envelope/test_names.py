"""Rules for the names of services and events, and the errors for names that are not allowed."""

from __future__ import annotations

import contextlib
import enum
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_hub_sync.envelope.names import (
    MAX_NAME_BYTES,
    event_name,
    validate_event_pattern,
    validate_event_type,
    validate_queue_parts,
    validate_service_name,
)
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.topology import dead_letter_queue, event_queue_name, inbox_name, retry_queue


class Named(str):
    """A subclass of ``str``, like the catalogue's event types."""


class Ours(str, enum.Enum):
    """An enum of event names, as services define it; ``str()`` of a member is not its value."""

    STARTED = "quest.started"


# --- services --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["character-service", "a", "0", "a_b-c9", "x" * MAX_NAME_BYTES])
def test_a_service_name_is_lower_case_letters_digits_underscores_and_dashes(name: str) -> None:
    assert validate_service_name(name) == name


BAD_SERVICES: list[Any] = [
    "", " ", "Character", "character service", "-a", "_a", "a.b", "a/b", "ä", "a\n", "x" * 201, None, 7, b"a", ["a"]
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_SERVICES, ids=ascii)
@pytest.mark.parametrize(
    ("configuring", "kind"), [(False, MessageValidationError), (True, MessageHubConfigurationError)]
)
def test_another_service_name_is_refused_naming_the_parameter_the_value_and_what_is_allowed(
    name: Any, configuring: bool, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        validate_service_name(name, what="destination", configuring=configuring)
    text = str(caught.value)
    assert text.startswith("destination must be a service name (")
    assert text.endswith(f"), not {shown(name)}")
    assert "lower-case letters, digits, '_' and '-', starting with a letter or digit, at most 200 bytes" in text
    assert "character-service" in text
    assert text.isprintable()
    assert len(text) < 300


def test_a_url_in_the_place_of_a_name_is_not_shown() -> None:
    for validate in (validate_service_name, validate_event_type, validate_event_pattern):
        with pytest.raises(MessageValidationError) as caught:
            validate("amqp://guest:s3cret@localhost")
        assert "s3cret" not in str(caught.value)
        assert str(caught.value).endswith(", not a URL")


# --- events ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["character.created", "a.b", "a_1.b_2.c_3", "a." + "b" * 198])
def test_an_event_type_is_words_joined_by_dots(name: str) -> None:
    assert validate_event_type(name) == name
    assert type(validate_event_type(Named(name))) is str
    assert validate_event_type(Named(name)) == name
    assert validate_event_pattern(name) == name
    assert event_name(Named(name)) == name


def test_a_member_of_an_enum_is_its_text() -> None:
    assert event_name(Ours.STARTED) == validate_event_type(Ours.STARTED) == "quest.started"
    assert type(event_name(Ours.STARTED)) is str


BAD_EVENTS: list[Any] = [
    "", "created", "character.", ".created", "a..b", "Character.Created", "a-b.c", "a b.c", "ä.b", "a.b\n",
    "a." + "b" * 199, None, 7, b"a.b", Named("created"),
]  # fmt: skip


@pytest.mark.parametrize("name", [*BAD_EVENTS, "character.*", "#", "*.created"], ids=ascii)
def test_another_event_type_cannot_be_published_and_the_error_says_what_can(name: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        validate_event_type(name)
    text = str(caught.value)
    assert text.startswith("event_type must be an event type (")
    assert text.endswith(f"), not {shown(event_name(name))}")
    assert "words of lower-case letters, digits and '_' joined by dots, at least two, no wildcard" in text
    assert "at most 200 bytes" in text
    assert text.isprintable()


@pytest.mark.parametrize("pattern", ["#", "*", "character.*", "*.created", "#.created", "a.*.b", "*.*"])
def test_a_pattern_may_have_wildcards_as_whole_words(pattern: str) -> None:
    assert validate_event_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern", [*BAD_EVENTS, "char*.created", "a.b#", "**", "a.#b", "*.", "*." + "a" * 199], ids=ascii
)
def test_another_pattern_cannot_be_subscribed_to_and_the_error_shows_it(pattern: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        validate_event_pattern(pattern)
    assert str(caught.value).startswith(("event type must be a topic pattern (", "event_type must be an event type ("))
    assert str(caught.value).endswith(f"), not {shown(event_name(pattern))}")
    assert "words of lower-case letters, digits and '_' joined by dots" in str(caught.value)


@given(st.text(max_size=300))
def test_no_name_that_passes_holds_anything_the_wire_reads_differently(name: str) -> None:
    try:
        validate_event_type(name)
    except MessageValidationError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.")
    assert all(name.split("."))


# --- together --------------------------------------------------------------------------------------


def test_service_and_event_type_together_leave_room_for_the_longest_queue_name() -> None:
    service, event_type = "s" * 100, "e." + "e" * 98
    validate_queue_parts(service, event_type)
    assert len(retry_queue(f"{service}.{event_type}", 3_600_000).name.encode()) <= 255
    with pytest.raises(MessageValidationError) as caught:
        validate_queue_parts(service, event_type + "e")
    text = str(caught.value)
    assert "together must be at most 200 bytes long, not 201" in text
    assert service in text
    assert event_type in text


@pytest.mark.parametrize(
    "name",
    [
        *(
            "character.dead",
            "order.line.dead",
            "messages.dead",
            "messages.retry.5000",
            "order.retry.1",
            "a.b.retry.3600000",
        ),
        *("replies.a", "replies.a.b", "started.a", "started.0f3a"),
    ],
)
def test_a_name_of_another_queue_of_the_hub_is_refused_with_the_reason(name: str) -> None:
    for check in (validate_event_type, validate_event_pattern):
        with pytest.raises(
            MessageValidationError, match=r"the hub has queues of such names, not '.*': choose"
        ) as caught:
            check(name)
        assert name in str(caught.value)


@pytest.mark.parametrize("pattern", ["*.dead", "#.dead", "order.*.dead", "#.retry.5000", "replies.*", "started.#"])
def test_so_is_a_pattern(pattern: str) -> None:
    with pytest.raises(MessageValidationError, match="the hub has queues of such names"):
        validate_event_pattern(pattern)


@pytest.mark.parametrize(
    "name",
    [
        *("dead.letter", "character.dead.again", "character.undead", "character.dead_end", "retry.started", "retry.1a"),
        *("quest.started", "quest.replies", "retry.5000.again", "chat.messages", "messages.sent", "order.retry_5000"),
    ],
)
def test_names_that_only_resemble_them_are_allowed(name: str) -> None:
    assert validate_event_type(name) == validate_event_pattern(name) == name


def test_no_allowed_name_has_the_queue_of_another() -> None:
    words = ["a", "dead", "retry", "5000", "started", "replies", "messages", "*", "#"]
    names = [".".join(each) for size in (1, 2, 3) for each in itertools.product(words, repeat=size)]
    allowed = []
    for name in names:
        with contextlib.suppress(MessageValidationError):
            allowed.append(validate_event_pattern(name))
    queues = {event_queue_name("s", name) for name in allowed} | {inbox_name("s")}
    ours = {f"s.{kind}.{word}" for kind in ("replies", "started") for word in words}
    for queue in queues:
        ours |= {dead_letter_queue(queue).name, retry_queue(queue, 5000).name}

    assert len(allowed) > 300
    assert len(queues) == len(allowed) + 1
    assert not queues & ours


def test_a_service_named_amq_is_refused() -> None:
    with pytest.raises(MessageValidationError, match="destination must not be 'amq': RabbitMQ reserves"):
        validate_service_name("amq", what="destination")
    with pytest.raises(MessageHubConfigurationError, match="service_name must not be 'amq'"):
        validate_service_name("amq", configuring=True)
    assert validate_service_name("amq-service") == "amq-service"
