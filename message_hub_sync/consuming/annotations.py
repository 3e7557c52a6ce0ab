"""Reading a callback's signature: can it be a handler, what are its first two parameters, how annotated."""

from __future__ import annotations

import functools
import inspect
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
    "parameters_of",
    "refuse_what_would_not_run",
    "shown_parameter",
]

SYNCHRONOUS = "this is the synchronous client, write the handler with 'def' (asyncio.run() runs what must be awaited)"


def parameters_of(callback: Any, name: str, what: str) -> tuple[inspect.Parameter, inspect.Parameter | None]:
    """The parameter that gets what was received, and the second one where there is one."""
    try:
        parameters = list(inspect.signature(callback).parameters.values())
    except (TypeError, ValueError):  # some callables written in C tell nothing
        return inspect.Parameter(what, inspect.Parameter.POSITIONAL_ONLY), None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    demanded = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if demanded:
        raise MessageValidationError(
            f"handler {name} needs the keyword {', '.join(demanded)}, which nobody passes: "
            f"a handler is called as handler({what}) or handler({what}, envelope)"
        )
    if len(required) > 2:
        raise MessageValidationError(
            f"handler {name} needs {len(required)} arguments ({', '.join(p.name for p in required)}): "
            f"a handler is called as handler({what}) or handler({what}, envelope)"
        )
    if positional:
        return positional[0], positional[1] if len(positional) > 1 else None
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return parameter, None
    raise MessageValidationError(f"handler {name} takes no parameter: it needs one, def handler({what}): ...")


def refuse_what_would_not_run(callback: Any, name: str) -> None:
    # Not what it wraps: a synchronous wrapper around a coroutine function is a fine handler.
    target = callback
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = type(target).__call__ if not inspect.iscoroutinefunction(target) else target
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise MessageValidationError(f"handler {name} is a coroutine function: {SYNCHRONOUS}")
    if inspect.isgeneratorfunction(target):
        raise MessageValidationError(
            f"handler {name} is a generator function: calling it runs nothing of it, write it without 'yield'"
        )


def annotation_of(parameter: inspect.Parameter, callback: Any, name: str) -> Any:
    """The parameter's annotation as an object, ``X | None`` as ``X``."""
    if parameter.annotation is parameter.empty:
        return parameter.empty
    try:
        found = _evaluated(parameter.annotation, _function_of(callback))
    except Exception as error:
        _refuse_unresolved(name, parameter, error)
    while isinstance(found, TypeAliasType):
        found = found.__value__
    if typing.get_origin(found) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(found) if member is not type(None)]
        if len(members) == 1:
            return members[0]
    return found


def _evaluated(annotation: Any, function: Any) -> Any:
    # One at a time: get_type_hints(callback) fails as a whole when, say, a return type cannot be resolved.
    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    # Ours are known even where they are imported under TYPE_CHECKING only.
    known = {"Event": Event, "Message": Message, "Any": Any, "Mapping": Mapping}
    names = {**known, **getattr(function, "__globals__", {})}
    return typing.get_type_hints(holder, names, _names_where_defined(function))["it"]


def _function_of(callback: Any) -> Any:
    """The function whose signature ``inspect`` reads: its globals are where annotations are looked up."""
    while not inspect.isfunction(callback) or hasattr(callback, "__wrapped__"):
        if isinstance(callback, functools.partial):
            callback = callback.func
        elif inspect.ismethod(callback):
            callback = callback.__func__
        elif hasattr(callback, "__wrapped__"):
            callback = callback.__wrapped__
        elif inspect.isclass(callback):
            return callback.__init__
        elif inspect.isfunction(getattr(type(callback), "__call__", None)):  # noqa: B004  # the function is wanted
            callback = type(callback).__call__
        else:
            return None
    return callback


def _names_where_defined(function: Any) -> dict[str, Any]:
    """The local names around a nested function: those it closes over, and those of the calls that still run.

    With postponed annotations nothing else leads from a handler to a model defined beside it in a function.
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
    codes = [constant for constant in outer.co_consts if isinstance(constant, types.CodeType)]
    return any(code is inner or _defines(code, inner) for code in codes)


def _refuse_unresolved(name: str, parameter: inspect.Parameter, error: Exception) -> NoReturn:
    raise MessageValidationError(
        f"handler {name}: {shown_parameter(parameter)} cannot be resolved ({printable(str(error))}): "
        "define or import what it names at module level"
    ) from None


def shown_parameter(parameter: inspect.Parameter) -> str:
    return printable(str(parameter.replace(default=inspect.Parameter.empty)))


def callback_name(callback: Any) -> str:
    while isinstance(callback, functools.partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", None)
    return printable(name if isinstance(name, str) else type(callback).__qualname__)
