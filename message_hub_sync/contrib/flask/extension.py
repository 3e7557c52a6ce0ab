"""The Flask extension: one object at module level, one client for each app."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from flask import Flask, current_app

from message_hub_sync.client import MessageHubClient
from message_hub_sync.config import EnvironmentSettings
from message_hub_sync.consuming.handler_group import HandlerGroup
from message_hub_sync.contrib.flask.app_consumer import AppConsumer
from message_hub_sync.contrib.flask.app_context import AppContextMiddleware
from message_hub_sync.contrib.flask.commands import message_hub_commands
from message_hub_sync.contrib.flask.request_correlation import correlate_requests
from message_hub_sync.contrib.flask.serving import WhenServing
from message_hub_sync.contrib.flask.unavailable import answer_unavailable
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.middleware.checking import checked_middleware
from message_hub_sync.runtime.text import shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from message_hub_sync.client.settings import ClientSettings

__all__ = ["MessageHub"]

P = ParamSpec("P")
T = TypeVar("T")

_CONSUME = "MESSAGE_HUB_CONSUME"
_HEADERS = "MESSAGE_HUB_CORRELATION_HEADERS"
_DEFAULT_HEADERS = ("X-Correlation-ID", "X-Request-ID")


def _of_client(method: Callable[Concatenate[MessageHubClient, P], T]) -> Callable[Concatenate[MessageHub, P], T]:
    """The method of the client of the current app, with the same parameters and documentation."""

    @wraps(method)
    def call(self: MessageHub, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.client, *args, **kwargs)

    return call


class MessageHub(HandlerGroup):
    """The Message Hub of a Flask app. Create it at module level, and call :meth:`init_app` where the app is created::

        hub = MessageHub()

        @hub.on_event("character.created")
        def welcome(event: Event) -> None: ...

        def create_app() -> Flask:
            app = Flask(__name__)
            app.config["MESSAGE_HUB_SERVICE_NAME"] = "quest-service"
            hub.init_app(app)
            return app

    Each app has a client of its own. Nothing connects until it is used, and nothing is consumed until
    ``flask message-hub consume``, or until the process serves if ``MESSAGE_HUB_CONSUME`` is ``"app"``. In views,
    handlers and other code with an app context, call ``hub.publish_event(…)`` and the other methods that send. Any
    thread may do so.

    :param app: calls :meth:`init_app` with it.
    :param settings: the parameters of ``MessageHubClient``, for all apps. They have precedence over ``app.config``,
        which has precedence over the environment.
    """

    def __init__(self, app: Flask | None = None, **settings: Unpack[ClientSettings]) -> None:
        super().__init__()
        self._settings = settings
        # Filled while apps are created; read afterwards. No lock: each operation is a single one.
        self._groups: list[HandlerGroup] = [self]
        self._clients: WeakKeyDictionary[Flask, MessageHubClient] = WeakKeyDictionary()
        self._consumers: WeakKeyDictionary[Flask, AppConsumer] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the hub to an app. It reads the settings and connects to nothing.

        :raises MessageHubConfigurationError: a setting is invalid, or the app has the extension already.
        """
        if "message_hub" in app.extensions:
            raise MessageHubConfigurationError(
                "a Flask app must have one MessageHub, not two: this app has been given to init_app() already"
            )
        app.config.setdefault(_CONSUME, os.environ.get(_CONSUME) or "command")
        app.config.setdefault(_HEADERS, os.environ.get(_HEADERS) or _DEFAULT_HEADERS)
        # Everything is checked before the app is changed.
        consume, headers = _checked_consume(app.config[_CONSUME]), _checked_headers(app.config[_HEADERS])
        client = self._new_client(app)
        consumer = AppConsumer(client, lambda: self._groups)

        app.extensions["message_hub"] = self
        self._clients[app] = client
        self._consumers[app] = consumer
        if headers:
            correlate_requests(app, headers)
        answer_unavailable(app)
        app.cli.add_command(message_hub_commands)
        if consume == "app":
            app.extensions["message_hub.serving"] = WhenServing(app, consumer.consume_in_background)

    def _new_client(self, app: Flask) -> MessageHubClient:
        in_config = EnvironmentSettings(app.config, self._settings)
        in_environment = EnvironmentSettings(os.environ, {**in_config.settings, **self._settings})
        settings: dict[str, Any] = {**in_environment.settings, **in_config.settings, **self._settings}
        if "service_name" not in settings:
            raise MessageHubConfigurationError(
                "MESSAGE_HUB_SERVICE_NAME must be set in app.config or in the environment before init_app()"
            )
        # The app context is the outermost, so that other middleware has it too.
        own = checked_middleware(settings.pop("middleware", ()))
        try:
            return MessageHubClient(**settings, middleware=(AppContextMiddleware(app), *own))
        except MessageHubConfigurationError as error:
            raise in_config.explained(in_environment.explained(error)) from None

    @property
    def client(self) -> MessageHubClient:
        """The client of the current app.

        :raises RuntimeError: there is no app context.
        :raises MessageHubConfigurationError: :meth:`init_app` was not called with the current app.
        """
        return _of_this_hub(self._clients)

    @property
    def _consumer(self) -> AppConsumer:
        """What the current app consumes."""
        return _of_this_hub(self._consumers)

    def include(self, group: HandlerGroup) -> None:
        """Consume the handlers of this group too, where the handlers of the hub are consumed.

        :raises MessageHubConfigurationError: it is no ``HandlerGroup``, or was included before.
        """
        if not isinstance(group, HandlerGroup):
            raise MessageHubConfigurationError(f"group must be a HandlerGroup, not {shown(group)}")
        if group in self._groups:
            raise MessageHubConfigurationError(f"a group must be included once in a hub, not twice: {group!r}")
        if self._includes:
            raise MessageHubConfigurationError(
                f"a group must be included before consuming begins, not after it: {group!r}"
            )
        self._groups.append(group)

    send_message = _of_client(MessageHubClient.send_message)
    send_messages = _of_client(MessageHubClient.send_messages)
    publish_event = _of_client(MessageHubClient.publish_event)
    publish_events = _of_client(MessageHubClient.publish_events)
    request = _of_client(MessageHubClient.request)
    send = send_message
    publish = publish_event
    get_health_status = _of_client(MessageHubClient.get_health_status)
    get_queue_stats = _of_client(MessageHubClient.get_queue_stats)

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether the current app can work with the hub now, and the answer to a probe."""
        health = self.client.get_health_status()
        reasons = [dict(reason) for reason in health["reasons"]]
        problem = self._consumer.problem
        if problem is not None:
            reasons.append({"code": "not_consuming", "text": problem})
        # Texts may name hosts. Probes are often public, so they get the codes.
        codes = [reason["code"] for reason in reasons]
        return health["ready"] and problem is None, {"status": health["status"], "reasons": codes}

    def __repr__(self) -> str:
        return f"<MessageHub of {len(self._clients)} apps>"


def _of_this_hub(values: WeakKeyDictionary[Flask, T]) -> T:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    found = values.get(app)
    if found is None:
        raise MessageHubConfigurationError(
            f"the Flask app {app.name} must be given to init_app() of this MessageHub before it is used"
        )
    return found


def _checked_consume(value: Any) -> str:
    if value not in ("command", "app"):
        raise MessageHubConfigurationError(f'{_CONSUME} must be "command" or "app", not {shown(value)}')
    return str(value)


def _checked_headers(value: Any) -> tuple[str, ...]:
    """The names of headers: a list of them, or one text with commas between."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        for name in names
    ):
        raise MessageHubConfigurationError(
            f"{_HEADERS} must be names of HTTP headers, as a list or with commas between, not {shown(value)}"
        )
    return tuple(names)
