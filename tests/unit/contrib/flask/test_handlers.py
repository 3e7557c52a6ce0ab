"""Handlers of an app: in its app context, consumed when the process is meant to consume, and never before."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from flask import Flask, current_app, g, has_request_context
from flask.cli import FlaskGroup

from message_hub_sync import (
    HandlerGroup,
    Message,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    RetryPolicy,
    current_correlation_id,
)
from message_hub_sync.contrib.flask import MessageHub, serving
from message_hub_sync.middleware import Middleware, Received

MakeApp = Any


def consume(hub: MessageHub, app: Flask) -> None:
    with app.app_context():
        hub._consumer.consume()


def test_a_handler_runs_in_an_app_context_of_its_own(make_app: MakeApp, collected: Any) -> None:
    hub = MessageHub(retry=RetryPolicy.none())

    @hub.on_message(workers=2)
    def handle(message: Message) -> dict[str, Any]:
        assert not has_request_context()
        before = g.get("number")
        g.number = message.payload["number"]
        return {"before": before, "app": current_app.name}

    app = make_app(hub)
    consume(hub, app)
    torn_down: list[Any] = []
    app.teardown_appcontext(lambda error: torn_down.append(g.get("number")))
    with app.app_context():
        replies = [hub.request("quest-service", {"number": number}, timeout=30).payload for number in range(3)]
    assert replies == [{"before": None, "app": app.name}] * 3
    # The reply is sent after the context was popped.
    assert torn_down[:3] == [0, 1, 2]


def test_the_teardown_gets_the_error_of_a_handler(make_app: MakeApp, collected: Any) -> None:
    hub = MessageHub(retry=RetryPolicy.none())

    @hub.on_event("quest.started")
    def fail(event: dict[str, Any]) -> None:
        raise KeyError("x")

    app = make_app(hub)
    app.teardown_appcontext(collected)
    consume(hub, app)
    with app.app_context():
        hub.publish_event("quest.started", {})
        collected.until(lambda errors: any(isinstance(error, KeyError) for error in errors))


def test_each_app_handles_with_its_own_context_and_client(make_app: MakeApp, collected: Any) -> None:
    hub = MessageHub()

    @hub.on_event("quest.started")
    def handle(event: dict[str, Any]) -> None:
        collected((event["app"], current_app.name, hub.client.service_name))

    apps = [make_app(hub, MESSAGE_HUB_SERVICE_NAME=f"service-{number}") for number in range(2)]
    for app in apps:
        consume(hub, app)
        with app.app_context():
            hub.publish_event("quest.started", {"app": app.name})
    assert sorted(collected.wait(2)) == sorted((app.name, app.name, f"service-{n}") for n, app in enumerate(apps))


def test_the_users_middleware_has_the_app_context(make_app: MakeApp, collected: Any) -> None:
    class Asking(Middleware):
        def handle(self, received: Received, call_next: Any) -> Any:
            collected(current_app.name)
            return call_next()

    hub = MessageHub(middleware=[Asking()])
    hub.on_message(lambda message: {})
    app = make_app(hub)
    consume(hub, app)
    with app.app_context():
        hub.request("quest-service", {}, timeout=30)
    assert collected.items == [app.name]


def test_groups_of_packages_are_consumed_too(make_app: MakeApp) -> None:
    hub, group, empty = MessageHub(), HandlerGroup(), HandlerGroup()
    group.on_event("quest.ended")(lambda event: None)
    hub.on_event("quest.started")(lambda event: None)
    hub.include(group)
    hub.include(empty)
    app = make_app(hub)
    consume(hub, app)
    with app.app_context():
        assert hub.get_health_status()["subscriptions"] == ["quest.started", "quest.ended"]
    with pytest.raises(MessageHubConfigurationError, match="before consuming begins, not after it"):
        hub.include(HandlerGroup())
    with pytest.raises(MessageHubConfigurationError, match="must be declared before its group is included"):
        hub.on_event("quest.lost")(lambda event: None)


def declare(hub: MessageHub) -> None:
    @hub.on_event("quest.started")
    def on_started(event: dict[str, Any]) -> None: ...


def test_two_handlers_of_one_name_are_refused_before_anything_is_consumed(make_app: MakeApp) -> None:
    hub = MessageHub()
    declare(hub)
    declare(hub)
    app = make_app(hub)
    with pytest.raises(MessageHubConfigurationError, match=r"two are named .*on_started .*: rename one of them"):
        consume(hub, app)
    with app.app_context():
        assert hub.get_health_status()["subscriptions"] == []


def test_one_function_may_handle_several_things(make_app: MakeApp) -> None:
    hub, group = MessageHub(), HandlerGroup()

    @hub.on_event("quest.started", workers=2)
    @group.on_event("quest.ended")
    @hub.on_message
    def handle(what: dict[str, Any]) -> None: ...

    hub.include(group)
    consume(hub, make_app(hub))


def test_an_app_without_handlers_is_warned_of(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    hub = MessageHub()
    consume(hub, make_app(hub))
    assert "quest-service declares no handlers, so it consumes nothing" in caplog.text


def test_the_correlation_id_of_a_request_reaches_the_handler(make_app: MakeApp, collected: Any) -> None:
    hub = MessageHub()
    hub.on_message(lambda message: collected(current_correlation_id()))
    app = make_app(hub)
    consume(hub, app)

    @app.get("/")
    def send() -> str:
        hub.send_message("quest-service", {})
        return ""

    app.test_client().get("/", headers={"X-Request-ID": "of-the-request"})
    assert collected.wait() == ["of-the-request"]


# --- MESSAGE_HUB_CONSUME = "app" -----------------------------------------------------------------------


def declaring(collected: Any) -> MessageHub:
    hub = MessageHub()

    @hub.on_event("quest.started")
    def handle(event: dict[str, Any]) -> None:
        collected(event)

    return hub


def eventually_consumes(hub: MessageHub, app: Flask) -> None:
    with app.app_context():
        thread = next(t for t in threading.enumerate() if t.name == "message-hub-quest-service-start")
        thread.join(30)
        assert hub.get_health_status()["subscriptions"] == ["quest.started"]


def subscriptions(hub: MessageHub, app: Flask) -> list[str]:
    with app.app_context():
        found: list[str] = hub.get_health_status()["subscriptions"]
        return found


def starters() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-start")]


def test_the_first_request_starts_consuming_once(make_app: MakeApp, collected: Any) -> None:
    hub = declaring(collected)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    app.add_url_rule("/", view_func=lambda: "")
    assert subscriptions(hub, app) == []
    client = app.test_client()
    threads = [threading.Thread(target=lambda: app.test_client().get("/")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    client.get("/")
    with app.app_context():
        hub.publish_event("quest.started", {"n": 1})
    for thread in list(threading.enumerate()):
        if thread.name.endswith("-start"):
            thread.join(30)
    with app.app_context():
        hub.publish_event("quest.started", {"n": 2})
    assert collected.until(lambda events: {"n": 2} in events)
    assert subscriptions(hub, app) == ["quest.started"]


def test_by_default_no_request_starts_consuming(make_app: MakeApp, collected: Any) -> None:
    hub = declaring(collected)
    app = make_app(hub)
    app.test_client().get("/")
    assert starters() == []
    assert subscriptions(hub, app) == []


def test_commands_start_nothing(make_app: MakeApp, collected: Any) -> None:
    hub = declaring(collected)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    result = app.test_cli_runner().invoke(FlaskGroup(create_app=lambda: app), args=["routes"])
    assert result.exit_code == 0, result.output
    assert starters() == []
    assert subscriptions(hub, app) == []


def test_the_development_server_starts_consuming_when_it_serves(make_app: MakeApp, collected: Any) -> None:
    from werkzeug.serving import make_server

    hub = declaring(collected)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    server = make_server("127.0.0.1", 0, app)
    assert subscriptions(hub, app) == []
    serving_thread = threading.Thread(target=server.serve_forever)
    serving_thread.start()
    try:
        deadline = threading.Event()
        for _ in range(3000):
            if subscriptions(hub, app):
                break
            deadline.wait(0.01)
        assert subscriptions(hub, app) == ["quest.started"]
    finally:
        server.shutdown()
        serving_thread.join(30)


def test_without_a_connection_it_tries_again_and_is_not_ready(
    make_app: MakeApp, collected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = declaring(collected)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    with app.app_context():
        consumer, client = hub._consumer, hub.client
        include = client.include
        failures = iter([MessageHubConnectionError("no connection")])
        tried = threading.Event()

        def failing_once(group: HandlerGroup) -> Any:
            for error in failures:
                tried.set()
                raise error
            return include(group)

        monkeypatch.setattr(client, "include", failing_once)
        consumer.consume_in_background()
        assert tried.wait(30)
        [thread] = [t for t in threading.enumerate() if t.name == "message-hub-quest-service-start"]
        ready, answer = hub._readiness()
        assert ready is False
        assert answer["reasons"] == ["not_consuming"]
        thread.join(30)
        assert hub._readiness() == (True, {"status": "ok", "reasons": []})
        assert hub.get_health_status()["subscriptions"] == ["quest.started"]


def test_a_mistake_of_the_code_is_not_tried_again(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    hub = MessageHub()
    declare(hub)
    declare(hub)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    with app.app_context():
        hub._consumer.consume_in_background()
        for thread in threading.enumerate():
            if thread.name.endswith("-start"):
                thread.join(30)
        assert hub._readiness()[0] is False
    assert "quest-service does not consume: handlers must have different names" in caplog.text


def test_a_gunicorn_worker_starts_consuming_after_its_users_own_hook(
    make_app: MakeApp, collected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    from types import ModuleType, SimpleNamespace

    of_the_user: list[Any] = []

    class Config:
        """As gunicorn's: a setting is an attribute that is looked up among the settings."""

        def __init__(self) -> None:
            self.settings = {"post_worker_init": SimpleNamespace(get=lambda: of_the_user.append)}

        def __getattr__(self, name: str) -> Any:
            return self.settings[name].get()

    module = ModuleType("gunicorn.config")
    module.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gunicorn.config", module)
    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", ModuleType("gunicorn.arbiter"))
    monkeypatch.setattr(serving, "_waiting", type(serving._waiting)())
    hub = declaring(collected)
    app = make_app(hub, MESSAGE_HUB_CONSUME="app")
    assert subscriptions(hub, app) == []
    Config().post_worker_init("the worker")
    assert of_the_user == ["the worker"]
    for thread in threading.enumerate():
        if thread.name.endswith("-start"):
            thread.join(30)
    assert subscriptions(hub, app) == ["quest.started"]
