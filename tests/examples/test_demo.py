"""``message-hub demo`` over both transports: what it says happened did, and the hub is left as it was found."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from programs import ROOT, environment, run, running
from spy import spying

from message_hub_sync import MessageHubClient
from message_hub_sync.catalogue import catalogue
from message_hub_sync.cli.app import main
from message_hub_sync.cli.demo.cast import ImageService
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

SERVICES = ("character-service", "campaign-service", "image-service", "llm-service")
#: The demo, with an image service that cannot draw maps.
WITHOUT_MAPS = """
import logging
from message_hub_sync.cli import main
from message_hub_sync.cli.demo.cast import ImageService
logging.disable()
def fail(self, asked): raise RuntimeError("out of ink")
ImageService._draw_map = fail
main()
"""


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(["-m", "message_hub_sync.cli", "demo", *arguments])


def queues(node: RabbitMQNode, vhost: str) -> list[str]:
    return node.ctl("list_queues", "-p", vhost, "name", "--no-table-headers").split()


def test_every_event_of_the_catalogue_reaches_whom_the_catalogue_says(hub_url: str) -> None:
    with contextlib.ExitStack() as stack:
        spy = stack.enter_context(spying(hub_url)) if hub_url.startswith("amqp") else None
        done = demo("--json", "--url", hub_url)
        seen = None if spy is None else spy.events()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    events = [one for one in told["sent"] if one["kind"] == "event"]

    assert told["ok"]
    assert {one["name"] for one in events} == {known.name for known in catalogue if known.publisher is not None}
    for one in events:
        known = catalogue.get(one["name"])
        assert known is not None
        assert one["source"] == known.publisher
        assert sorted(one["handled"]) == sorted(known.subscribers)
    for one in told["sent"]:
        assert all(receipt["correlation_id"] == one["correlation_id"] for receipt in one["handled"].values())
        assert all(0 <= receipt["ms"] < 10_000 for receipt in one["handled"].values())
    if seen is not None:
        on_the_wire = {(p.message_id, key, p.app_id, p.correlation_id) for key, p, _ in seen}
        assert on_the_wire == {(one["id"], one["name"], one["source"], one["correlation_id"]) for one in events}


def test_messages_and_requests_arrive_and_a_scene_is_one_conversation() -> None:
    told = json.loads(demo("--json").stdout)
    others = {(one["kind"], one["name"], one["source"]): sorted(one["handled"]) for one in told["sent"]}
    assert others["request", "name_chapter", "campaign-service"] == ["campaign-service", "llm-service"]
    assert others["request", "check_rules", "campaign-service"] == ["campaign-service", "character-service"]
    assert others["message", "draw_map", "campaign-service"] == ["image-service"]
    assert others["message", "paint_item", "character-service"] == ["image-service"]
    conversations: dict[int, set[str]] = {}
    for one in told["sent"]:
        conversations.setdefault(one["scene"], set()).add(one["correlation_id"])
    assert [len(ids) for ids in conversations.values()] == [1, 1, 1, 1, 1]
    assert len(set.union(*conversations.values())) == 5


def test_the_summary_adds_up() -> None:
    told = json.loads(demo("--json").stdout)
    assert tuple(told["services"]) == SERVICES
    for name, service in told["services"].items():
        due = [one for one in told["sent"] if name in one["expected"]]
        assert service["published"] == sum(one["kind"] == "event" and one["source"] == name for one in told["sent"])
        assert service["sent"] == sum(one["kind"] != "event" and one["source"] == name for one in told["sent"])
        assert service["expected"] == service["handled"] == len(due)
        assert service["slowest_ms"] == max(one["handled"][name]["ms"] for one in due)


def test_without_a_terminal_it_writes_plain_lines(hub_url: str) -> None:
    done = demo("--url", hub_url)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()
    lines = done.stdout.splitlines()
    created = next(line.split() for line in lines if "character.created" in line)
    assert created[:2] == ["character", "character.created"]
    assert created[3::2] == ["campaign", "llm"]
    correlation_id = created[2]
    assert len(correlation_id) == 8
    assert sum(correlation_id in line for line in lines) == 9, "what follows from it is in the same conversation"
    assert lines[-1].startswith("Every delivery happened: 21 of 21, of 24 events (22 kinds) and 4 messages")
    assert "guest" not in done.stdout + done.stderr


def test_in_a_terminal_it_uses_colour() -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "message_hub_sync.cli", "demo"],
        cwd=ROOT,
        env=environment(TERM="xterm-256color", COLUMNS="80"),
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody writes any more
            while part := os.read(master, 65536):
                shown += part
    os.close(master)
    assert process.returncode == 0
    assert b"\x1b[36mcharacter" in shown
    assert b"Every delivery happened: 21 of 21" in shown


@pytest.mark.rabbitmq
def test_it_removes_its_queues(node: RabbitMQNode, vhost: str, broker_url: str) -> None:
    assert demo("--url", broker_url).returncode == 0
    assert queues(node, vhost) == []


@pytest.mark.rabbitmq
def test_terminated_it_removes_its_queues_too(node: RabbitMQNode, vhost: str, broker_url: str) -> None:
    with running(["-c", WITHOUT_MAPS, "demo", "--url", broker_url]) as program:
        program.wait_for("waiting for image-service to handle draw_map")
        assert "image-service.messages" in queues(node, vhost)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 1
    assert queues(node, vhost) == []


@pytest.mark.rabbitmq
def test_queues_that_exist_are_neither_read_nor_removed(node: RabbitMQNode, vhost: str, broker_url: str) -> None:
    with MessageHubClient("llm-service", broker_url) as real:
        real.subscribe_messages(lambda message: None).cancel()
        real.send_message("llm-service", {"action": "wait for me"})
    done = demo("--url", broker_url)
    assert done.returncode == 1
    assert "llm-service.messages" in done.stderr
    assert "1 messages waiting" in done.stderr
    assert "--force" in done.stderr
    assert node.ctl("list_queues", "-p", vhost, "name", "messages", "--no-table-headers").split() == [
        "llm-service.messages",
        "1",
    ]
    forced = demo("--url", broker_url, "--force")
    assert (forced.returncode, forced.stderr) == (0, ""), "what waited there is thrown away, not handled"
    assert queues(node, vhost) == []


@pytest.mark.rabbitmq
def test_running_services_are_not_disturbed_even_by_force(broker_url: str) -> None:
    with MessageHubClient("llm-service", broker_url) as real:
        real.subscribe(["character.created"], lambda event: None)
        done = demo("--url", broker_url, "--force")
        assert done.returncode == 1
        assert "services consume from llm-service.character.created" in done.stderr
        assert real.get_queue_stats()["llm-service.character.created"] == {"depth": 0, "consumers": 1}


def test_a_delivery_that_does_not_happen_is_named_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageService, asked: dict[str, Any]) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(ImageService, "_draw_map", fail)
    result = CliRunner().invoke(main, ["demo", "--timeout", "3", "--url", "memory://out-of-ink"])
    assert result.exit_code == 1
    assert "missing: draw_map of campaign-service was not handled by image-service" in result.output
    assert "missing: image.map_generated was never published" in result.output
    assert "Not every delivery happened: 2 of 3" in result.output


def test_a_hub_that_is_not_there_is_told_in_one_line() -> None:
    done = demo("--url", "amqp://user:secret@127.0.0.1:1", "--timeout", "2")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://localhost"],
        ["--timeout", "0"],
        ["--timeout", "soon"],
        ["--timeout", "inf"],
        ["--timeout", "nan"],
    ],
)
def test_a_value_that_is_not_usable_is_told_before_anything_is_sent(arguments: list[str]) -> None:
    done = demo(*arguments)
    assert done.returncode in (1, 2)
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
