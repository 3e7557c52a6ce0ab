"""A Flask app under real servers: who connects, who consumes, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from collector import Collector
from contrib.conftest import Hub
from programs import RunningProgram, eventually, run, running

import message_hub_sync
from message_hub_sync import MessageHubClient
from message_hub_sync.testing._node.free_ports import free_port

pytestmark = pytest.mark.rabbitmq

APP = "contrib.flask_service:create_app()"
TESTS = str(Path(__file__).parents[1])


def environment(url: str, consume: str, *paths: str, **more: str) -> dict[str, str]:
    path = ":".join([TESTS, str(Path(message_hub_sync.__file__).parents[1]), *paths])
    return {"MESSAGE_HUB_URL": url, "MESSAGE_HUB_CONSUME": consume, "PYTHONPATH": path, **more}


def post(port: int, path: str) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST", data=b"")
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def terminated(service: RunningProgram) -> int:
    service.process.send_signal(signal.SIGTERM)
    return service.process.wait(60)


def gunicorn(port: int, *options: str) -> list[str]:
    return ["-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "2", *options, APP]


preload_or_not = pytest.mark.parametrize("options", [(), ("--preload",)], ids=["no-preload", "preload"])


@preload_or_not
def test_each_gunicorn_worker_consumes_before_its_first_request_and_the_master_never(
    hub: Hub, other_service: MessageHubClient, collected: Collector, options: tuple[str, ...]
) -> None:
    other_service.subscribe(["quest.handled"], lambda event: collected(json.loads(event)))
    with running(gunicorn(free_port(), *options), **environment(hub.url, "app")) as service:
        assert eventually(lambda: hub.consumers() == 2, 60), service.output
        pids = hub.connected_pids()
        for number in range(20):
            other_service.publish_event("quest.started", {"number": number})
        handled = collected.until(lambda events: {event["number"] for event in events} == set(range(20)))
        assert len(pids) == 2
        assert service.process.pid not in pids
        assert {event["pid"] for event in handled} <= pids
        assert {event["app"] for event in handled} == {"quests"}
        assert terminated(service) == 0
    assert hub.consumers() == 0


@preload_or_not
def test_by_default_workers_publish_and_the_command_consumes(
    hub: Hub, other_service: MessageHubClient, collected: Collector, options: tuple[str, ...]
) -> None:
    other_service.subscribe(["quest.handled"], lambda event: collected(json.loads(event)))
    port, settings = free_port(), environment(hub.url, "command")
    consume = ["-m", "flask", "--app", "contrib.flask_service", "message-hub", "consume"]
    with running(gunicorn(port, *options), **settings) as service, running(consume, **settings) as consuming:
        assert eventually(lambda: is_ready(port), 60), service.output
        assert eventually(lambda: hub.consumers() == 1, 60), consuming.output
        pids = {post(port, f"/quests/{number}")["pid"] for number in range(10)}
        handled = collected.until(lambda events: {event["number"] for event in events} == set(range(10)))
        assert {event["pid"] for event in handled} == {consuming.process.pid}
        assert service.process.pid not in pids
        assert hub.connected_pids() == {*pids, consuming.process.pid}
        assert terminated(consuming) == 0
        assert terminated(service) == 0


def test_the_command_waits_for_a_running_handler_and_tells_if_it_did_not_end(
    hub: Hub, other_service: MessageHubClient, collected: Collector
) -> None:
    other_service.subscribe(["quest.begun"], lambda event: collected(event))
    other_service.subscribe_messages(lambda message: None)  # never answers
    consume = ["-m", "flask", "--app", "contrib.flask_service", "message-hub", "consume"]
    settings = environment(hub.url, "command") | {"MESSAGE_HUB_CLOSE_TIMEOUT": "0.5"}
    with running(consume, **settings) as consuming:
        assert eventually(lambda: hub.consumers() == 1, 60), consuming.output
        other_service.publish_event("quest.started", {"number": 1, "slow": True})
        collected.wait(timeout=60)
        assert terminated(consuming) == 5


def test_flask_run_with_its_reloader_has_one_consumer_before_and_after_a_change(
    hub: Hub, other_service: MessageHubClient, collected: Collector, tmp_path: Path
) -> None:
    other_service.subscribe(["quest.handled"], lambda event: collected(json.loads(event)))
    module = tmp_path / "reloaded.py"
    module.write_text("from contrib.flask_service import create_app\n")
    settings = environment(hub.url, "app", str(tmp_path))
    serve = ["-m", "flask", "--app", "reloaded", "run", "--debug", "--port", str(free_port())]
    with running(serve, **settings) as service:
        assert eventually(lambda: hub.consumers() == 1, 60), service.output
        [first] = hub.connected_pids()
        assert first != service.process.pid
        module.write_text("from contrib.flask_service import create_app\n# changed\n")
        service.wait_for("Restarting with stat|Detected change", 60)
        assert eventually(lambda: hub.connected_pids().isdisjoint({first, service.process.pid}), 60)
        assert eventually(lambda: hub.consumers() == 1, 60), service.output
        other_service.publish_event("quest.started", {"number": 1})
        assert [event["pid"] for event in collected.wait()] == list(hub.connected_pids())


@pytest.mark.parametrize("command", [["routes"], ["message-hub", "events"], ["message-hub", "--help"]])
def test_other_commands_do_not_connect(command: list[str]) -> None:
    # Nobody listens at this port. A connection attempt would be logged as an error.
    settings = environment(f"amqp://127.0.0.1:{free_port()}", "app")
    done = run(["-m", "flask", "--app", "contrib.flask_service", *command], **settings)
    assert done.returncode == 0, done.stderr
    assert not re.search("cannot connect|did not answer", done.stderr)
