"""What a handler gets, read from its signature. Pure: no threads, no waiting.

The annotation of the first parameter decides:

====================================== ===============================================
annotation                             it gets
====================================== ===============================================
none, ``Any``, ``object``, on an event the payload as JSON text, as with ``str``
none, ``Any``, ``object``, on a message the envelope, as with ``Message``
``str``                                the payload as JSON text
``Event``, ``Event[Model]``, …         the envelope, its payload validated into the model
``dict``, ``Mapping``, a TypedDict     the payload decoded; the handler may change it
``bytes``                              the raw body
a pydantic model                       the payload validated into it
====================================== ===============================================

``X | None`` counts as ``X``. A second parameter gets the envelope if it has no default or is annotated as the
envelope. Every other parameter with a default keeps its default.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from message_hub_sync.consuming.annotations import (
    SYNCHRONOUS,
    annotation_of,
    callback_name,
    check_synchronous,
    parameters_of,
    shown_parameter,
)
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.envelope.decode import validated_json, validation_reason
from message_hub_sync.envelope.values import Event, InvalidMessage, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown

__all__ = ["Handler", "handler_for"]

Reply = Callable[[Message[Any], Any], UUID]
Getter = Callable[["DecodedDelivery"], Any]


@dataclass(frozen=True)
class Handler:
    """A callback with the getters of its arguments, read once from its signature by :func:`handler_for`.

    ``first``, ``second``: fetch an argument from a delivery.
    """

    name: str
    callback: Callable[..., Any]
    first: Getter
    second: Getter | None = None
    #: It has no annotation, so it gets an event's payload as JSON text.
    text_by_default: bool = False

    def arguments(self, received: DecodedDelivery) -> tuple[Any, ...]:
        """The arguments of the callback for one delivery.

        :raises InvalidMessage: the delivery does not decode, or its payload does not fit the handler's model.
        """
        if self.second is None:
            return (self.first(received),)
        return self.first(received), self.second(received)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """Run the callback and return its result.

        :raises MessageValidationError: it returned a body that has not run. Else this raises what the callback raises.
        """
        result = self.callback(*arguments)
        if result is not None and isinstance(result, _NOT_RUN):
            # Acknowledging the message now would lose it silently.
            close = getattr(result, "close", None)
            if callable(close):
                close()
            raise MessageValidationError(self._why_not_run(result))
        return result

    def _why_not_run(self, result: Any) -> str:
        text = f"handler {self.name} returned a {type(result).__name__}, whose body has not run"
        if isinstance(result, Awaitable):
            return f"{text}: {SYNCHRONOUS}"
        if isinstance(result, (Generator, AsyncGenerator)):
            return f"{text}: write it without 'yield'"
        return f"{text}: look at its decorators; one may need parentheses"

    def hint(self, error: BaseException) -> str | None:
        """Advice if a handler without annotation raised what suggests that it expects no text; else ``None``."""
        if not self.text_by_default:
            return None
        try:
            text = str(error)
        except Exception:
            return None
        if (isinstance(error, (TypeError, AttributeError)) and "str" in text) or (
            isinstance(error, ValueError) and text.startswith("dictionary update sequence")
        ):
            return (
                f"handler {self.name} has no annotation, so it gets the event's payload as JSON text: "
                "annotate event: dict or event: Event"
            )
        return None


#: What a call returns that has not run the handler: the object of a coroutine or generator function; a function, if a
#: decorator's parentheses are missing; a context manager made of a generator function.
_NOT_RUN = (
    *(Awaitable, Generator, AsyncGenerator),
    *(types.FunctionType, types.MethodType, functools.partial),
    *(contextlib.ContextDecorator, contextlib.AsyncContextDecorator),
)

_ALLOWED: dict[Kind, str] = {
    "event": (
        "allowed are no annotation or str (the payload as JSON text), dict (the payload), bytes (the body), "
        "a pydantic model (the payload validated), Event and Event[Model] (the envelope)"
    ),
    "message": (
        "allowed are no annotation, Message and Message[Model] (the envelope), dict (the payload), "
        "a pydantic model (the payload validated), str (the payload as JSON text), bytes (the body)"
    ),
}


def handler_for(callback: Any, kind: Kind, reply: Reply | None = None) -> Handler:
    """Read the signature of a callback.

    :param callback: anything that can be called with one or two positional arguments and is not asynchronous.
    :param kind: what it will receive, ``"event"`` or ``"message"``.
    :param reply: sends a payload as the reply to a message; ``Message.reply`` of received messages calls it.
    :raises MessageValidationError: the callback cannot be called so, or no handler can get what an annotation
        names; the text lists what is allowed.
    """
    name = callback_name(callback)
    if not callable(callback):
        raise MessageValidationError(
            f"callback must be a function of one parameter (def handler({kind}): ...), not {shown(callback)}"
        )
    check_synchronous(callback, name)
    first, second = parameters_of(callback, name, kind)
    wanted = annotation_of(first, callback, name)
    getter = _getter(wanted, kind, reply)
    if getter is None:
        _raise_not_available(name, first, kind)
    return Handler(
        name,
        callback,
        getter,
        _second_getter(second, callback, name, kind, reply),
        text_by_default=kind == "event" and wanted in _ANYTHING,
    )


# --- what the annotation means -------------------------------------------------------------------

_ANYTHING = (inspect.Parameter.empty, Any, object)
_ENVELOPES: dict[Kind, type[BaseModel]] = {"event": Event, "message": Message}


def _getter(wanted: Any, kind: Kind, reply: Reply | None) -> Getter | None:
    """The function that fetches such an argument from a delivery; ``None``: no handler can get it."""
    if wanted in _ANYTHING:
        return _text if kind == "event" else _envelope(Message, kind, reply)
    if wanted is str:
        return _text
    if wanted is bytes:
        return _body
    if (typing.get_origin(wanted) or wanted) in (dict, Mapping, MutableMapping) or is_typeddict(wanted):
        return DecodedDelivery.own_payload
    if _is_model(wanted, (Event, Message)):
        return _envelope(wanted, kind, reply) if issubclass(wanted, _ENVELOPES[kind]) else None
    return functools.partial(_validated, wanted) if _is_model(wanted, BaseModel) else None


def _is_model(wanted: Any, base: type[BaseModel] | tuple[type[BaseModel], ...]) -> bool:
    # get_origin first: on Python 3.10 isinstance(list[int], type) is true, and issubclass() raises for it.
    return typing.get_origin(wanted) is None and isinstance(wanted, type) and issubclass(wanted, base)


def _second_getter(
    second: inspect.Parameter | None, callback: Any, name: str, kind: Kind, reply: Reply | None
) -> Getter | None:
    # 1: annotated as the envelope of this kind: the envelope. 2: as the other kind's envelope: an error. 3: no
    # annotation and no default: the envelope. 4: anything else: an error if it has no default, else left alone.
    if second is None:
        return None
    required = second.default is inspect.Parameter.empty
    if not required and second.annotation is inspect.Parameter.empty:
        return None
    try:
        wanted = annotation_of(second, callback, name)
    except MessageValidationError:
        if required:
            raise
        return None
    if wanted in _ANYTHING:
        return _envelope(_ENVELOPES[kind], kind, reply) if required else None
    if _is_model(wanted, (Event, Message)):
        if issubclass(wanted, _ENVELOPES[kind]):
            return _envelope(wanted, kind, reply)
    elif not required:
        return None
    envelope = _ENVELOPES[kind].__name__
    raise MessageValidationError(
        f"handler {name}: its second parameter {shown_parameter(second)} gets the envelope, "
        f"so it may be annotated {envelope} or {envelope}[Model], or not at all"
    )


def _text(received: DecodedDelivery) -> str:
    return received.text


def _body(received: DecodedDelivery) -> bytes:
    return received.delivery.body


def _validated(model: type[BaseModel], received: DecodedDelivery) -> BaseModel:
    try:
        return validated_json(model.model_validate_json, model.model_validate, received.delivery.body)
    except ValidationError as error:
        raise InvalidMessage(validation_reason(error, model.__pydantic_core_schema__)) from None


def _envelope(model: Any, kind: Kind, reply: Reply | None) -> Getter:
    if kind == "event":
        return functools.partial(_event, model)
    return functools.partial(_message, model, reply)


def _event(model: Any, received: DecodedDelivery) -> Event[Any]:
    return received.event(model)


def _message(model: Any, reply: Reply | None, received: DecodedDelivery) -> Message[Any]:
    message = received.message(model)
    object.__setattr__(message, "_reply", reply)  # frozen: its fields cannot be set otherwise
    return message


def _raise_not_available(name: str, parameter: inspect.Parameter, kind: Kind) -> NoReturn:
    raise MessageValidationError(
        f"handler {name}: a handler of {kind}s cannot get {shown_parameter(parameter)}; {_ALLOWED[kind]}"
    )
