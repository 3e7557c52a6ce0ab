"""``MessageHubTestFramework(eager=True)``: handlers run in the thread that publishes, before its call returns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from message_hub_sync import (
    Message,
    MessageHubClient,
    MessageHubConfigurationError,
    MessageHubDeliveryError,
    MessageHubRemoteError,
    RetryPolicy,
    current_correlation_id,
)
from message_hub_sync.testing import MessageHubTestFramework

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def framework() -> Iterator[MessageHubTestFramework]:
    with MessageHubTestFramework(eager=True) as framework:
        yield framework


@pytest.fixture
def client(framework: MessageHubTestFramework) -> Iterator[MessageHubClient]:
    """As the code under test creates it: with the URL only."""
    with MessageHubClient("quest-service", framework.url) as client:
        yield client


HERE = threading.current_thread


def test_an_event_is_handled_here_before_the_call_returns(client: MessageHubClient) -> None:
    handled: list[Any] = []
    client.subscribe(["quest.started"], lambda event: handled.append((HERE(), event)))
    client.publish_event("quest.started", {"number": 1})
    assert handled == [(HERE(), '{"number":1}')]


def test_bulk_calls_and_messages_too(client: MessageHubClient) -> None:
    handled: list[Any] = []
    client.subscribe(["quest.started"], lambda event: handled.append(HERE()), workers=4)
    client.subscribe_messages(lambda message: handled.append(HERE()))
    client.publish_events([("quest.started", {"number": number}) for number in range(200)])
    client.send_messages([("quest-service", {})] * 3)
    assert handled == [HERE()] * 203


def test_what_a_handler_publishes_is_handled_before_the_first_call_returns(client: MessageHubClient) -> None:
    order: list[str] = []

    def start(event: dict[str, Any]) -> None:
        order.append("started")
        if event["number"] < 3:
            client.publish_event("quest.started", {"number": event["number"] + 1})
        client.publish_event("quest.ended", {})
        order.append("returns")

    client.subscribe(["quest.started"], start)
    client.subscribe(["quest.ended"], lambda event: order.append("ended"))
    client.publish_event("quest.started", {"number": 1})
    assert sorted(order) == ["ended"] * 3 + ["returns"] * 3 + ["started"] * 3
    assert order[:2] == ["started", "returns"], "a handler is not interrupted by what it publishes"


def test_a_request_is_answered_here(client: MessageHubClient, framework: MessageHubTestFramework) -> None:
    threads: list[threading.Thread] = []

    def answer(message: Message) -> dict[str, Any]:
        threads.append(HERE())
        return {"twice": message.payload["number"] * 2}

    framework.client("other-service").subscribe_messages(answer)
    assert client.request("other-service", {"number": 4}).payload == {"twice": 8}
    assert threads == [HERE()]


def test_a_request_inside_a_handler_is_answered(client: MessageHubClient, framework: MessageHubTestFramework) -> None:
    other = framework.client("other-service")
    other.subscribe_messages(lambda message: {"answer": 42})
    answers: list[Any] = []

    def ask(event: dict[str, Any]) -> None:
        answers.append((HERE(), client.request("other-service", {}, timeout=30).payload["answer"]))

    client.subscribe(["quest.started"], ask)
    client.publish_event("quest.started", {})
    assert answers == [(HERE(), 42)]


def test_an_error_of_a_handler_goes_the_usual_way_and_is_retried_by_advance(
    client: MessageHubClient, framework: MessageHubTestFramework
) -> None:
    threads: list[threading.Thread] = []

    def fail_twice(event: dict[str, Any]) -> None:
        threads.append(HERE())
        if len(threads) < 3:
            raise KeyError("x")

    client.subscribe(["quest.started"], fail_twice)
    client.publish_event("quest.started", {})
    assert threads == [HERE()]
    framework.advance(1)
    assert threads == [HERE()] * 2
    framework.advance(3600)
    assert threads == [HERE()] * 3


def test_an_error_of_a_request_reaches_its_caller(client: MessageHubClient, framework: MessageHubTestFramework) -> None:
    def fail(message: Message) -> None:
        raise ValueError("x")

    framework.client("other-service", retry=RetryPolicy.none()).subscribe_messages(fail)
    with pytest.raises(MessageHubRemoteError):
        client.request("other-service", {})


def test_a_call_that_fails_raises_as_usual(client: MessageHubClient) -> None:
    with pytest.raises(MessageHubDeliveryError, match="has no inbox"):
        client.send_message("nobody-service", {})


def test_the_correlation_id_and_mock_services_are_as_usual(
    client: MessageHubClient, framework: MessageHubTestFramework
) -> None:
    mock = framework.create_mock_service("map-service")
    mock.subscribe_to_events(["quest.ended"])
    seen: list[str | None] = []

    def end(event: dict[str, Any]) -> None:
        seen.append(current_correlation_id())
        client.publish_event("quest.ended", {})

    client.subscribe(["quest.started"], end)
    client.publish_event("quest.started", {}, correlation_id="abc")
    [event] = mock.events_received
    assert (seen, event.correlation_id) == (["abc"], "abc")
    assert current_correlation_id() is None


def test_threads_that_publish_at_the_same_time_all_return(client: MessageHubClient) -> None:
    handled: list[int] = []
    client.subscribe(["quest.started"], lambda event: handled.append(1), workers=3)
    threads = [
        threading.Thread(target=lambda: [client.publish_event("quest.started", {}) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(handled) == 40


def test_ctrl_c_in_a_handler_reaches_the_test_and_the_hub_goes_on(client: MessageHubClient) -> None:
    interrupted = [True]
    handled: list[Any] = []

    def handle(event: dict[str, Any]) -> None:
        if interrupted:
            interrupted.clear()
            raise KeyboardInterrupt
        handled.append(event)

    client.subscribe(["quest.started"], handle, retry=RetryPolicy.none())
    with pytest.raises(KeyboardInterrupt):
        client.publish_event("quest.started", {"number": 1})
    client.publish_event("quest.started", {"number": 2})
    assert {"number": 2} in handled


def test_messages_that_came_before_the_subscription_are_handled(client: MessageHubClient, collected: Any) -> None:
    client.subscribe_messages(lambda message: None).cancel()
    client.send_message("quest-service", {})
    client.subscribe_messages(collected)
    collected.wait()


def test_other_hubs_are_not_eager_and_nothing_is_left(framework: MessageHubTestFramework) -> None:
    from message_hub_sync.client.session import around_hub

    with MessageHubTestFramework() as usual:
        client = usual.client("quest-service")
        threads: list[Any] = []
        client.subscribe(["quest.started"], lambda event: threads.append(HERE()))
        assert client._lifecycle.session().config.address.name not in around_hub  # type: ignore[union-attr]
    framework.stop()
    assert around_hub == {}


def test_a_broker_cannot_be_eager() -> None:
    with pytest.raises(MessageHubConfigurationError, match="eager must be False on RabbitMQ"):
        MessageHubTestFramework("amqp://127.0.0.1:9", eager=True).start()
