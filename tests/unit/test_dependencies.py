"""The dependencies that the package names, and those with which it is tested."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

LOWEST = Path(__file__).parents[1] / "lowest.txt"


def test_the_lowest_versions_that_are_tested_are_those_that_the_package_allows() -> None:
    allowed = {}
    for requirement in requires("message-hub-sync") or []:
        name, lowest = re.match(r"([\w-]+)[^;]*?>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        allowed[name] = lowest
    tested = dict(line.split("==") for line in LOWEST.read_text(encoding="utf-8").splitlines() if "==" in line)
    assert {name: _padded(version) for name, version in tested.items()} == {
        name: _padded(version) for name, version in allowed.items()
    }


def _padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]
