"""docs/events.md, its Python run as it stands."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from code_blocks import python_blocks
from collector import Collector
from contract.conftest import Hub
from programs import ROOT

from message_hub_sync import Event, catalogue
from message_hub_sync.testing import MessageHubTestFramework

BLOCKS = python_blocks(ROOT / "docs" / "events.md")


@pytest.fixture
def own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the document registers is gone with the test."""
    for name in ("_by_name", "_by_model", "_warned"):
        monkeypatch.setattr(catalogue.catalogue, name, dict(getattr(catalogue.catalogue, name)))


@pytest.fixture
def url(hub_url: str) -> Any:
    """A hub where the document's services are alone."""
    with MessageHubTestFramework(hub_url) as framework:
        yield framework.url


@pytest.mark.usefixtures("own_catalogue")
def test_the_document_says_what_happens(url: str, collected: Collector) -> None:
    said = Collector()
    namespace: dict[str, Any] = {"__name__": "document", "print": said}
    watching = Hub(url)
    try:

        def watch(event: Event) -> None:
            collected((event.event_type, event.correlation_id))

        watching.client("watcher").subscribe(["character.updated", "character.deleted"], watch)
        for block in BLOCKS:
            block.run(namespace, _with(url))
        heard = said.wait(7)
        bound = collected.wait(2)
        outside = logging.makeLogRecord({"msg": "outside"})
        namespace["handler"].filter(outside)
        text = namespace["handler"].format(outside)
    finally:
        watching.end()
        logging.getLogger("quests").removeHandler(namespace["handler"])
        for name in ("characters", "campaigns"):
            namespace[name].close()

    in_handlers = [line for line in heard if re.match("character|7 ", str(line))]
    assert sorted(in_handlers) == [
        "7 for 100, says character-service",
        "character.deleted of 42",
        "character.leveled_up of 42",
        "character.updated of 42",
    ]
    assert [line for line in heard if line not in in_handlers][:2] == [5, "campaign-service failed: KeyError"]
    assert any(str(line).startswith("1 rejected: nobody-service has no inbox") for line in heard)
    assert sorted(bound) == [("character.deleted", "web-request-17"), ("character.updated", "web-request-17")]
    assert text == "None outside"


def _with(url: str) -> Callable[[str], str]:
    return lambda text: text.replace("amqp://localhost:5672", url)
