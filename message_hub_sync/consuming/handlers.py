"""What a handler wants to receive. Pure: no threads, no waiting.

The first parameter's annotation decides what a handler gets:

====================================== ===============================================
annotation                             it gets
====================================== ===============================================
none, ``Any``, ``object``, on an event the payload as JSON text, as with ``str``
none, ``Any``, ``object``, on a message the envelope, as with ``Message``
``str``                                the payload as JSON text
``Event``, ``Event[Model]``, …         the envelope, its payload validated into the model
``dict``, ``Mapping``, a TypedDict     the payload decoded, the handler's own to change
``bytes``                              the raw body
a pydantic model                       the payload validated into it
====================================== ===============================================

``X | None`` counts as ``X``. A second parameter gets the envelope when it has no default or is annotated
as the envelope; every other parameter with a default is left alone.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from message_hub_sync.consuming.annotations import (
    SYNCHRONOUS,
    annotation_of,
    callback_name,
    parameters_of,
    refuse_what_would_not_run,
    shown_parameter,
)
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.envelope.decode import (
    validation_reason,
)
from message_hub_sync.envelope.values import Event, InvalidMessage, Message
from message_hub_sync.errors import MessageValidationError

__all__ = ["Handler", "handler_for"]

Reply = Callable[[Message[Any], Any], UUID]
Getter = Callable[["DecodedDelivery"], Any]


@dataclass(frozen=True)
class Handler:
    """A callback, and what it wants to receive, read once from its signature. Made by :func:`handler_for`."""

    name: str
    callback: Callable[..., Any]
    first: Getter
    second: Getter | None = None
    #: Nothing said what it wants, and it gets an event's JSON text.
    text_by_default: bool = False

    def arguments(self, received: DecodedDelivery) -> tuple[Any, ...]:
        """What to call the callback with.

        :raises InvalidMessage: the delivery does not decode, or its payload does not fit the handler's model.
        """
        if self.second is None:
            return (self.first(received),)
        return self.first(received), self.second(received)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """Run the callback; raises what it raises, and :class:`MessageValidationError` for a coroutine."""
        result = self.callback(*arguments)
        if isinstance(result, types.CoroutineType):
            # Its body has not run: settling the message now would lose it without a word.
            result.close()
            raise MessageValidationError(f"handler {self.name} returned a coroutine: {SYNCHRONOUS}")
        return result

    def hint(self, error: BaseException) -> str | None:
        """What to tell the author of a handler that expected something else than the JSON text it got."""
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
    """Read a callback's signature.

    :param callback: anything that can be called with one or two positional arguments and is not asynchronous.
    :param kind: what it will receive, ``"event"`` or ``"message"``.
    :param reply: sends a payload in answer to a message; ``Message.reply`` of received messages calls it.
    :raises MessageValidationError: the callback cannot be called so, or an annotation fits nothing a handler
        can get; the text says what is allowed.
    """
    name = callback_name(callback)
    if not callable(callback):
        raise MessageValidationError(
            f"callback of type {type(callback).__name__} cannot be called: "
            f"a function of one parameter is needed (def handler({kind}): ...)"
        )
    refuse_what_would_not_run(callback, name)
    first, second = parameters_of(callback, name, kind)
    wanted = annotation_of(first, callback, name)
    getter = _getter(wanted, kind, reply)
    if getter is None:
        _refuse_annotation(name, first, kind)
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
    """What fetches such an argument from a delivery; ``None`` where nothing does."""
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
    # On 3.10 list[int] says that it is a class, and issubclass() raises for it.
    return typing.get_origin(wanted) is None and isinstance(wanted, type) and issubclass(wanted, base)


def _second_getter(
    second: inspect.Parameter | None, callback: Any, name: str, kind: Kind, reply: Reply | None
) -> Getter | None:
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
        return model.model_validate(received.payload)
    except ValidationError as error:
        raise InvalidMessage(validation_reason(error)) from None


def _envelope(model: Any, kind: Kind, reply: Reply | None) -> Getter:
    if kind == "event":
        return functools.partial(_event, model)
    return functools.partial(_message, model, reply)


def _event(model: Any, received: DecodedDelivery) -> Event[Any]:
    return received.event(model)


def _message(model: Any, reply: Reply | None, received: DecodedDelivery) -> Message[Any]:
    message = received.message(model)
    object.__setattr__(message, "_reply", reply)  # frozen for everybody else
    return message


def _refuse_annotation(name: str, parameter: inspect.Parameter, kind: Kind) -> NoReturn:
    raise MessageValidationError(
        f"handler {name}: {shown_parameter(parameter)} is nothing that a handler of {kind}s can get; {_ALLOWED[kind]}"
    )
