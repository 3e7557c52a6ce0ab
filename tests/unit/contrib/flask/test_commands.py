"""``flask message-hub``: exit codes and what is shown. ``consume`` in a process of its own is in tests/contrib."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from message_hub_sync.contrib.flask import MessageHub

MakeApp = Any


def test_the_commands_are_listed(make_app: MakeApp) -> None:
    result = make_app().test_cli_runner().invoke(args=["message-hub", "--help"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.partition("Commands:")[2].splitlines() if line.strip()] == [
        *("consume", "events", "health")
    ]


def test_events_shows_the_catalogue(make_app: MakeApp) -> None:
    result = make_app().test_cli_runner().invoke(args=["message-hub", "events", "--format", "json"])
    assert "character.created" in [event["name"] for event in json.loads(result.output)]


def test_events_without_rich_says_what_to_install(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "message_hub_sync.cli.events", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    result = make_app().test_cli_runner().invoke(args=["message-hub", "events"])
    assert result.exit_code == 1
    assert "pip install 'message-hub-sync[cli]'" in result.output


def test_health_connects_and_shows_the_state(make_app: MakeApp) -> None:
    result = make_app().test_cli_runner().invoke(args=["message-hub", "health"])
    assert result.exit_code == 0
    status = json.loads(result.output)
    assert (status["status"], status["ready"], status["service_name"]) == ("ok", True, "quest-service")


def test_health_without_a_broker_is_exit_code_3_and_live_does_not_ask(make_app: MakeApp) -> None:
    app = make_app(MessageHub(connect_timeout=0.2), MESSAGE_HUB_URL="amqp://127.0.0.1:9")
    result = app.test_cli_runner().invoke(args=["message-hub", "health", "--live"])
    assert (result.exit_code, json.loads(result.output)["status"]) == (0, "idle")
    app = make_app(MessageHub(connect_timeout=0.2), MESSAGE_HUB_URL="amqp://127.0.0.1:9")
    result = app.test_cli_runner().invoke(args=["message-hub", "health", "--ready"])
    assert result.exit_code == 3
    assert "Error: " in result.output


def test_consume_without_a_broker_is_exit_code_3(make_app: MakeApp) -> None:
    hub = MessageHub(connect_timeout=0.2)
    hub.on_event("quest.started")(lambda event: None)
    app = make_app(hub, MESSAGE_HUB_URL="amqp://127.0.0.1:9")
    result = app.test_cli_runner().invoke(args=["message-hub", "consume"])
    assert result.exit_code == 3
    assert "Traceback" not in result.output


def test_consume_handles_until_the_client_is_closed(make_app: MakeApp, tmp_path: Path) -> None:
    hub = MessageHub()
    file = tmp_path / "alive"

    @hub.on_message
    def handle(message: dict[str, Any]) -> None:
        assert file.exists()
        threading.Thread(target=client.close).start()

    app = make_app(hub)
    with app.app_context():
        client = hub.client
    client.subscribe_messages(lambda message: None).cancel()  # the inbox exists, so it takes a message
    client.send_message("quest-service", {})
    result = app.test_cli_runner().invoke(args=["message-hub", "consume", "--liveness-file", str(file)])
    assert result.exit_code == 0, result.output
    assert not file.exists()


def test_consume_with_a_liveness_file_that_cannot_be_written_fails(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app()
    result = app.test_cli_runner().invoke(
        args=["message-hub", "consume", "--liveness-file", str(tmp_path / "no" / "x")]
    )
    assert result.exit_code == 1
    assert "the liveness file must be in a directory that can be written" in result.output
