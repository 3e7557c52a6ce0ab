"""The Flask service with a database: its own tests, and deployed as its README says."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT, eventually, run, running

import message_hub_sync
from message_hub_sync import MessageHubClient
from message_hub_sync.testing._node.free_ports import free_port

APP = ROOT / "examples" / "flask_app"


def settings(**more: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(Path(message_hub_sync.__file__).parents[1]), str(APP)]), **more}


def test_its_own_tests_pass() -> None:
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(APP / "tests")]
    done = run(arguments, timeout=240, **settings())
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.rabbitmq
def test_the_web_process_publishes_and_the_consumer_writes_to_the_database(broker_url: str, tmp_path: Path) -> None:
    port = free_port()
    env = settings(MESSAGE_HUB_URL=broker_url, DATABASE_URL=f"sqlite:///{tmp_path / 'quests.db'}")
    flask = ["-m", "flask", "--app", "quests"]
    assert run([*flask, "create-tables"], **env).returncode == 0

    def call(path: str, payload: Any = None) -> Any:
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def is_up() -> bool:
        try:
            return call("/health/live") == {"status": "alive"}
        except OSError:
            return False

    with (
        running([*flask, "run", "--port", str(port)], **env) as web,
        running([*flask, "message-hub", "consume"], **env) as consumer,
        MessageHubClient("map-service", broker_url, connect_timeout=30, delivery_timeout=30) as maps,
    ):
        assert eventually(is_up, 60), web.output
        quest = call("/quests", {"name": "the ring"})
        assert eventually(lambda: asked(maps), 60), consumer.output
        maps.publish_event("place.reached", {"quest_id": quest["id"], "place": "Bree"})
        assert eventually(lambda: call(f"/quests/{quest['id']}")["places"] == ["Bree"], 60), consumer.output
        consumer.process.send_signal(signal.SIGTERM)
        assert consumer.process.wait(60) == 0


def asked(client: MessageHubClient) -> bool:
    """Whether quest-service answers."""
    try:
        return bool(client.request("quest-service", {}, timeout=10).payload["quests"])
    except message_hub_sync.MessageHubError:
        return False
