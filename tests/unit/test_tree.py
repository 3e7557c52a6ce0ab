"""The shape of the package: few names at the root, short files and functions, no import circle, no accidental API."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "message_hub_sync"
UNIT = ROOT / "tests" / "unit"

MOST_ROOT_NAMES = 18
MOST_FILE_LINES = 450
MOST_FUNCTION_LINES = 60

#: Rooms whose tests stand elsewhere, because they need a hub or a process of their own.
TESTED_ELSEWHERE = {
    "cli/dead_letters": "testing/test_dead_letter_commands.py",
    "cli/demo": "examples/test_demo.py",
    "dead_letters": "testing/test_dead_letter_commands.py",
    "testing": "testing",
    "testing/_hooks": "testing",
    "testing/_node": "testing",
}


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _modules(root: Path) -> dict[str, Path]:
    """Each module below ``root`` by its dotted name."""
    return {_module_name(path, root): path for path in sorted(root.rglob("*.py"))}


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


MODULES = _modules(PACKAGE)
PROMISED = set(
    re.findall(r"^### `([\w.]+)`$", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"), re.MULTILINE)
)


def test_the_root_of_the_package_has_few_names() -> None:
    names = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__" and path.name[0] != ".")

    assert len(names) <= MOST_ROOT_NAMES, f"{len(names)} names, at most {MOST_ROOT_NAMES}: {', '.join(names)}"


def test_every_file_is_short() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}

    assert {name: count for name, count in lines.items() if count > MOST_FILE_LINES} == {}


def test_every_function_is_short() -> None:
    """The docstring is counted, decorators are not."""
    lines = {
        f"{name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, path in MODULES.items()
        for node in ast.walk(_parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }

    assert {name: count for name, count in lines.items() if count > MOST_FUNCTION_LINES} == {}


def test_the_clocks_come_from_the_copy_that_no_test_can_freeze() -> None:
    found = []
    for name, path in MODULES.items():
        for node in ast.walk(_parsed(path)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "time" in named or (isinstance(node, ast.ImportFrom) and node.module == "time"):
                found.append(name)

    assert set(found) <= {"message_hub_sync.runtime.real_time"}


def _imports_of_the_module(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that a module makes itself, those under ``if TYPE_CHECKING`` included, those in functions not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _imports_of_the_module(child)


def _imported(name: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that the module ``name`` imports."""
    package = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _imports_of_the_module(_parsed(modules[name])):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            continue
        source = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*above, *([source] if source else [])])
        # from package import name: the module package.name if there is one, else a name of package/__init__.py.
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            found.add(inner if inner in modules else source)
    return (found & modules.keys()) - {name}


def _import_circle(modules: dict[str, Path]) -> list[str]:
    """The modules of one import circle, each imported by the next one; empty if there is none."""
    try:
        TopologicalSorter({name: _imported(name, modules) for name in modules}).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_no_modules_import_each_other() -> None:
    assert _import_circle(MODULES) == []


@pytest.mark.parametrize(
    ("first", "second", "circle"),
    [
        ("from room import second", "x = 1", False),
        ("from room import second", "from room.first import f", True),
        ("from . import second", "import room.first", True),
        ("from room.second import g", "if TYPE_CHECKING:\n    from .first import f", True),
        ("from room.second import g", "try:\n    import room.first\nexcept ImportError:\n    pass", True),
        ("from room.second import g", "class C:\n    from room.first import f", True),
        ("from room.second import g", "def g():\n    from room.first import f", False),
    ],
)
def test_which_imports_make_a_circle(first: str, second: str, circle: bool, tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    for name, text in (("__init__", ""), ("first", first), ("second", second)):
        (room / f"{name}.py").write_text(text)

    assert bool(_import_circle(_modules(room))) is circle


def test_what_is_not_promised_is_private_or_not_exported() -> None:
    """A module is private if it begins with an underscore, or stands in a package that does."""
    exported = []
    for name in MODULES.keys() - PROMISED - {"message_hub_sync"}:
        package, _, last = name.rpartition(".")
        private = any(part.startswith("_") for part in name.split("."))
        if not private and last in getattr(importlib.import_module(package), "__all__", ()):
            exported.append(name)

    assert exported == []
    assert MODULES.keys() >= PROMISED - {"message_hub_sync_pytest"}


def _rooms() -> set[str]:
    """The packages that hold modules, by their path below the root; not the root itself."""
    return {
        path.parent.relative_to(PACKAGE).as_posix()
        for path in MODULES.values()
        if path.parent != PACKAGE and path.name != "__init__.py"
    }


def test_the_unit_tests_stand_in_the_same_rooms() -> None:
    tested = {path.parent.relative_to(UNIT).as_posix() for path in UNIT.rglob("test_*.py") if path.parent != UNIT}

    assert tested - _rooms() == set(), "these directories of tests/unit are no rooms of the package"
    assert _rooms() - tested - TESTED_ELSEWHERE.keys() == set(), "these rooms have no directory in tests/unit"


def test_rooms_that_are_tested_elsewhere_are() -> None:
    assert TESTED_ELSEWHERE.keys() <= _rooms()
    assert [place for place in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / place).exists()] == []
