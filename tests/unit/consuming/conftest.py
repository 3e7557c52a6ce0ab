"""No test of a consumer leaves a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from consuming_bench import Bench
from scripted_transport import Step


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    made: list[Bench] = []
    init = Bench.__init__

    def remembered(self: Bench, *steps: Step, **options: Any) -> None:
        init(self, *steps, **options)
        made.append(self)

    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(Bench, "__init__", remembered)
    yield
    for bench in made:
        bench.subscriptions.stop(time.monotonic() + 5)
    assert not [t for t in threading.enumerate() if t.name.startswith("message-hub-image-service")]
