"""A client over the life of its process: its session made on first use, made anew after a fork, closed at exit."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import warnings
from weakref import WeakSet

from message_hub_sync.client.session import Session, prepare
from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.consuming.subscription import Subscription, SubscriptionRegistry
from message_hub_sync.envelope import ids
from message_hub_sync.middleware import Middleware
from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import script_ended

__all__ = ["Lifecycle"]

logger = SafeLogger("message_hub_sync.client")


class Lifecycle:
    """Gives the session of the process that asks.

    Mutable, guarded by ``_lock``: the session. A forked child replaces both, as a thread that does not exist
    there may hold the lock. SubscriptionRegistry keep this alive; a client without any may be collected.
    """

    def __init__(self, config: ClientConfig, retry: RetryPolicy, middleware: tuple[Middleware, ...] = ()) -> None:
        self._config = config
        self._retry = retry
        self._middleware = middleware
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._session: Session | None = None
        self._inherited: list[Subscription] = []
        prepare(config)
        _all.add(self)

    def session(self) -> Session:
        """The session of this process; a fork that no hook announced is noticed by the process id."""
        if self._process != os.getpid():
            self.after_fork_in_child()
        session = self._session
        if session is None:
            inactive = 0
            with self._lock:
                if self._session is None:
                    inactive = len(self._inherited)
                    self._session = Session(self._config, self._retry, self._middleware, self._inherited)
                session = self._session
            if inactive:
                # Without the lock: a logging handler may publish through this client.
                logger.info(
                    "%d subscriptions of %s are inactive in this forked process until their start()",
                    inactive,
                    self._config.service_name,
                )
        return session

    def subscriptions(self) -> SubscriptionRegistry:
        """Those of this process."""
        return self.session().subscriptions

    @property
    def closed(self) -> bool:
        """Whether it was closed; makes no session."""
        session = self._session
        return session is not None and session.closed.is_set() and self._process == os.getpid()

    def after_fork_in_child(self) -> None:
        """In a forked child: leave the parent's sockets and locks alone, and begin anew on first use."""
        session, self._session = self._session, None
        self._lock = threading.Lock()
        self._process = os.getpid()
        ids.after_fork_in_child()
        if session is not None:
            self._inherited = session.subscriptions.known_unlocked()
            session.transport.after_fork_in_child()

    def exiting(self, deadline: float) -> None:
        """At the interpreter's end: close."""
        session = self._session
        if session is None or session.closed.is_set() or self._process != os.getpid():
            return
        running = len(session.subscriptions.running())
        if running:
            # News to whoever wrote a script that was to serve; of a server that was told to end it is the usual end.
            forgotten = script_ended()
            logger.log(
                logging.WARNING if forgotten else logging.INFO,
                "%s ends with live subscriptions (%d), and they with it%s",
                self._config.service_name,
                running,
                ": a script goes on serving with run_forever()" if forgotten else "",
            )
        session.close(deadline)

    def dropped(self) -> None:
        """The client is gone, so that nobody can close it any more: warn where it leaves connections behind.

        Runs wherever it is collected, in a thread that may hold any lock of ours: none is taken here.
        """
        session = self._session
        if session is not None and self._process == os.getpid() and session.left_open:
            # The source: with tracemalloc the warning shows where the client was made.
            warnings.warn(
                f"the client of {self._config.service_name} was dropped without close(): its connections and their "
                "threads stay until the process ends",
                ResourceWarning,
                stacklevel=3,  # past weakref, to the line that let go of it
                source=self,
            )

    @property
    def close_timeout(self) -> float:
        """Seconds that closing may take."""
        return self._config.close_timeout


# Mutable, without a lock: single operations, and a copy before iterating. A child inherits it as it was.
_all: WeakSet[Lifecycle] = WeakSet()


def _after_fork_in_child() -> None:
    for lifecycle in list(_all):
        lifecycle.after_fork_in_child()


def _at_exit() -> None:
    every = list(_all)
    # One deadline for all of them: a script with twenty clients must not take twenty timeouts to end.
    deadline = time.monotonic() + max((lifecycle.close_timeout for lifecycle in every), default=0.0)
    for lifecycle in every:
        try:
            lifecycle.exiting(deadline)
        except Exception:
            logger.exception("a client was not closed in order")


call_after_fork_in_child(_after_fork_in_child)
# Once per process: it cannot be taken back.
atexit.register(_at_exit)
