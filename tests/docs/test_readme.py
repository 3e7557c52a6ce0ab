"""The README's Python, run as it stands."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from code_blocks import python_blocks
from collector import Collector
from programs import ROOT

from message_hub_sync import Message, MessageHubClient

BLOCKS = python_blocks(ROOT / "README.md")


def test_the_blocks_of_the_readme_talk_to_each_other(hub_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The first block serves until it is closed; the second is another process's, here another thread's."""
    serving, asking = BLOCKS
    server: dict[str, Any] = {"__name__": "server"}
    welcomed = Collector()

    def receive(message: Message) -> None:
        welcomed(message)

    def with_hub(text: str) -> str:
        return text.replace("amqp://localhost:5672", hub_url)

    ready = threading.Event()

    def until_served(text: str) -> str:
        # It blocks in run_forever(): tell when it is about to.
        assert text.count("    client.run_forever()") == 1
        return with_hub(text).replace("    client.run_forever()", "    ready(); client.run_forever()")

    server["ready"] = ready.set
    with MessageHubClient("character-service", hub_url) as characters:
        characters.subscribe_messages(receive)
        thread = threading.Thread(target=serving.run, args=(server, until_served), daemon=True)
        thread.start()
        assert ready.wait(10)
        asking.run({"__name__": "asking"}, with_hub)
        assert [(message.source, message.payload) for message in welcomed.wait(1)] == [
            ("campaign-service", {"action": "welcome", "id": "7b0c…"})
        ]
        server["client"].close()
        thread.join(10)
        assert not thread.is_alive(), "close() ends run_forever()"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5"
    assert lines[1].startswith("rejected ")
    assert "nobody-service has no inbox: it has never called subscribe_messages()" in lines[1]
