"""The common start of every call of the client: the session of this process, and warnings that are logged once."""

from __future__ import annotations

from message_hub_sync.client.lifecycle import Lifecycle
from message_hub_sync.client.session import Session
from message_hub_sync.config import ClientConfig
from message_hub_sync.consuming.handler_group import HandlerGroup
from message_hub_sync.errors import MessageHubConnectionError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.process_kind import has_running_loop, refuse_late_patch, reloader_parent

__all__ = ["ClientCalls"]

logger = SafeLogger("message_hub_sync.client")


class ClientCalls:
    """The common part of the calls that send and of those that receive."""

    def __init__(self, config: ClientConfig, lifecycle: Lifecycle) -> None:
        self._config = config
        self._lifecycle = lifecycle
        # What was warned about once. No lock: setdefault is atomic, and decides which thread warns.
        self._warned: dict[str, object] = {}
        # The groups of handlers that are included. No lock: setdefault is atomic.
        self._groups: dict[HandlerGroup, object] = {}

    def _entered(self) -> Session:
        """Check that a call may be made now, and return the session.

        :raises MessageHubConnectionError: the client is closed.
        :raises MessageHubConfigurationError: gevent has replaced Python's threads after this library was imported.
        """
        refuse_late_patch()
        session = self._lifecycle.session()
        session.admit()
        self._warn_of_loop()
        return session

    def _publishing(self) -> Session:
        """Check that a call that sends may be made now, and return the session.

        :raises MessageHubConnectionError: the client is closed, or this process is the parent of a reloader.
        """
        session = self._entered()
        parent = reloader_parent()
        if parent is not None:
            raise MessageHubConnectionError(
                f"nothing was sent: this process is the parent of the {parent} reloader, which only watches "
                "files; its child serves and sends"
            )
        return session

    def _warn_of_loop(self) -> None:
        if has_running_loop():
            self._warn_once(
                "loop",
                "a blocking call is made inside a running asyncio event loop, which is blocked meanwhile: "
                "call it in a thread (asyncio.to_thread), or use the asynchronous client",
            )

    def _warn_once(self, what: str, text: str) -> None:
        mine = object()
        if self._warned.setdefault(what, mine) is mine:
            logger.warning("%s", text)
