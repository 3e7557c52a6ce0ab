"""The three patterns of the guide, between three processes over RabbitMQ."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.three_services import CALLERS, EACH
from programs import Running, running

from message_hub_sync.testing import MessageHubTestFramework

pytestmark = pytest.mark.rabbitmq

SERVICES = ("service-a", "service-b", "service-c")
PROGRAM = str(Path(__file__).with_name("three_services.py"))


@pytest.fixture
def services(rabbitmq: str) -> Iterator[dict[str, Running]]:
    """A process of each service, ready, on a virtual host of this test's own."""
    with MessageHubTestFramework(rabbitmq) as framework, contextlib.ExitStack() as stack:
        assert framework.url.startswith("amqp:")
        found = {
            service: stack.enter_context(
                running([PROGRAM, framework.url, service, *(other for other in SERVICES if other != service)])
            )
            for service in SERVICES
        }
        for service, program in found.items():
            program.wait_for(f"^{service} is ready$")
        yield found


def test_each_asks_the_others_at_once_and_gets_its_own_replies(services: dict[str, Running]) -> None:
    for program in services.values():
        program.tell("ask")

    for service, program in services.items():
        for other in SERVICES:
            if other != service:
                program.wait_for(f"^{service} got {CALLERS * EACH} replies of its own from {other}$")


def test_what_one_broadcasts_each_of_them_hears_once(services: dict[str, Running]) -> None:
    for program in services.values():
        program.tell("broadcast")

    for service, program in services.items():
        heard = {program.wait_for(f"^{service} heard maintenance of (.*)$")[1] for _ in SERVICES}
        assert heard == set(SERVICES)


def test_the_state_that_each_publishes_all_of_them_know_in_the_end(services: dict[str, Running]) -> None:
    for version in range(1, 11):
        for program in services.values():
            program.tell(f"change {version}")

    known = ", ".join(f'"{service}": 10' for service in SERVICES)
    for service, program in services.items():
        program.wait_for(f"^{service} knows {re.escape('{' + known + '}')}$")
