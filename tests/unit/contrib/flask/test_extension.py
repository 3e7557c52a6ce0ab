"""The extension: one object, one client for each app, settings from the configuration."""

from __future__ import annotations

import gc
import inspect
import os
import threading
import weakref
from typing import Any

import pytest
from flask import Flask

from message_hub_sync import HandlerGroup, MessageHubClient, MessageHubConfigurationError
from message_hub_sync.contrib.flask import MessageHub
from message_hub_sync.middleware import Middleware

MakeApp = Any


def test_each_app_has_a_client_of_its_own(make_app: MakeApp) -> None:
    hub = MessageHub()
    first, second = make_app(hub), make_app(hub, MESSAGE_HUB_SERVICE_NAME="other-service")
    with first.app_context():
        client = hub.client
        assert client is hub.client
    with second.app_context():
        assert hub.client is not client
        assert hub.client.service_name == "other-service"
    assert first.extensions["message_hub"] is hub
    assert "app" not in vars(hub)


def test_nothing_connects_and_no_thread_starts_until_it_is_used(make_app: MakeApp) -> None:
    before = threading.active_count()
    hub = MessageHub()
    hub.on_event("character.created")(lambda event: None)
    # Nobody listens there: a connection attempt would be an error.
    app = make_app(hub, MESSAGE_HUB_URL="amqp://127.0.0.1:9", MESSAGE_HUB_CONSUME="app")
    with app.app_context():
        assert hub.get_health_status()["status"] == "idle"
    assert threading.active_count() == before


def test_an_app_given_to_the_constructor(make_app: MakeApp) -> None:
    app = Flask("given")
    app.config["MESSAGE_HUB_SERVICE_NAME"] = "quest-service"
    hub = MessageHub(app, rabbitmq_url="memory://")
    with app.app_context():
        assert hub.client.service_name == "quest-service"


def test_a_second_registration_raises_and_keeps_the_first(make_app: MakeApp) -> None:
    hub = MessageHub()
    app = make_app(hub)
    for other in (hub, MessageHub()):
        with pytest.raises(MessageHubConfigurationError, match="one MessageHub, not two"):
            other.init_app(app)
    assert app.extensions["message_hub"] is hub


def test_an_app_of_another_hub_is_named(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context(), pytest.raises(MessageHubConfigurationError, match=r"must be given to init_app\(\)"):
        _ = MessageHub().client


def test_without_an_app_context_the_error_is_flasks() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        MessageHub().publish_event("character.created", {"character_id": "1"})


def test_an_app_that_is_dropped_is_not_kept_alive() -> None:
    hub = MessageHub(service_name="quest-service", rabbitmq_url="memory://")
    app = Flask("dropped")
    hub.init_app(app)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None


# --- settings ----------------------------------------------------------------------------------------


def service_of(hub: MessageHub, app: Flask) -> str:
    hub.init_app(app)
    with app.app_context():
        return hub.client.service_name


def test_an_argument_beats_the_configuration_which_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_HUB_SERVICE_NAME", "of-the-environment")
    monkeypatch.setenv("MESSAGE_HUB_URL", "memory://")
    assert service_of(MessageHub(), Flask("a")) == "of-the-environment"
    configured = Flask("b")
    configured.config["MESSAGE_HUB_SERVICE_NAME"] = "of-the-config"
    assert service_of(MessageHub(), configured) == "of-the-config"
    configured = Flask("c")
    configured.config["MESSAGE_HUB_SERVICE_NAME"] = "of-the-config"
    assert service_of(MessageHub(service_name="argument"), configured) == "argument"


def test_the_url_of_a_test_beats_the_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, make_app: MakeApp
) -> None:
    monkeypatch.setenv("MESSAGE_HUB_URL_FILE", "/nowhere")
    make_app(MESSAGE_HUB_URL="memory://")


def test_defaults_do_not_replace_what_is_configured(make_app: MakeApp) -> None:
    app = make_app()
    assert app.config["MESSAGE_HUB_CONSUME"] == "command"
    assert app.config["MESSAGE_HUB_CORRELATION_HEADERS"] == ("X-Correlation-ID", "X-Request-ID")
    assert make_app(MESSAGE_HUB_CONSUME="app").config["MESSAGE_HUB_CONSUME"] == "app"


def test_the_environment_chooses_where_to_consume(monkeypatch: pytest.MonkeyPatch, make_app: MakeApp) -> None:
    monkeypatch.setenv("MESSAGE_HUB_CONSUME", "app")
    assert make_app().config["MESSAGE_HUB_CONSUME"] == "app"


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"MESSAGE_HUB_CONSUME": "web"}, 'MESSAGE_HUB_CONSUME must be "command" or "app", not \'web\''),
        ({"MESSAGE_HUB_URL": "http://host"}, "MESSAGE_HUB_URL: rabbitmq_url must start with"),
        ({"MESSAGE_HUB_CONNECT_TIMEOUT": "soon"}, "MESSAGE_HUB_CONNECT_TIMEOUT must be a number of seconds"),
        ({"MESSAGE_HUB_SERVICE_NAME": None}, "MESSAGE_HUB_SERVICE_NAME must be set in app.config"),
        ({"MESSAGE_HUB_CORRELATION_HEADERS": "X Y"}, "MESSAGE_HUB_CORRELATION_HEADERS must be names of HTTP headers"),
        ({"MESSAGE_HUB_CORRELATION_HEADERS": ["X-A\r\nY"]}, "MESSAGE_HUB_CORRELATION_HEADERS must be names"),
        ({"MESSAGE_HUB_CORRELATION_HEADERS": 5}, "MESSAGE_HUB_CORRELATION_HEADERS must be names"),
    ],
)
def test_a_wrong_setting_is_an_error_that_leaves_the_app_as_it_was(config: dict[str, Any], text: str) -> None:
    app = Flask("wrong")
    app.config.update({"MESSAGE_HUB_SERVICE_NAME": "quest-service", "MESSAGE_HUB_URL": "memory://", **config})
    hub = MessageHub()
    with pytest.raises(MessageHubConfigurationError) as caught:
        hub.init_app(app)
    assert str(caught.value).startswith(text)
    assert app.extensions == {}
    assert app.before_request_funcs == {}
    # Mended, it can be registered.
    app.config.update(MESSAGE_HUB_SERVICE_NAME="quest-service", MESSAGE_HUB_URL="memory://")
    for name in config.keys() - {"MESSAGE_HUB_SERVICE_NAME", "MESSAGE_HUB_URL"}:
        del app.config[name]
    hub.init_app(app)


def test_an_unknown_setting_warns_with_the_nearest(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    make_app(MESSAGE_HUB_CONSUMES="app")
    assert (
        "MESSAGE_HUB_CONSUMES is not a setting of the hub, so it has no effect (did you mean MESSAGE_HUB_CONSUME?)"
        in (caplog.messages)
    )


# --- the client's verbs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("send", "send_message", "send_messages", "publish", "publish_event", "publish_events", "request"),
        *("get_health_status", "get_queue_stats"),
    ],
)
def test_the_verbs_of_the_client_have_its_parameters_and_documentation(name: str) -> None:
    of_hub, of_client = getattr(MessageHub, name), getattr(MessageHubClient, name)
    assert inspect.signature(of_hub) == inspect.signature(of_client)
    assert of_hub.__doc__ == of_client.__doc__


def test_a_view_publishes(make_app: MakeApp) -> None:
    hub = MessageHub()
    app = make_app(hub)
    came = threading.Event()
    with app.app_context():
        hub.client.subscribe(["quest.started"], lambda event: came.set())

    @app.post("/quests")
    def start() -> dict[str, str]:
        return {"id": str(hub.publish_event("quest.started", {"quest": "1"}))}

    assert app.test_client().post("/quests").status_code == 200
    assert came.wait(30)


# --- groups ------------------------------------------------------------------------------------------


def test_a_group_is_included_once() -> None:
    hub, group = MessageHub(), HandlerGroup()
    hub.include(group)
    for wrong in (group, hub):
        with pytest.raises(MessageHubConfigurationError, match="once in a hub, not twice"):
            hub.include(wrong)
    with pytest.raises(MessageHubConfigurationError, match="group must be a HandlerGroup, not 'x'"):
        hub.include("x")  # type: ignore[arg-type]


def test_middleware_that_is_no_list_is_refused() -> None:
    with pytest.raises(MessageHubConfigurationError, match="middleware must be a list"):
        MessageHub(Flask("x"), service_name="x", rabbitmq_url="memory://", middleware=Middleware())  # type: ignore[typeddict-item]


def test_the_environment_is_read_when_the_app_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = MessageHub()
    assert "MESSAGE_HUB_SERVICE_NAME" not in os.environ
    monkeypatch.setenv("MESSAGE_HUB_SERVICE_NAME", "later-service")
    monkeypatch.setenv("MESSAGE_HUB_URL", "memory://")
    assert service_of(hub, Flask("later")) == "later-service"
