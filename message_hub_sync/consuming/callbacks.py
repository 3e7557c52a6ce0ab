"""Callbacks of several subscriptions side by side: how many threads run one, and whether two are the same function."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from queue import SimpleQueue
from typing import Any

from message_hub_sync.consuming.handlers import Handler

__all__ = ["limited", "same_function"]


def limited(handler: Handler, most: int) -> Handler:
    """The same handler, whose callback runs in at most ``most`` threads at once; the others wait for one of them."""
    permits: SimpleQueue[None] = SimpleQueue()
    for _ in range(most):
        permits.put(None)
    callback = handler.callback

    @functools.wraps(callback)
    def call(*arguments: Any) -> Any:
        permits.get()
        try:
            return callback(*arguments)
        finally:
            permits.put(None)

    return dataclasses.replace(handler, callback=call)


def same_function(one: Any, other: Any) -> bool:
    """Whether two callbacks are one function, or two versions of it: of the same name in the same module.

    Methods of two objects of one class are two callbacks. All lambdas have one name, so their code is compared.
    """
    one, other = inspect.unwrap(one), inspect.unwrap(other)
    owners = getattr(one, "__self__", None), getattr(other, "__self__", None)
    if owners[0] is not owners[1] and type(owners[0]) is type(owners[1]):
        return False
    names = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (one, other)]
    if names[0] != names[1] or names[0][1] is None:
        return one is other
    return not names[0][1].endswith("<lambda>") or one.__code__ == other.__code__
