"""What one app consumes: all groups of handlers, in its client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from message_hub_sync.client import MessageHubClient
from message_hub_sync.consuming.annotations import callback_name
from message_hub_sync.consuming.handler_group import HandlerGroup
from message_hub_sync.errors import (
    MessageHubAuthorizationError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
)
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["AppConsumer"]

logger = SafeLogger("message_hub_sync.client")

#: Seconds between two attempts to consume in the background.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class AppConsumer:
    """Subscribes all handlers of an app, now or in the background.

    :param groups: called when consuming begins: by then all modules with handlers are imported.
    """

    def __init__(self, client: MessageHubClient, groups: Callable[[], Iterable[HandlerGroup]]) -> None:
        self._client = client
        self._groups = groups
        self._included: list[HandlerGroup] = []  # by the one thread that consumes
        self._problem: str | None = None  # written by that thread

    @property
    def problem(self) -> str | None:
        """Why it does not consume, though it was to begin; ``None`` if it does, or was not to begin."""
        return self._problem

    def consume(self) -> None:
        """Subscribe all handlers. After an error, a second call goes on where the first one ended.

        :raises MessageHubError: what ``client.include`` raises; or two handlers have the same name.
        """
        groups = list(self._groups())
        _check_names(groups)
        if all(not group._declared for group in groups):
            logger.warning(
                "%s declares no handlers, so it consumes nothing: import the modules with @hub.on_event where the app "
                "is created",
                self._client.service_name,
            )
        for group in groups:
            if group._declared and group not in self._included:
                self._client.include(group)
                self._included.append(group)

    def consume_in_background(self) -> None:
        """Subscribe in a thread, which tries again as long as there is no connection. Returns at once."""
        self._problem = "consuming begins"
        name = f"message-hub-{self._client.service_name}-start"
        threading.Thread(target=self._until_consuming, name=name, daemon=True).start()

    def _until_consuming(self) -> None:
        closed = threading.Event()
        self._client._lifecycle.session().on_close(closed.set)
        pause = _FIRST_PAUSE
        while not closed.is_set():
            try:
                self.consume()
            except (MessageHubConnectionError, MessageHubAuthorizationError) as error:
                # An operator may mend it. A service that waits for its broker must not end for it.
                if pause == _FIRST_PAUSE:
                    logger.warning("%s does not consume yet, and tries again: %s", self._client.service_name, error)
                self._problem = str(error)
                closed.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            except MessageHubError as error:
                logger.error("%s does not consume: %s", self._client.service_name, error)
                self._problem = str(error)
                return
            else:
                self._problem = None
                logger.info("%s consumes", self._client.service_name)
                return


def _check_names(groups: Iterable[HandlerGroup]) -> None:
    """Refuse two handlers of one name: the second one was probably copied, or an app factory declares it again.

    :raises MessageHubConfigurationError: two different functions have the same module and name.
    """
    known: dict[str, object] = {}
    for group in groups:
        for declared in group._declared:
            callback = declared.callback
            name = f"{getattr(callback, '__module__', '?')}.{getattr(callback, '__qualname__', '<lambda>')}"
            if name.endswith("<lambda>"):
                continue
            if known.setdefault(name, callback) != callback:
                raise MessageHubConfigurationError(
                    f"handlers must have different names, but two are named {callback_name(callback)} ({name}): rename "
                    "one of them. If the function that creates the app declares it, declare it at module level: that "
                    "function may run more than once"
                )
