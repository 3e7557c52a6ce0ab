"""Locks that no signal handler, garbage collection or nested call can leave held or wait on for ever.

User code may run inside a critical section of this library: a signal handler, or ``__del__`` in a garbage collection.
If it calls the client there, it may need a lock that its own thread holds, or one whose owner waits for this thread.
Such a call is refused at once with :class:`MessageHubReentryError`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from message_hub_sync.errors import MessageHubConnectionError, MessageHubReentryError

__all__ = [
    "Lock",
    "locked",
    "refuse_on_serving_thread",
    "refuse_to_wait_for",
    "refuse_where_it_cannot_wait",
    "serve_on_this_thread",
]

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

#: Seconds to wait for a lock. All critical sections are short, so only one that user code interrupted takes longer.
_PATIENCE = 30.0

_NESTED = (
    "this call interrupted another call of the client on the same thread, for example in a signal handler or in "
    "__del__; it would wait for the call that it interrupted, so it was refused and nothing was sent: let the handler "
    "put its work into a queue.SimpleQueue, and make the call in another thread"
)
_SERVING = (
    "this call was made on an I/O thread of the client, for example by a logging handler or in __del__; it would wait "
    "for itself, so it was refused and nothing was sent: make the call in another thread (for logging: use "
    "logging.handlers.QueueHandler)"
)
_HELD = (
    f"another thread has held a lock of the client for {_PATIENCE:g} s, so the call was ended: probably a signal "
    "handler or __del__ blocks inside a call of the client; let it return at once"
)


class _ThisThread(threading.local):
    #: The locks that this thread takes or holds, the innermost first: a lock, and the pair of the next one. An entry
    #: counts only if the thread owns its lock: an interrupted call may leave one behind.
    entered: tuple[Lock, Any] | None = None
    #: This thread serves a connection: whoever waits for the broker waits for this thread.
    serving = False


_this_thread = _ThisThread()


class Lock:
    """A lock that is held while one function runs. See :meth:`run`.

    :param order: a thread that holds one lock may take only those of a higher order, so no two threads wait for each
        other. By default it may take none.
    """

    __slots__ = ("_acquire", "_is_owned", "_release", "order")

    def __init__(self, order: int = 0) -> None:
        self.order = order
        # An RLock, though it is never taken twice: only its owner can release it, and it knows its owner.
        lock: Any = threading.RLock()
        self._acquire, self._release, self._is_owned = lock.acquire, lock.release, lock._is_owned

    def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``work`` with the lock held.

        :returns: what ``work`` returns.
        :raises MessageHubReentryError: this thread holds the lock already, or one that is not of a lower order.
        :raises MessageHubConnectionError: another thread holds the lock for 30 s.
        """
        outer = _this_thread.entered
        if outer is not None:
            outer = _owned(outer, self.order)
        _this_thread.entered = (self, outer)  # before the lock is taken, so that no interruption finds it missing
        # Not `with`: on Python 3.14 a signal handler that raises may leave the lock held. The interpreter runs signal
        # handlers after calls, so none runs between the last call of `work` and the call of _release. For this,
        # _release must be the lock's own method, called directly.
        try:
            if not self._acquire(True, _PATIENCE):
                raise MessageHubConnectionError(_HELD)
            return work(*args, **kwargs)
        finally:
            try:  # noqa: SIM105  # contextlib.suppress would make calls before the release
                self._release()
            except RuntimeError:  # interrupted before the lock was taken: that exception goes on
                pass
            _this_thread.entered = outer


def locked(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run the method with ``self._lock`` held, which is a :class:`Lock`. Errors: see :meth:`Lock.run`."""

    @wraps(method)
    def run_locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        lock: Lock = self._lock  # type: ignore[attr-defined]
        return lock.run(method, self, *args, **kwargs)

    return run_locked


def serve_on_this_thread() -> None:
    """The calling thread serves a connection from now on, so it must not wait for a broker."""
    _this_thread.serving = True


def refuse_where_it_cannot_wait() -> None:
    """Call this before a wait for a connection, a broker or another thread.

    :raises MessageHubReentryError: the calling thread holds a lock of this library, or serves a connection.
    """
    this_thread = _this_thread
    if this_thread.serving:
        raise MessageHubReentryError(_SERVING)
    if this_thread.entered is not None and _owned(this_thread.entered, None) is not None:
        raise MessageHubReentryError(_NESTED)


def refuse_on_serving_thread() -> None:
    """Like :func:`refuse_where_it_cannot_wait`, where the caller itself holds the lock of what it waits for.

    :raises MessageHubReentryError: the calling thread serves a connection.
    """
    if _this_thread.serving:
        raise MessageHubReentryError(_SERVING)


def refuse_to_wait_for(thread: int) -> None:
    """Call this before a wait for something that another thread does. It may be this thread that was interrupted.

    :param thread: the identifier of the thread that does it.
    :raises MessageHubReentryError: it is the calling thread.
    """
    if thread == threading.get_ident():
        raise MessageHubReentryError(_NESTED)


def _owned(entry: tuple[Lock, Any] | None, order: int | None) -> tuple[Lock, Any] | None:
    """The innermost of these locks that this thread really holds, with the outer ones.

    :param order: refuse if it is not higher than the order of that lock; ``None``: refuse nothing.
    """
    while entry is not None:
        lock, outer = entry
        if lock._is_owned():
            if order is not None and order <= lock.order:
                raise MessageHubReentryError(_NESTED)
            return entry
        entry = outer
    return None
