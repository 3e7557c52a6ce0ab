"""docs/events.md, its Python run as it stands."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from code_blocks import python_blocks
from collector import Collector
from contract.conftest import Hub
from programs import ROOT

from message_hub_sync import Event, catalogue

URL = "amqp://localhost:5672"
BLOCKS = python_blocks(ROOT / "docs" / "events.md")


@pytest.fixture
def own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the document registers is gone with the test."""
    for name in ("_by_name", "_by_model", "_warned"):
        monkeypatch.setattr(catalogue.catalogue, name, dict(getattr(catalogue.catalogue, name)))


@pytest.mark.usefixtures("own_catalogue")
def test_the_document_says_what_happens(hub: Hub, collected: Collector) -> None:
    said = Collector()
    namespace: dict[str, Any] = {"__name__": "document", "print": said}

    def of_this_test(text: str) -> str:
        return re.sub(r"\b(\w+-service)\b", lambda found: hub.name(found[1]), text).replace(URL, hub.url)

    def watch(event: Event) -> None:
        collected((event.event_type, event.correlation_id))

    hub.client("watcher").subscribe(["character.updated", "character.deleted"], watch)
    try:
        for block in BLOCKS:
            block.run(namespace, of_this_test)
        heard = [str(line) for line in said.wait(7)]
        bound = collected.wait(2)
        outside = logging.makeLogRecord({"msg": "outside"})
        namespace["handler"].filter(outside)
        formatted = namespace["handler"].format(outside)
    finally:
        logging.getLogger("quests").removeHandler(namespace["handler"])
        hub.remove(*namespace["campaigns"].get_health_status()["queues"])
        for name in ("characters", "campaigns"):
            namespace[name].close()

    in_handlers = [line for line in heard if " of 42" in line or " for 100" in line]
    assert sorted(in_handlers) == [
        f"7 for 100, says {hub.name('character-service')}",
        "character.deleted of 42",
        "character.leveled_up of 42",
        "character.updated of 42",
    ]
    players, failed, rejected = [line for line in heard if line not in in_handlers]
    assert (players, failed) == ("5", f"{hub.name('campaign-service')} failed: KeyError")
    assert rejected.startswith(f"1 rejected: {hub.name('nobody-service')} has no inbox")
    assert sorted(bound) == [("character.deleted", "web-request-17"), ("character.updated", "web-request-17")]
    assert formatted == "None outside"
