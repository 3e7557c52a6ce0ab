"""Tests of other programs freeze the time of the process with freezegun. The hub's own clocks go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from collector import Collector
from contract.conftest import Hub
from freezegun import freeze_time

from message_hub_sync import Message, MessageHubTimeoutError


@pytest.fixture(params=[{}, {"tick": True}, {"auto_tick_seconds": 3600}], ids=["frozen", "ticking", "jumping"])
def frozen(request: pytest.FixtureRequest) -> Iterator[None]:
    """The time of the process is frozen before the test makes its first client."""
    with freeze_time("2020-01-01", **request.param):
        yield


def test_a_client_that_connects_while_time_is_frozen_gets_its_answer(frozen: None, hub: Hub) -> None:
    hub.client("image").subscribe_messages(lambda message: {"n": message.payload["n"] + 1})

    assert hub.client("character").request(hub.name("image"), {"n": 1}, timeout=30).payload == {"n": 2}


def test_a_deadline_passes_while_time_is_frozen(hub: Hub) -> None:
    handling, release = threading.Event(), threading.Event()

    def slow(message: Message) -> None:
        handling.set()
        release.wait(60)

    hub.client("image").subscribe_messages(slow)
    client = hub.client("character")
    with freeze_time("2020-01-01"):
        with pytest.raises(MessageHubTimeoutError):
            client.request(hub.name("image"), {"n": 1}, timeout=3)
        assert handling.wait(30)
        release.set()


@pytest.mark.parametrize("moment", ["2020-01-01", "2100-01-01"])
def test_a_message_sent_in_frozen_time_expires_by_real_time(hub: Hub, moment: str, collected: Collector) -> None:
    def fail_once(message: Message) -> None:
        collected(message)
        if len(collected.items) == 1:
            raise RuntimeError("the first time")

    with freeze_time(moment):
        hub.client("image").subscribe_messages(fail_once)
        hub.client("character").send_message(hub.name("image"), {"n": 1}, ttl=60)
    first, second = collected.wait(2)

    assert first.id == second.id
    assert first.timestamp.year not in (2020, 2100)


def test_an_open_connection_outlives_frozen_time(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)
    client = hub.client("character")
    client.send_message(hub.name("image"), {"n": 0})
    for n, moment in enumerate(["2020-01-01", "2100-01-01"], 1):
        with freeze_time(moment):
            client.send_message(hub.name("image"), {"n": n})
    client.send_message(hub.name("image"), {"n": 3})

    assert [message.payload["n"] for message in collected.wait(4)] == [0, 1, 2, 3]
    assert client.get_health_status()["last_error"] is None
