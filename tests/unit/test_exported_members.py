"""What is promised is exported, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import message_hub_sync
import message_hub_sync.client
import message_hub_sync.errors


def test_every_promised_name_is_there() -> None:
    for module in (message_hub_sync, message_hub_sync.client):
        assert list(module.__all__) == sorted(module.__all__, key=_sort_key)
        for name in module.__all__:
            assert getattr(module, name) is not None, name


def _sort_key(name: str) -> tuple[int, str]:
    # Constants, classes, the rest: the order that the linter keeps.
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_every_error_is_importable_from_the_top_and_from_client() -> None:
    errors = {name for name in message_hub_sync.errors.__all__ if name.endswith("Error")}

    assert len(errors) == 11
    assert errors <= set(message_hub_sync.__all__)
    assert errors <= set(message_hub_sync.client.__all__)


def test_nothing_else_is_public_at_the_top() -> None:
    import types

    public = {
        name
        for name, value in vars(message_hub_sync).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - {"annotations", "Any"} <= set(message_hub_sync.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    assert message_hub_sync.__version__[0].isdigit()


def test_importing_loads_neither_a_transport_nor_an_event_loop_nor_a_thread() -> None:
    code = (
        "import sys, threading, message_hub_sync; "
        "print([m for m in ('pika', 'asyncio', 'message_hub_sync.transport.memory', 'pytest', 'flask', 'django') "
        "if m in sys.modules], threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[] 1"
