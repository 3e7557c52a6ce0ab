"""The caller's own headers: what both transports carry, and what the client refuses for both."""

from __future__ import annotations

from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import Message, MessageHubClient, MessageValidationError
from message_hub_sync.middleware import Middleware


def send(client: MessageHubClient, to: str, headers: dict[str, Any]) -> None:
    client.send_message(to, {}, headers=headers)


def publish(client: MessageHubClient, to: str, headers: dict[str, Any]) -> None:
    client.publish_event("quest.started", {}, headers=headers)


def ask(client: MessageHubClient, to: str, headers: dict[str, Any]) -> None:
    client.request(to, {}, timeout=20, headers=headers)


@pytest.mark.parametrize("call", [send, publish, ask])
@pytest.mark.parametrize("name", ["CC", "BCC"])
@pytest.mark.parametrize("value", ["image.messages", None, 7])
def test_a_header_by_which_the_broker_would_route_is_refused(hub: Hub, call: Any, name: str, value: Any) -> None:
    hub.client("image").subscribe_messages(lambda message: None)
    client = hub.client("character")

    with pytest.raises(MessageValidationError, match=f"^header '{name}' must not be .*routing keys.*lower case"):
        call(client, hub.name("image"), {name: value})

    assert client.get_health_status()["circuit_breaker_state"] == "closed"


def test_a_header_whose_name_only_resembles_one_arrives(hub: Hub, collected: Collector) -> None:
    hub.client("image").subscribe_messages(collected)

    hub.client("character").send_message(hub.name("image"), {}, headers={"cc": "a", "Bcc": "b"})

    (message,) = collected.wait()
    assert (message.headers["cc"], message.headers["Bcc"]) == ("a", "b")


@pytest.mark.parametrize("call", [send, publish, ask])
@pytest.mark.parametrize(
    "headers",
    [{f"{n}": "" for n in range(12_000)}, {f"{n}": None for n in range(12_000)}, {f"{n}": 1 for n in range(12_000)}],
    ids=["text", "None", "number"],
)
def test_more_headers_than_a_frame_carries_are_refused(hub: Hub, call: Any, headers: dict[str, Any]) -> None:
    client = hub.client("character")
    with pytest.raises(MessageValidationError, match=r"^headers must be at most 64 KiB .*, not \d+ bytes .*AMQP"):
        call(client, hub.name("image"), headers)


@pytest.mark.parametrize("value", ["", True, 2**62, "é" * 3], ids=str)
def test_as_many_headers_as_are_allowed_arrive(hub: Hub, collected: Collector, value: Any) -> None:
    hub.client("image").subscribe_messages(collected)
    client = hub.client("character")
    headers: dict[str, Any] = {f"h{n:05}": value for n in range(12_000)}
    while True:
        try:
            client.send_message(hub.name("image"), {}, headers=headers)
            break
        except MessageValidationError:
            for name in list(headers)[-200:]:
                del headers[name]

    (message,) = collected.wait()
    assert len(headers) > 2_000
    assert headers.items() <= message.headers.items()


def test_a_middleware_cannot_set_a_header_by_which_the_broker_would_route(hub: Hub) -> None:
    class Copies(Middleware):
        def send(self, batch: Any, call_next: Any) -> None:
            batch[0].headers["CC"] = ["other.messages"]
            call_next()

    client = hub.client("character", middleware=[Copies()])
    with pytest.raises(MessageValidationError, match=r"^header .CC. must "):
        client.publish_event("quest.started", {})


@pytest.mark.parametrize("value", [2**40, -(2**31) - 1, 2**63 - 1, -(2**63), 7, -1, True, None], ids=str)
def test_a_header_has_the_same_value_and_type_after_a_retry(hub: Hub, collected: Collector, value: Any) -> None:
    def fail_once(message: Message) -> None:
        collected(message.headers["mine"])
        if len(collected.items) == 1:
            raise OSError

    hub.client("image").subscribe_messages(fail_once)
    hub.client("character").send_message(hub.name("image"), {}, headers={"mine": value})

    first, second = collected.wait(2, timeout=30)
    assert first == value == second
    assert type(first) is type(value) is type(second)
