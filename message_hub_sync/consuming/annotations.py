"""Reads the signature of a callback: whether it can be a handler, its first two parameters, their annotations."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, NoReturn

from typing_extensions import TypeAliasType

from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import printable

__all__ = [
    "SYNCHRONOUS",
    "annotation_of",
    "callback_name",
    "check_synchronous",
    "parameters_of",
    "shown_parameter",
]

SYNCHRONOUS = "this is the synchronous client, write the handler with 'def' (asyncio.run() runs what must be awaited)"


def parameters_of(callback: Any, name: str, what: str) -> tuple[inspect.Parameter, inspect.Parameter | None]:
    """The first two positional parameters of a callback; the second is ``None`` if there is none.

    A decorator may change how many arguments a function takes. So their number is read from what is called, and their
    annotations from what is wrapped. A second parameter that only the wrapped function shows has a default.

    :param name: the callback's name, for an error text.
    :param what: what the first parameter gets, ``"event"`` or ``"message"``; for an error text.
    :raises MessageValidationError: it cannot be called with one or two positional arguments.
    """
    wrapped = _signature(callback, follow_wrapped=True)
    called = _signature(callback, follow_wrapped=False) or wrapped
    # Some callables written in C have no signature. The first call shows whether they take one argument.
    if wrapped is None or called is None:
        return inspect.Parameter(what, inspect.Parameter.POSITIONAL_ONLY), None
    positional = _positional(called)
    required = [p for p in positional if p.default is p.empty]
    demanded = [p.name for p in called if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if demanded:
        raise MessageValidationError(
            f"handler {name} needs the keyword {', '.join(demanded)}, which is never passed: "
            f"a handler is called as handler({what}) or handler({what}, envelope)"
        )
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in called)
    inside = _positional(wrapped)
    found = [_annotated(parameter, index, inside) for index, parameter in enumerate(positional[:2])]
    if takes_any and not found:
        found = inside[:1] or [next(p for p in called if p.kind is p.VAR_POSITIONAL)]
    if not found:
        raise MessageValidationError(f"handler {name} takes no parameter: it needs one, def handler({what}): ...")
    unbound = {found[0].name, *(p.name for p in inside[:1])} & {"self", "cls"}
    if unbound:
        raise MessageValidationError(
            f"handler {name} takes {unbound.pop()}: a function that is decorated inside a class is not bound to an "
            f"object. Create the object first, and subscribe its method: client.subscribe([...], service.{_last(name)})"
        )
    if len(required) > 2:
        raise MessageValidationError(
            f"handler {name} needs {len(required)} arguments ({', '.join(p.name for p in required)}): "
            f"a handler is called as handler({what}) or handler({what}, envelope)"
        )
    if takes_any and len(found) == 1 and len(inside) > 1:
        found.append(inside[1].replace(default=None))  # the decorator may pass it itself
    return found[0], found[1] if len(found) > 1 else None


#: On Python 3.14 a name that cannot be resolved, anywhere in the annotations, would raise NameError.
_DEFERRED: dict[str, Any] = {"annotation_format": 3} if sys.version_info >= (3, 14) else {}  # Format.FORWARDREF


def _signature(callback: Any, *, follow_wrapped: bool) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(callback, follow_wrapped=follow_wrapped, **_DEFERRED).parameters.values())
    except (TypeError, ValueError):
        return None


def _positional(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _annotated(parameter: inspect.Parameter, index: int, inside: list[inspect.Parameter]) -> inspect.Parameter:
    """A parameter of a wrapper with the annotation of the one that it is for: of the same name, else at its place."""
    same = next((p for p in inside if p.name == parameter.name), None)
    if same is None and index < len(inside):
        same = inside[index]
    if same is None or same.annotation is same.empty:
        return parameter
    return parameter.replace(annotation=same.annotation)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def check_synchronous(callback: Any, name: str) -> None:
    """Check that a call of ``callback`` runs its body.

    :param name: the callback's name, for an error text.
    :raises MessageValidationError: it is a coroutine function, an asynchronous generator or a generator function.
    """
    # Do not follow __wrapped__: a synchronous wrapper around a coroutine function can be a handler.
    target = callback
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__ if not inspect.iscoroutinefunction(target) else target
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise MessageValidationError(f"handler {name} is a coroutine function: {SYNCHRONOUS}")
    if inspect.isgeneratorfunction(target):
        raise MessageValidationError(
            f"handler {name} is a generator function, so a call would not run its body: write it without 'yield'"
        )


def annotation_of(parameter: inspect.Parameter, callback: Any, name: str) -> Any:
    """The annotation of a parameter as an object: a text evaluated, a type alias resolved, ``X | None`` as ``X``.

    :param name: the callback's name, for an error text.
    :returns: ``parameter.empty`` if the parameter has no annotation.
    :raises MessageValidationError: the annotation is a text that cannot be evaluated.
    """
    if parameter.annotation is parameter.empty:
        return parameter.empty
    try:
        found = _evaluated(parameter.annotation, _function_of(callback))
    except Exception as error:
        _raise_unresolved(name, parameter, error)
    while isinstance(found, TypeAliasType):
        found = found.__value__
    if typing.get_origin(found) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(found) if member is not type(None)]
        if len(members) == 1:
            return members[0]
    return found


def _evaluated(annotation: Any, function: Any) -> Any:
    # Evaluate this annotation alone: get_type_hints(callback) fails if any other one, for example the return type,
    # cannot be resolved.
    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    # Names of this library resolve even if the handler's module imports them under TYPE_CHECKING only.
    known = {"Event": Event, "Message": Message, "Any": Any, "Mapping": Mapping}
    names = {**known, **getattr(function, "__globals__", {})}
    return typing.get_type_hints(holder, names, _names_where_defined(function))["it"]


def _function_of(callback: Any) -> Any:
    """The function whose signature ``inspect`` reads, as annotations need its globals; ``None``: none found."""
    while not inspect.isfunction(callback) or hasattr(callback, "__wrapped__"):
        if isinstance(callback, functools.partial):
            callback = callback.func
        elif inspect.ismethod(callback):
            callback = callback.__func__
        elif hasattr(callback, "__wrapped__"):
            callback = callback.__wrapped__
        elif inspect.isclass(callback):
            return callback.__init__
        elif inspect.isfunction(getattr(type(callback), "__call__", None)):  # noqa: B004  # the function itself is needed
            callback = type(callback).__call__
        else:
            return None
    return callback


def _names_where_defined(function: Any) -> dict[str, Any]:
    """The local names around a nested function: those it closes over, and those of enclosing calls that still run.

    A handler may be defined in a function beside the model that it is annotated with. With postponed annotations the
    model is then in no globals.
    """
    found: dict[str, Any] = {}
    if not inspect.isfunction(function) or "<locals>" not in function.__qualname__:
        return found
    frame = inspect.currentframe()
    while frame is not None:
        if _defines(frame.f_code, function.__code__):
            found = {**frame.f_locals, **found}
        frame = frame.f_back
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _defines(outer: types.CodeType, inner: types.CodeType) -> bool:
    """Whether ``inner`` is the code of a function that is defined inside ``outer``, at any depth."""
    codes = [constant for constant in outer.co_consts if isinstance(constant, types.CodeType)]
    return any(code is inner or _defines(code, inner) for code in codes)


def _raise_unresolved(name: str, parameter: inspect.Parameter, error: Exception) -> NoReturn:
    raise MessageValidationError(
        f"handler {name}: {shown_parameter(parameter)} cannot be resolved ({printable(str(error))}): "
        "define or import that name at module level"
    ) from None


def shown_parameter(parameter: inspect.Parameter) -> str:
    """A parameter with its annotation, without its default: a default may be a secret."""
    return printable(str(parameter.replace(default=inspect.Parameter.empty)))


def callback_name(callback: Any) -> str:
    """The qualified name of a callback, or that of its type; of what a ``functools.partial`` wraps."""
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", None)
    return printable(name if isinstance(name, str) else type(callback).__qualname__)
