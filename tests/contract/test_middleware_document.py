"""docs/middleware.md, its Python run as it stands."""

from __future__ import annotations

import re
from typing import Any

from code_blocks import python_blocks
from collector import Collector
from contract.conftest import Hub
from programs import ROOT

from message_hub_sync import MessageHubClient

URL = "amqp://localhost:5672"


def test_the_document_says_what_happens(hub: Hub) -> None:
    said = Collector()
    namespace: dict[str, Any] = {"__name__": "document", "print": said}

    def of_this_test(text: str) -> str:
        return re.sub(r"\b(\w+-service)\b", lambda found: hub.name(found[1]), text).replace(URL, hub.url)

    try:
        for block in python_blocks(ROOT / "docs" / "middleware.md"):
            block.run(namespace, of_this_test)
        lines = said.wait(4)
        with MessageHubClient(hub.name("stranger"), hub.url) as stranger:
            stranger.send_message(hub.name("campaign-service"), {"action": "players"})
        dead = hub.take(f"{hub.name('campaign-service')}.messages.dead")
    finally:
        hub.remove(*namespace["service"].get_health_status()["queues"])
        for name in ("service", "client"):
            namespace[name].close()

    campaign = hub.name("campaign-service")
    assert sorted(map(str, lines)) == sorted(
        [
            "welcome, Mira",
            f"event from {campaign}.character.created: attempt 1, 0.0 s",
            f"request from {campaign}.messages: attempt 1, 0.0 s",
            "5",
        ]
    )
    assert dead.properties.headers["x-reason"] == "the tenant is not known"
