"""docs/promises.md lists exactly what is public."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import prometheus_client.metrics
import pytest

import message_hub_sync_pytest
from message_hub_sync import metrics
from message_hub_sync.cli.app import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"


def _sections() -> dict[str, list[list[str]]]:
    """The lines of each fenced block, by the heading that it stands under."""
    found: dict[str, list[list[str]]] = {}
    heading, block = "", None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if block is None:
                block = []
                found.setdefault(heading, []).append(block)
            else:
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("#"):
            heading = line.strip("#` ")
    return found


SECTIONS = _sections()
MODULES = [heading for heading in SECTIONS if heading.startswith("message_hub_sync")]


def _words(heading: str, number: int = 0) -> list[str]:
    return " ".join(SECTIONS[heading][number]).split()


def _lines(heading: str) -> list[str]:
    return SECTIONS[heading][0]


def test_the_page_lists_these_modules() -> None:
    assert MODULES == [
        "message_hub_sync",
        "message_hub_sync.client",
        "message_hub_sync.errors",
        "message_hub_sync.catalogue",
        "message_hub_sync.contrib.flask",
        "message_hub_sync.dead_letters",
        "message_hub_sync.testing",
        "message_hub_sync.testing.rabbitmq_node",
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_exports_what_the_page_lists_and_nothing_else(module: str) -> None:
    listed, exported = _words(module), importlib.import_module(module).__all__

    assert len(listed) == len(set(listed)), "a name is listed twice"
    assert sorted(set(exported) - set(listed)) == [], f"exported, and not listed under {module}"
    assert sorted(set(listed) - set(exported)) == [], f"listed under {module}, and not exported"


@pytest.mark.parametrize("module", MODULES)
def test_every_listed_name_can_be_imported(module: str) -> None:
    for name in _words(module):
        namespace: dict[str, object] = {}
        exec(f"from {module} import {name}", namespace)
        assert namespace[name] is not None, name


def test_the_plugin_has_the_listed_fixtures_and_options() -> None:
    exported = {name for name in message_hub_sync_pytest.__all__ if not name.startswith("pytest_")}
    parser = pytest.Parser(_ispytest=True)
    message_hub_sync_pytest.pytest_addoption(parser)

    assert set(_words("pytest plugin", 0)) == exported
    assert set(_words("pytest plugin", 1)) == {
        name for option in parser.getgroup("message_hub").options for name in option.names()
    }


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, (*path, name))
    else:
        options = [name for option in command.params for name in option.opts]
        yield f"{' '.join(path)}: {' '.join(sorted(options))}"


def _sorted_options(line: str) -> str:
    command, _, options = line.partition(": ")
    return f"{command}: {' '.join(sorted(options.split()))}"


def test_the_command_line_has_the_listed_commands_and_options() -> None:
    assert sorted(map(_sorted_options, _lines("Command line"))) == sorted(_commands(main))


def _source_files() -> list[Path]:
    return [*(ROOT / "message_hub_sync").rglob("*.py"), ROOT / "message_hub_sync_pytest.py"]


def test_the_loggers_are_those_listed() -> None:
    used = {
        node.args[0].value
        for path in _source_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and re.fullmatch(r"SafeLogger|(logging\.)?getLogger", ast.unparse(node.func))
    }

    assert used - {"message_hub_sync"} == set(_lines("Loggers"))


def test_the_metrics_are_those_listed() -> None:
    made = [
        family
        for metric in vars(metrics).values()
        if isinstance(metric, prometheus_client.metrics.MetricWrapperBase)
        for family in metric.describe()
    ]

    assert {f"{family.name}_total" if family.type == "counter" else family.name for family in made} == set(
        _lines("Metrics")
    )


def test_the_environment_variables_are_those_listed() -> None:
    listed = set(re.findall(r"^\| `(MESSAGE_HUB_\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    used = {
        node.value
        for path in _source_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"MESSAGE_HUB_[A-Z_]+", node.value)
    }

    assert used == listed
