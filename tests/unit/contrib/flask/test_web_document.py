"""docs/web.md, its Python run as it stands."""

from __future__ import annotations

from typing import Any

import pytest
from code_blocks import python_blocks
from programs import ROOT


def test_the_documents_app_and_its_tests_work(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "quests"}
    for block in python_blocks(ROOT / "docs" / "web.md"):
        block.run(namespace, lambda text: text)
    fixture = namespace["app"].__wrapped__()
    app = next(fixture)
    namespace["test_a_quest_is_announced"](app)
    namespace["test_a_quest_that_is_started_is_shown"](app, capsys)
    assert app.test_client().get("/health/live").status_code == 200
    with pytest.raises(StopIteration):
        next(fixture)
