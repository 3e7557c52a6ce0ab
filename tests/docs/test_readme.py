"""The README's Python, run as it stands."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from code_blocks import python_blocks
from programs import ROOT

BLOCKS = python_blocks(ROOT / "README.md")


def test_the_blocks_of_the_readme_talk_to_each_other(
    hub_url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The first block serves until it is closed; the second is another process's, here another thread's."""
    serving, asking = BLOCKS
    server: dict[str, Any] = {"__name__": "server"}

    def with_hub(text: str) -> str:
        return text.replace("amqp://localhost:5672", hub_url)

    ready = threading.Event()

    def until_served(text: str) -> str:
        # It blocks in run_forever(): tell when it is about to.
        assert text.count("    client.run_forever()") == 1
        return with_hub(text).replace("    client.run_forever()", "    ready(); client.run_forever()")

    server["ready"] = ready.set
    thread = threading.Thread(target=serving.run, args=(server, until_served), daemon=True)
    thread.start()
    assert ready.wait(30)
    asking.run({"__name__": "asking"}, with_hub)
    server["client"].close()
    thread.join(30)
    assert not thread.is_alive(), "close() ends run_forever()"
    lines = capsys.readouterr().out.splitlines()
    # The welcome is another thread's, and comes when it comes.
    assert lines.count("welcome, Mira") == 1
    lines.remove("welcome, Mira")
    assert lines[0] == "5"
    assert lines[1].startswith("rejected ")
    assert "nobody-service has no inbox: it has never called subscribe_messages()" in lines[1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
