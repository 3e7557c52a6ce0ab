"""The middleware of a client: is it a list of middleware that can be called, and which methods does it override?"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.middleware.middleware import Middleware
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import shown

__all__ = ["checked_middleware", "overriding"]

logger = SafeLogger("message_hub_sync.client")

#: The methods of a middleware, and what each is called with.
_METHODS = {"send": ("batch", "call_next"), "arrived": ("received",), "handle": ("received", "call_next")}
_NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def checked_middleware(given: Any) -> tuple[Middleware, ...]:
    """The middleware of a client, each one checked.

    :raises MessageHubConfigurationError: it is no list of :class:`Middleware` objects, or a method cannot be called as
        it will be.
    """
    if isinstance(given, (str, bytes, Mapping, Middleware, type)) or not isinstance(given, Iterable):
        is_one = isinstance(given, Middleware) or (isinstance(given, type) and issubclass(given, Middleware))
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        hint = f": write [{name}()]" if is_one else ""
        raise MessageHubConfigurationError(f"middleware must be a list of Middleware objects, not {shown(given)}{hint}")
    found = tuple(given)
    for each in found:
        if not isinstance(each, Middleware):
            hint = f": write {each.__name__}()" if isinstance(each, type) else ""
            raise MessageHubConfigurationError(f"middleware must hold Middleware objects, not {shown(each)}{hint}")
        for name, arguments in _METHODS.items():
            _check_method(each, name, arguments)
        if not any(overriding([each], name) for name in _METHODS):
            logger.warning("the middleware %s does nothing: override %s", type(each).__name__, ", ".join(_METHODS))
    return found


def _check_method(middleware: Middleware, name: str, arguments: tuple[str, ...]) -> None:
    method = getattr(middleware, name)
    owner = f"{type(middleware).__name__}.{name}"
    if not callable(method):
        raise MessageHubConfigurationError(f"{owner} must be a method, not {shown(method)}")
    if any(is_not_plain(method) for is_not_plain in _NOT_PLAIN):
        raise MessageHubConfigurationError(
            f"{owner} must be a plain function, not one with 'async' or 'yield': calling it would run nothing of it"
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # some callables written in C have no signature: the first call will show
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise MessageHubConfigurationError(
            f"{owner} must take ({', '.join(('self', *arguments))}), not ({', '.join(('self', *signature.parameters))})"
        ) from None


def overriding(middleware: Sequence[Middleware], method: str) -> tuple[Any, ...]:
    """The bound methods named ``method`` of each middleware that overrides it, in the order of the list."""
    own = getattr(Middleware, method)
    found = (getattr(each, method) for each in middleware)
    return tuple(each for each in found if getattr(each, "__func__", None) is not own)
