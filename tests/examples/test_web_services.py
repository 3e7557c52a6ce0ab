"""The Flask and Django examples, served as users serve them, reloaders included."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from programs import RunningProgram, eventually, running
from spy import spying

from message_hub_sync.testing._node.free_ports import free_port
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

Serve = Callable[..., AbstractContextManager[RunningProgram]]


def serve_flask(url: str, *, reload: bool = False) -> AbstractContextManager[RunningProgram]:
    arguments = ["-m", "flask", "--app", "examples/flask_service", "run", "--port", str(free_port())]
    return running([*arguments, *(["--debug"] if reload else [])], MESSAGE_HUB_URL=url)


def serve_django(url: str, *, reload: bool = False) -> AbstractContextManager[RunningProgram]:
    arguments = ["examples/django_service.py", "runserver", f"127.0.0.1:{free_port()}"]
    return running([*arguments, *([] if reload else ["--noreload"])], MESSAGE_HUB_URL=url)


both = pytest.mark.parametrize("serve", [serve_flask, serve_django])


def address(service: RunningProgram) -> str:
    """Where it serves, as it says itself."""
    return service.wait_for(r"(http://127\.0\.0\.1:\d+)").group(1)


def call(base: str, path: str, payload: Any = None) -> tuple[int, Any]:
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(base + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def is_up(base: str) -> bool:
    try:
        return call(base, "/health")[0] == 200
    except OSError:
        return False


@both
def test_views_send_and_publish_while_subscriptions_run_beside_them(serve: Serve, hub_url: str) -> None:
    with serve(hub_url) as service:
        base = address(service)
        assert eventually(lambda: is_up(base)), service.output
        status, sent = call(base, "/characters", {"character_id": "42", "name": "Mira"})
        assert status == 202
        assert sent["event_id"] != sent["message_id"]
        expected = ["character-service says welcome", "created Mira"]
        assert eventually(lambda: sorted(call(base, "/journal")[1]["entries"]) == expected), call(base, "/journal")
        assert call(base, "/health")[1]["connected"] is True


@both
def test_a_payload_that_does_not_fit_is_the_callers_mistake(serve: Serve) -> None:
    with serve("memory://") as service:
        base = address(service)
        assert eventually(lambda: is_up(base)), service.output
        status, answer = call(base, "/characters", {"name": "nobody"})
        assert status == 400
        assert "character_id" in answer["error"]


@pytest.mark.rabbitmq
@both
def test_what_a_view_publishes_reaches_other_services(serve: Serve, broker_url: str) -> None:
    with spying(broker_url) as spy, serve(broker_url) as service:
        base = address(service)
        assert eventually(lambda: is_up(base)), service.output
        sent = call(base, "/characters", {"character_id": "42", "name": "Mira"})[1]
        [(routing_key, properties, payload)] = spy.events()
    assert (routing_key, properties.message_id) == ("character.created", sent["event_id"])
    assert payload == {"character_id": "42", "name": "Mira"}


def connected_pids(node: RabbitMQNode, vhost: str) -> set[int]:
    """The processes connected to a virtual host, by the name that each connection bears."""
    found = set()
    for line in node.ctl("list_connections", "vhost", "client_properties", "--no-table-headers").splitlines():
        connected_to, _, properties = line.partition("\t")
        if connected_to == vhost:
            name = re.search(r'"connection_name","([^"]+)"', properties)
            assert name is not None, properties
            service, role, pid = name.group(1).split("/")
            assert (service, role in ("publish", "consume")) == ("character-service", True)
            found.add(int(pid))
    return found


@pytest.mark.rabbitmq
@both
def test_the_parent_of_a_reloader_never_connects(serve: Serve, node: RabbitMQNode, vhost: str, broker_url: str) -> None:
    with serve(broker_url, reload=True) as service:
        base = address(service)
        assert eventually(lambda: is_up(base)), service.output
        assert call(base, "/characters", {"character_id": "42", "name": "Mira"})[0] == 202
        connected = connected_pids(node, vhost)
    assert len(connected) == 1, "the child that serves"
    assert service.process.pid not in connected
