"""The guide's two testing sections, verbatim but for the package's name and the async that is deleted."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "integration_guide.md"


def section(number: int) -> str:
    """The code of a section of the guide's chapter on testing, as this package's users write it."""
    chapter = GUIDE.read_text(encoding="utf-8").partition("\n## Testing\n")[2].partition("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)[number - 1]
    return code.replace("message_hub.", "message_hub_sync.").replace("async def", "def").replace("await ", "")


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    found: str = request.getfixturevalue("rabbitmq_url")
    return found


@pytest.mark.parametrize(("number", "name"), [(1, "test_service_integration"), (2, "test_service_coordination")])
def test_the_section_passes_as_it_stands(url: str, number: int, name: str) -> None:
    code = section(1) + section(number)  # the import stands in the first
    assert code.count('"amqp://localhost:5672"') >= 1
    namespace: dict[str, object] = {}
    exec(compile(code.replace("amqp://localhost:5672", url), str(GUIDE), "exec"), namespace)
    test = namespace[name]
    assert callable(test)
    test()
    gc.collect()
