"""What is promised is exported, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import message_hub_sync
import message_hub_sync.catalogue
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


def test_every_error_is_importable_from_the_top() -> None:
    errors = _error_names()

    assert len(errors) == 12
    assert errors <= set(message_hub_sync.__all__)


def test_every_error_of_the_integration_guide_is_importable_from_client() -> None:
    # The guide is older than this error. The module `client` holds the names of the guide only.
    assert _error_names() - set(message_hub_sync.client.__all__) == {"MessageHubReentryError"}


def _error_names() -> set[str]:
    return {name for name in message_hub_sync.errors.__all__ if name.endswith("Error")}


def test_nothing_else_is_public_at_the_top() -> None:
    code = (
        "import types, message_hub_sync as hub; [getattr(hub, name) for name in hub.__all__]; "
        "print([n for n, v in vars(hub).items() if n[0] != '_' and not isinstance(v, types.ModuleType)])"
    )
    public = set(ast.literal_eval(_run(code)))
    assert public - {"annotations", "Any", "TYPE_CHECKING"} <= set(message_hub_sync.__all__)


@pytest.mark.parametrize("module", ["message_hub_sync", "message_hub_sync.catalogue"])
def test_a_tool_that_asks_a_module_for_all_its_names_imports_nothing(module: str) -> None:
    code = (
        f"import sys, {module} as module; before = set(sys.modules); [getattr(module, name) for name in dir(module)]; "
        "print(sorted(set(sys.modules) - before))"
    )
    assert _run(code).strip() == "[]"


def test_a_name_that_is_not_promised_is_no_attribute() -> None:
    for module in (message_hub_sync, message_hub_sync.catalogue):
        with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
            module.Nonsense  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    assert message_hub_sync.__version__[0].isdigit()


def test_importing_the_package_loads_next_to_nothing() -> None:
    code = (
        "import sys, threading, message_hub_sync; print([m for m in "
        "('pydantic', 'prometheus_client', 'pika', 'message_hub_sync.client') if m in sys.modules], "
        "threading.active_count())"
    )
    assert _run(code) == "[] 1"


def test_the_client_loads_neither_a_transport_nor_an_event_loop_nor_a_thread_nor_the_catalogues_models() -> None:
    code = (
        "import sys, threading; from message_hub_sync import MessageHubClient; "
        "print([m for m in ('pika', 'asyncio', 'message_hub_sync.transport.memory', 'pytest', 'flask', 'django', "
        "'message_hub_sync.catalogue.character') if m in sys.modules], threading.active_count())"
    )
    assert _run(code) == "[] 1"


def test_32_threads_that_come_first_find_every_name_and_model_whole() -> None:
    # Models are made by whoever asks first; one caught half-made would fail to validate, or be another class.
    code = """
import sys, threading
sys.setswitchinterval(1e-5)
together, wrong = threading.Barrier(32), []

def first(number):
    together.wait(30)
    try:
        from message_hub_sync import MessageHubClient, Event, catalogue
        from message_hub_sync.catalogue import CampaignCreated, CharacterCreated
        with MessageHubClient(f"service-{number}", "memory://race") as client:
            got = threading.Event()
            def handle(event: Event[CharacterCreated]):
                assert type(event.payload) is CharacterCreated
                got.set()
            client.subscribe(["character.created"], handle)
            client.publish_event(CharacterCreated(character_id=str(number)))
            client.publish_event("campaign.created", CampaignCreated(id="7"))
            assert got.wait(30)
        assert catalogue.get("character.created").model is CharacterCreated
        assert len(catalogue.catalogue) == 23
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=first, args=(n,)) for n in range(32)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
print(wrong, sum(thread.is_alive() for thread in threads))
"""
    assert _run(code) == "[] 0"


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=90)
    return done.stdout.strip()
