"""The session of a client: created on first use, created anew in a forked child, closed at interpreter exit."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from types import FrameType
from weakref import WeakSet

from message_hub_sync.client.session import Session, prepare
from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.envelope import ids
from message_hub_sync.middleware import Middleware
from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import script_ended, under_forking_server
from message_hub_sync.runtime.real_time import time

__all__ = ["Lifecycle"]

logger = SafeLogger("message_hub_sync.client")

#: The order of the lock of a lifecycle. The locks of what a new session creates are taken inside it.
_ORDER = -1


class Lifecycle:
    """Creates and returns the session of the current process. Any thread may use it.

    Subscriptions refer to this object, so they keep it alive. They do not refer to the client, which may be
    garbage-collected.
    """

    def __init__(self, config: ClientConfig, retry: RetryPolicy, middleware: tuple[Middleware, ...] = ()) -> None:
        self._config = config
        self._retry = retry
        self._middleware = middleware
        self._lock = Lock(_ORDER)  # replaced in a forked child: a thread that does not exist there may hold it
        self._made_at = _first_caller_outside()
        self._process = os.getpid()  # set in a forked child only
        self._session: Session | None = None  # set under _lock; after_fork_in_child() resets it
        self._inherited: list[Subscription] = []  # set in a forked child only
        self._told = False  # that those are inactive; reset in a forked child
        prepare(config)
        _all.add(self)

    def session(self) -> Session:
        """The session of this process, created at the first call."""
        # The fork hook does not run in every kind of fork, so compare the process id, too.
        if self._process != os.getpid():
            self.after_fork_in_child()
        return self._session or self._created()

    def _created(self) -> Session:
        session, inactive = self._find_or_create()
        if inactive:
            self._warn_of_inherited()  # after releasing _lock: a logging handler may publish through this client
        return session

    def _warn_of_inherited(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "%d subscriptions of %s consume in the process that made them, and are inactive in this forked process "
                "until their start(): to consume in a process of its own, run `message-hub consume`",
                len(self._inherited),
                self._config.service_name,
            )

    @locked
    def _find_or_create(self) -> tuple[Session, int]:
        """The session, and the number of inherited subscriptions if it is new."""
        if self._session is not None:
            return self._session, 0
        self._session = Session(self._config, self._retry, self._middleware, self._inherited)
        return self._session, len(self._inherited)

    def subscriptions(self) -> SubscriptionRegistry:
        """The subscriptions of this process."""
        return self.session().subscriptions

    @property
    def closed(self) -> bool:
        """Whether the client is closed in this process. It creates no session."""
        session = self._session
        return session is not None and session.closed.is_set() and self._process == os.getpid()

    def after_fork_in_child(self) -> None:
        """Forget the parent's session in a forked child, without using its sockets and locks.

        The next use creates a new session.
        """
        session, self._session = self._session, None
        self._lock = Lock(_ORDER)
        self._process = os.getpid()
        ids.after_fork_in_child()
        if session is not None:
            self._inherited = session.subscriptions.known_unlocked()
            session.transport.after_fork_in_child()
        self._told = False
        # A worker of a web server may never use the client, and wait for messages. Others are told at the first use.
        if self._inherited and under_forking_server():
            self._warn_of_inherited()

    def exiting(self, deadline: float) -> None:
        """Close the session at interpreter exit.

        :param deadline: monotonic seconds.
        """
        session = self._session
        if session is None or session.closed.is_set() or self._process != os.getpid():
            return
        running = len(session.subscriptions.running())
        if running:
            # A warning if a script reached its end: its author probably expects it to serve. A server that is stopped
            # also ends with active subscriptions, which is usual.
            forgotten = script_ended()
            logger.log(
                logging.WARNING if forgotten else logging.INFO,
                "%s: the interpreter exits with %d active subscriptions, which end now%s",
                self._config.service_name,
                running,
                ": call run_forever() to keep a script serving" if forgotten else "",
            )
        session.close(deadline)

    def dropped(self) -> None:
        """Warn if the client was garbage-collected and its connections stay open.

        A garbage collection may run in any thread, which may hold any lock of this library. So this takes no lock.
        """
        session = self._session
        if session is not None and self._process == os.getpid() and session.left_open:
            # source: with tracemalloc the warning shows where the client was created.
            warnings.warn(
                f"the client of {self._config.service_name}, created at {self._made_at}, was dropped without close(): "
                "its connections and their threads stay until the process ends",
                ResourceWarning,
                stacklevel=3,  # past weakref, to the line that dropped the last reference
                source=self,
            )

    @property
    def close_timeout(self) -> float:
        """Seconds that closing may take at most."""
        return self._config.close_timeout


def _first_caller_outside() -> str:
    """File and line of the innermost caller that is not in this library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "message_hub_sync":
        frame = frame.f_back
    return "an unknown place" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


# No lock: only single operations, and a copy before iterating. A forked child inherits it.
_all: WeakSet[Lifecycle] = WeakSet()


def _after_fork_in_child() -> None:
    for lifecycle in list(_all):
        lifecycle.after_fork_in_child()


def _at_exit() -> None:
    every = list(_all)
    # One deadline for all clients: a script with twenty clients must not wait for twenty timeouts.
    deadline = time.monotonic() + max((lifecycle.close_timeout for lifecycle in every), default=0.0)
    for lifecycle in every:
        try:
            lifecycle.exiting(deadline)
        except Exception:
            logger.exception("closing a client at interpreter exit failed")


call_after_fork_in_child(_after_fork_in_child)
# Once per process, not per client.
atexit.register(_at_exit)
