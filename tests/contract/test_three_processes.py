"""The three patterns of the guide, between three processes over RabbitMQ."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.conftest import Hub
from contract.three_services import CALLERS, EACH
from programs import RunningProgram, running

pytestmark = pytest.mark.rabbitmq

PROGRAM = str(Path(__file__).with_name("three_services.py"))


@pytest.fixture
def services(rabbitmq: str) -> Iterator[dict[str, RunningProgram]]:
    """A process of each of three services, ready."""
    hub = Hub(rabbitmq)
    names = [hub.name(service) for service in ("service-a", "service-b", "service-c")]
    try:
        with contextlib.ExitStack() as stack:
            found = {}
            for name in names:
                others = [other for other in names if other != name]
                found[name] = stack.enter_context(running([PROGRAM, rabbitmq, name, *others]))
            for name, program in found.items():
                program.wait_for(f"^{name} is ready$")
            yield found
    finally:
        for queue in ("messages", "system.status.changed", "resource.state.changed"):
            hub.remove(*(f"{name}.{queue}" for name in names))
        hub.end()


def test_each_asks_the_others_at_once_and_gets_its_own_replies(services: dict[str, RunningProgram]) -> None:
    for program in services.values():
        program.tell("ask")

    for service, program in services.items():
        for other in services:
            if other != service:
                program.wait_for(f"^{service} got {CALLERS * EACH} replies of its own from {other}$")


def test_what_one_broadcasts_each_of_them_hears_once(services: dict[str, RunningProgram]) -> None:
    for program in services.values():
        program.tell("broadcast")

    for service, program in services.items():
        heard = {program.wait_for(f"^{service} heard maintenance of (.*)$")[1] for _ in services}
        assert heard == set(services)


def test_the_state_that_each_publishes_all_of_them_know_in_the_end(services: dict[str, RunningProgram]) -> None:
    for version in range(1, 11):
        for program in services.values():
            program.tell(f"change {version}")

    known = ", ".join(f'"{service}": 10' for service in sorted(services))
    for service, program in services.items():
        program.wait_for(f"^{service} knows {re.escape('{' + known + '}')}$")
