"""Handlers behind decorators: how many arguments they get, and that their body has run when a message is settled."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from message_hub_sync import Event, Message, MessageValidationError
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.handler_group import HandlerGroup
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Delivery

BODY = b'{"character_id": "c-1"}'


class Session: ...


class Created(BaseModel):
    character_id: str


CREATED = Created(character_id="c-1")


def called(callback: Any, kind: Kind = "event") -> tuple[Any, ...]:
    """The arguments with which the callback is called."""
    properties = Properties(message_id="4fa0c3ad-5f9c-4e2e-a0fc-6b6bd8e20001", headers={"source": "a"})
    delivery = Delivery(BODY, properties, "events", "character.created", "q", False, 1, 1, None)
    return handler_for(callback, kind).arguments(DecodedDelivery(delivery, kind, "me", 1000))


def injecting(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(event):  # type: ignore[no-untyped-def]
        return handler(event, Session())

    return wrapper


def injecting_first(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(event):  # type: ignore[no-untyped-def]
        return handler(Session(), event)

    return wrapper


def injecting_by_position(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, Session(), **kwargs)

    return wrapper


def passing_on(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return wrapper


def renaming(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(it, *more):  # type: ignore[no-untyped-def]
        return handler(it, *more)

    return wrapper


def dropping(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def wrapper(event: Any, envelope: Any) -> Any:
        return handler(event)

    return wrapper


def with_session(event: Created, session: Session) -> Any:
    return event, type(session)


def session_first(session: Session, event: Created) -> Any:
    return event, type(session)


def with_envelope(event: Created, envelope: Event) -> Any:
    return event, type(envelope)


def with_untyped_second(event: dict[str, Any], session) -> Any:  # type: ignore[no-untyped-def]
    return event, type(session)


def alone(event: Created) -> Any:
    return event


class Service:
    @injecting_by_position
    def by_position(self, event: Created, session: Session) -> Any:
        return event, type(session)

    @passing_on
    def passed_on(self, event: Created) -> Any:
        return event


@pytest.mark.parametrize(
    ("callback", "result"),
    [
        (injecting(with_session), (CREATED, Session)),
        (injecting_first(session_first), (CREATED, Session)),
        (injecting_by_position(with_session), (CREATED, Session)),
        (injecting_by_position(with_untyped_second), (json.loads(BODY), Session)),
        (passing_on(injecting(with_session)), (CREATED, Session)),
        (injecting(passing_on(with_session)), (CREATED, Session)),
        (passing_on(with_envelope), (CREATED, Event)),
        (renaming(with_envelope), (CREATED, Event)),
        (renaming(alone), CREATED),
        (passing_on(alone), CREATED),
        (dropping(alone), CREATED),
        (functools.partial(injecting(with_session)), (CREATED, Session)),
        (Service().by_position, (CREATED, Session)),
        (Service().passed_on, CREATED),
    ],
)
def test_a_decorator_decides_how_many_arguments_and_the_function_which(callback: Any, result: Any) -> None:
    assert callback(*called(callback)) == result


def test_a_wrapper_of_messages_gets_the_envelope_that_the_function_asks_for() -> None:
    def reply(message: Message[Created]) -> Any:
        return message.payload

    assert passing_on(reply)(*called(passing_on(reply), "message")) == CREATED


# --- methods decorated in the body of a class ----------------------------------------------------------------


def test_a_method_that_is_decorated_in_its_class_is_refused_with_what_to_do_instead() -> None:
    group = HandlerGroup()
    text = (
        r"takes self: a function that is decorated inside a class .* client\.subscribe\(\[\.\.\.\], service\.handle\)"
    )

    for decorate in (lambda function: function, passing_on, injecting):
        with pytest.raises(MessageValidationError, match=text):

            class Handlers:
                @group.on_event("character.created")
                @decorate
                def handle(self, event: Event) -> None: ...

        with pytest.raises(MessageValidationError, match=text):

            class MoreHandlers:
                @group.on_message
                @decorate
                def handle(self, message: Message) -> None: ...


def test_a_function_of_a_class_that_is_not_bound_is_refused_too() -> None:
    with pytest.raises(MessageValidationError, match="takes self"):
        handler_for(Service.passed_on, "event")


# --- bodies that have not run --------------------------------------------------------------------------------


def generator(event: Any) -> Iterator[int]:
    yield 1


async def coroutine(event: Any) -> None: ...


async def asynchronous_generator(event: Any) -> AsyncIterator[int]:
    yield 1


class Awaited:
    def __await__(self) -> Iterator[None]:
        yield


def needs_parentheses(**options: Any) -> Callable[[Any], Any]:
    def decorate(handler: Any) -> Any:
        return handler

    return decorate


@pytest.mark.parametrize(
    "callback",
    [
        passing_on(generator),
        passing_on(coroutine),
        passing_on(asynchronous_generator),
        functools.partial(passing_on(generator)),
        lambda event: generator(event),
        lambda event: Awaited(),
        lambda event: functools.partial(print, event),
        lambda event: alone,
        lambda event: Service().passed_on,
        contextlib.contextmanager(generator),
        contextlib.asynccontextmanager(asynchronous_generator),
    ],
)
def test_a_result_that_has_not_run_fails_the_delivery(callback: Any) -> None:
    handler = handler_for(callback, "event")

    with pytest.raises(MessageValidationError, match=r"returned a \w+, whose body has not run"):
        handler(({},))


@pytest.mark.parametrize("callback", [generator, coroutine, asynchronous_generator])
@pytest.mark.parametrize("way", [lambda it: it, functools.partial, lambda it: functools.partial(functools.partial(it))])
def test_what_can_be_seen_is_refused_when_it_subscribes(callback: Any, way: Any) -> None:
    with pytest.raises(MessageValidationError, match=r"coroutine function|generator function"):
        handler_for(way(callback), "event")


@pytest.mark.parametrize("result", [None, 0, {"a": 1}, [1], "text", iter([1]), CREATED, Session, object()])
def test_any_other_result_is_a_success(result: Any) -> None:
    assert handler_for(lambda event: result, "event")(({},)) is result
