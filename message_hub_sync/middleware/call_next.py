"""``call_next``, and what a method of a middleware may return. Used by both ways of a message."""

from __future__ import annotations

from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError

__all__ = ["CallNext", "method_name", "refuse_not_run"]


class CallNext:
    """The ``call_next`` that one middleware gets for one call. It works once, and only until that middleware returns.

    If two threads call it, also at the same time, the second call raises.
    """

    __slots__ = ("_error", "_method", "_once", "active", "index", "returned")

    def __init__(self, method: Callable[..., Any], index: int, rest: Callable[[], Any]) -> None:
        self._method = method
        #: The position of the middleware in the list.
        self.index = index
        self.active = True  # false once the middleware has returned
        self.returned = False  # true once call_next has ended, in whatever thread it ran
        self._error: BaseException | None = None  # what call_next raised; written by its thread
        # pop() is atomic: exactly one caller gets it.
        self._once = [rest]

    def __call__(self) -> Any:
        try:
            rest = self._once.pop()
        except IndexError:
            what = "twice" if self.active else "after it"
            raise MessageHubConfigurationError(
                f"call_next must be called once, before {method_name(self._method)} returns, not {what}: "
                "nothing was done this time"
            ) from None
        try:
            return rest()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.returned = True

    def end(self) -> bool:
        """The middleware has returned or raised: from now on a call raises. Returns whether there was a call."""
        self.active = False
        try:
            self._once.pop()
        except IndexError:
            return True
        return False

    def take_error(self) -> BaseException | None:
        """Return what the call raised, and forget it:

        an exception that is kept keeps its traceback and the message in memory.
        """
        error, self._error = self._error, None
        return error


def refuse_not_run(result: Any, method: Callable[..., Any]) -> None:
    """Raise if ``result`` is a coroutine or a generator: the body of ``method`` has not run.

    :raises MessageHubConfigurationError: the result is a coroutine or a generator.
    """
    if isinstance(result, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        if isinstance(result, (CoroutineType, GeneratorType)):
            result.close()
        raise MessageHubConfigurationError(
            f"{method_name(method)} must do its work before it returns, not return a {type(result).__name__}: "
            "its code has not run"
        )


def method_name(method: Callable[..., Any]) -> str:
    """``Class.method`` of a middleware, for an error text."""
    owner = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "method")
    return name if owner is None else f"{type(owner).__name__}.{name}"
