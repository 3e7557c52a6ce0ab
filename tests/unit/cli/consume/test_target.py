"""What ``message-hub consume`` takes as its target, and what it says of anything else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from message_hub_sync.cli.consume.target import imported_client, imported_group, with_workers
from message_hub_sync.errors import MessageHubConfigurationError

MODULE = """
from message_hub_sync import HandlerGroup, MessageHubClient

client = MessageHubClient("quest-service", "memory://")
group = HandlerGroup()
text = "secret://text"

group.on_event("quest.started")(lambda event: None)
group.on_event("quest.ended", workers=4)(lambda event: None)

def create_client():
    return client

class Holder:
    inner = client
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "quests_main.py").write_text(MODULE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("message_hub_sync"):
            del sys.modules[name]


@pytest.mark.parametrize("target", ["quests_main:client", "quests_main:create_client", "quests_main:Holder.inner"])
def test_a_client_or_a_function_that_returns_one(target: str) -> None:
    assert imported_client(target).service_name == "quest-service"


def test_a_group_and_its_workers() -> None:
    group = imported_group("quests_main:group")
    with_workers(group, 3)
    assert [declared.options.workers for declared in group._declared] == [3, 4]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("quests_main", "a target must be written as module:name"),
        ("quests_main:", "a target must be written as module:name"),
        ("quests_main:client;x", "a target must be written as module:name"),
        ("nowhere:client", "there is no module nowhere: start the command in the directory"),
        ("quests_main.deep:client", "there is no module quests_main.deep"),
        ("quests_main:missing", "but quests_main has no missing"),
        ("quests_main:text", "must be a MessageHubClient, or a function that returns one, not a URL"),
        ("quests_main:Holder", "not the class Holder"),
        ("quests_main:group", "give a group with --group, and the client as the target"),
    ],
)
def test_what_is_no_client_is_named(target: str, text: str) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        imported_client(target)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_flask_extension_is_named_with_its_own_command(directory: Path) -> None:
    (directory / "quests_flask.py").write_text(
        "from message_hub_sync.contrib.flask import MessageHub\nhub = MessageHub()"
    )
    with pytest.raises(MessageHubConfigurationError, match=r"use flask --app … message-hub consume"):
        imported_client("quests_flask:hub")


def test_a_client_is_no_group() -> None:
    with pytest.raises(MessageHubConfigurationError, match="must be a HandlerGroup, not MessageHubClient"):
        imported_group("quests_main:client")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("1 / 0", "ZeroDivisionError"), ("import nowhere_at_all", "ModuleNotFoundError"), ("def", "Syntax")],
)
def test_a_module_that_fails_shows_its_own_lines(
    directory: Path, code: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "quests_broken.py").write_text(f"x = 1\n{code}\n")
    with pytest.raises(MessageHubConfigurationError, match=f"quests_broken cannot be imported: {kind}"):
        imported_client("quests_broken:client")
    shown = capsys.readouterr().err
    assert 'quests_broken.py", line 2' in shown
    assert "importlib" not in shown
