"""The code blocks of docs/testing.md are a test module that passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from code_blocks import python_blocks

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


def run(pytester: pytest.Pytester, *arguments: str) -> None:
    blocks = [block.text for block in python_blocks(ROOT / "docs" / "testing.md")]
    module = "\n".join(["", *blocks])
    tests = module.count("\ndef test_")
    assert tests == 9
    pytester.makepyfile(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        result = pytester.runpytest_subprocess(
            "-p", "no:message_hub", "-p", "message_hub_sync_pytest", *arguments, timeout=120
        )
    result.assert_outcomes(passed=tests)


def test_the_code_of_the_documentation_passes(pytester: pytest.Pytester) -> None:
    run(pytester)


@pytest.mark.rabbitmq
def test_the_code_of_the_documentation_passes_on_a_broker(pytester: pytest.Pytester, rabbitmq_url: str) -> None:
    run(pytester, "--message-hub-url", rabbitmq_url)
