"""What a request gets: a correlation id, 503 while the hub cannot be reached, the pages for probes."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest
from flask import Flask
from werkzeug.exceptions import HTTPException

from message_hub_sync import (
    CircuitBreakerConfig,
    CorrelationFilter,
    MessageHubCircuitBreakerError,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubError,
    MessageHubReentryError,
    bound_correlation,
    current_correlation_id,
)
from message_hub_sync.contrib.flask import MessageHub, health_blueprint

MakeApp = Any


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    app: Flask = make_app()
    app.add_url_rule("/id", endpoint="id", view_func=lambda: current_correlation_id() or "none")
    return app


# --- correlation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["X-Correlation-ID", "X-Request-ID"])
def test_the_id_of_a_request_is_bound_and_sent_back(app: Flask, header: str) -> None:
    response = app.test_client().get("/id", headers={header: "abc-123"})
    assert response.text == "abc-123"
    assert response.headers.getlist(header) == ["abc-123"]
    assert response.headers["X-Correlation-ID"] == "abc-123"


def test_the_first_header_of_the_list_wins(app: Flask) -> None:
    response = app.test_client().get("/id", headers={"X-Request-ID": "b", "X-Correlation-ID": "a"})
    assert response.text == "a"
    assert "X-Request-ID" not in response.headers


@pytest.mark.parametrize("headers", [{}, {"X-Request-ID": ""}, {"X-Correlation-ID": "  "}])
def test_without_an_id_each_request_gets_a_new_one(app: Flask, headers: dict[str, str]) -> None:
    client = app.test_client()
    texts = {client.get("/id", headers=headers).text for _ in range(2)}
    assert len({uuid.UUID(text) for text in texts}) == 2


@pytest.mark.parametrize("value", ["x" * 10_240, "a\rb", "a\nSet-Cookie: x", "a\x00b", "a\xc2\x85b"])
def test_an_id_that_no_message_can_carry_is_replaced(app: Flask, value: str) -> None:
    # As the server gives it: the test client refuses such headers.
    environ = {"HTTP_X_REQUEST_ID": value}
    response = app.test_client().get("/id", environ_overrides=environ)
    assert str(uuid.UUID(response.text)) == response.text
    assert response.headers["X-Request-ID"] == response.text
    assert response.headers["X-Correlation-ID"] == response.text


def test_an_id_beyond_ascii_comes_back_as_it_came(app: Flask) -> None:
    came = "día".encode().decode("latin-1")  # as WSGI has it
    response = app.test_client().get("/id", environ_overrides={"HTTP_X_REQUEST_ID": came})
    assert response.status_code == 200
    assert response.text == "día"
    assert response.headers["X-Request-ID"] == came


def test_an_id_that_is_not_utf_8_is_escaped(app: Flask) -> None:
    response = app.test_client().get("/id", environ_overrides={"HTTP_X_REQUEST_ID": "a\x85b"})
    assert (response.text, response.headers["X-Request-ID"]) == ("a\\x85b", "a\\x85b")


def test_log_records_of_a_request_have_the_id(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    app.add_url_rule("/log", endpoint="log", view_func=lambda: logging.getLogger("shop").warning("sold") or "")
    caplog.handler.addFilter(CorrelationFilter())
    app.test_client().get("/log", headers={"X-Request-ID": "abc"})
    assert [vars(record)["correlation_id"] for record in caplog.records if record.name == "shop"] == ["abc"]


def test_an_error_and_a_missing_page_have_the_id_too(app: Flask) -> None:
    app.add_url_rule("/fails", endpoint="fails", view_func=lambda: 1 / 0)
    app.testing = False
    client = app.test_client()
    for path, status in (("/nothing", 404), ("/fails", 500)):
        response = client.get(path, headers={"X-Request-ID": "abc"})
        assert (response.status_code, response.headers["X-Request-ID"]) == (status, "abc")


def test_nothing_stays_bound_after_a_request(app: Flask) -> None:
    app.test_client().get("/id", headers={"X-Request-ID": "abc"})
    assert current_correlation_id() is None
    with bound_correlation("outer"), app.test_client() as client:  # which keeps the context of the request
        client.get("/id")
        client.get("/id")
    assert current_correlation_id() is None


def test_a_request_inside_a_request_has_its_own_id(app: Flask) -> None:
    def nested() -> str:
        inner = app.test_client().get("/id", headers={"X-Request-ID": "inner"}).text
        return f"{inner} {current_correlation_id()}"

    app.add_url_rule("/nested", endpoint="nested", view_func=nested)
    assert app.test_client().get("/nested", headers={"X-Request-ID": "outer"}).text == "inner outer"


def test_a_view_may_set_the_header_itself(app: Flask) -> None:
    app.add_url_rule("/own", endpoint="own", view_func=lambda: ("", 200, {"X-Correlation-ID": "own"}))
    response = app.test_client().get("/own", headers={"X-Correlation-ID": "abc"})
    assert response.headers.getlist("X-Correlation-ID") == ["own"]


@pytest.mark.parametrize("headers", ["Trace-ID, X-Other", ["Trace-ID"]])
def test_the_headers_are_configurable(make_app: MakeApp, headers: Any) -> None:
    app = make_app(MESSAGE_HUB_CORRELATION_HEADERS=headers)
    response = app.test_client().get("/", headers={"Trace-ID": "abc", "X-Correlation-ID": "no"})
    assert response.headers["Trace-ID"] == "abc"
    assert "X-Correlation-ID" not in response.headers


def test_an_empty_list_turns_it_off(make_app: MakeApp) -> None:
    app = make_app(MESSAGE_HUB_CORRELATION_HEADERS=[])
    app.add_url_rule("/id", endpoint="id", view_func=lambda: current_correlation_id() or "none")
    assert app.test_client().get("/id", headers={"X-Correlation-ID": "abc"}).text == "none"


# --- 503 ----------------------------------------------------------------------------------------------


def raising(app: Flask, error: Exception) -> Any:
    def fail() -> str:
        raise error

    app.add_url_rule("/hub", endpoint="hub", view_func=fail)
    app.testing = False
    return app.test_client().get("/hub")


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (MessageHubConnectionError("cannot connect to amqp://secret-host"), None),
        (MessageHubReentryError("nested"), None),
        (MessageHubCircuitBreakerError("the circuit is open", retry_after=4.2), "5"),
        (MessageHubCircuitBreakerError("the circuit is open", retry_after=0.0), "1"),
    ],
)
def test_what_was_not_sent_is_503(
    app: Flask, error: Exception, retry_after: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    response = raising(app, error)
    assert response.status_code == 503
    assert response.headers.get("Retry-After") == retry_after
    assert "secret-host" not in response.text
    assert f"a request is answered with 503: {error}" in caplog.messages


def test_another_error_of_the_hub_is_500(app: Flask) -> None:
    assert raising(app, MessageHubDeliveryError("unknown", outcome="unknown")).status_code == 500


def test_the_applications_page_for_503_is_used(app: Flask) -> None:
    app.register_error_handler(HTTPException, lambda error: ({"error": error.name}, error.code))
    response = raising(app, MessageHubConnectionError("x"))
    assert (response.status_code, response.json) == (503, {"error": "Service Unavailable"})


@pytest.mark.parametrize("kind", [MessageHubConnectionError, MessageHubError])
def test_a_handler_of_the_application_has_precedence(app: Flask, kind: type[Exception]) -> None:
    app.register_error_handler(kind, lambda error: ("own", 418))
    assert raising(app, MessageHubConnectionError("x")).status_code == 418


def test_a_handler_that_was_registered_before_has_precedence() -> None:
    app = Flask("early")
    app.register_error_handler(MessageHubError, lambda error: ("own", 418))
    MessageHub(app, service_name="quest-service", rabbitmq_url="memory://")
    assert raising(app, MessageHubConnectionError("x")).status_code == 418


def test_a_broker_that_is_down_costs_one_deadline_and_then_503_with_a_time(make_app: MakeApp) -> None:
    hub = MessageHub(
        connect_timeout=0.2, delivery_timeout=0.2, circuit_breaker_config=CircuitBreakerConfig(failure_threshold=1)
    )
    app = make_app(hub, MESSAGE_HUB_URL="amqp://127.0.0.1:9")
    app.add_url_rule("/send", endpoint="send", view_func=lambda: str(hub.publish_event("quest.started", {})))
    app.register_blueprint(health_blueprint)
    client = app.test_client()
    first, second = client.get("/send"), client.get("/send")
    assert (first.status_code, first.headers.get("Retry-After")) == (503, None)
    assert (second.status_code, int(second.headers["Retry-After"])) == (503, 60)
    assert client.get("/health/live").status_code == 200
    ready = client.get("/health/ready")
    assert ready.status_code == 503
    assert "disconnected" in ready.json["reasons"]


# --- pages for probes ---------------------------------------------------------------------------------


def test_the_pages_for_probes(make_app: MakeApp) -> None:
    hub = MessageHub()
    app = make_app(hub)
    app.register_blueprint(health_blueprint)
    client = app.test_client()
    assert (client.get("/health/live").status_code, client.get("/health/live").json) == (200, {"status": "alive"})
    assert client.get("/health/ready").json == {"status": "idle", "reasons": []}
    with app.app_context():
        hub.client.connect()
    response = client.get("/health/ready")
    assert (response.status_code, response.json) == (200, {"status": "ok", "reasons": []})
    assert response.headers["Cache-Control"] == "no-store"
    with app.app_context():
        hub.client.close()
    response = client.get("/health/ready")
    assert (response.status_code, response.json) == (503, {"status": "disconnected", "reasons": ["closed"]})


def test_the_metrics_page_has_the_hubs_metrics(make_app: MakeApp) -> None:
    hub = MessageHub()
    app = make_app(hub, MESSAGE_HUB_SERVICE_NAME="counted-service")
    app.register_blueprint(health_blueprint, url_prefix="/internal")
    with app.app_context():
        hub.publish_event("quest.started", {})
    response = app.test_client().get("/internal/metrics")
    assert response.content_type.startswith("text/plain")
    assert 'message_hub_messages_total{service="counted-service",status="success",type="publish"} 1.0' in response.text


def test_the_pages_of_several_apps_show_their_own_client(make_app: MakeApp) -> None:
    hub = MessageHub()
    apps = [make_app(hub), make_app(hub)]
    for app in apps:
        app.register_blueprint(health_blueprint)
    with apps[0].app_context():
        hub.client.connect()
    assert [app.test_client().get("/health/ready").json["status"] for app in apps] == ["ok", "idle"]
