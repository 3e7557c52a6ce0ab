"""What becomes of a message whose handler fails."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime

import pytest
from collector import Collector
from contract.conftest import Hub
from programs import eventually

from message_hub_sync import Event, Message, MessageHubRejectError, MessageHubRetryError, RetryPolicy
from message_hub_sync.transport.topology import QueueSpec, Topology

TWICE = RetryPolicy(attempts=2, delays=(1,))


def test_a_failed_message_comes_again_after_its_delay(hub: Hub) -> None:
    attempts = Collector()

    def fail_once(message: Message) -> None:
        attempts((time.monotonic(), message))
        if len(attempts.items) == 1:
            raise OSError("the disk is full")

    hub.client("image").subscribe_messages(fail_once)
    sent = hub.client("character").send_message(hub.name("image"), {"n": 1}, correlation_id="journey-1")

    (first, _), (second, message) = attempts.wait(2)
    assert second - first >= 0.95
    assert message.id == sent
    assert message.correlation_id == "journey-1"
    assert message.headers["x-attempts"] == 1
    assert message.headers["x-error-type"] == "OSError"


def test_a_message_that_keeps_failing_is_dead_lettered_with_its_story(hub: Hub) -> None:
    attempts = Collector()

    def fail(event: str) -> None:
        attempts(event)
        raise ValueError("no such theme")

    queue = f"{hub.name('campaign')}.campaign.theme_changed"
    hub.client("campaign").subscribe(["campaign.theme_changed"], fail, retry=TWICE)
    event_id = hub.client("character").publish_event("campaign.theme_changed", {"campaign_id": "7"})

    attempts.wait(2)
    dead = hub.take(f"{queue}.dead")

    headers = dead.properties.headers
    assert json.loads(dead.body) == {"campaign_id": "7"}
    assert dead.properties.message_id == str(event_id)
    assert dead.properties.type == "event"
    assert headers["event_type"] == "campaign.theme_changed"
    assert headers["source"] == hub.name("character")
    assert headers["x-attempts"] == 2
    assert headers["x-error-type"] == "ValueError"
    assert headers["x-error-message"].endswith("; its text is in the log")
    assert headers["x-error-traceback"].endswith("ValueError")
    assert f'File "{__file__}", line ' in headers["x-error-traceback"]
    assert headers["x-service"] == hub.name("campaign")
    assert headers["x-original-exchange"] == "events"
    assert headers["x-original-routing-key"] == "campaign.theme_changed"
    assert datetime.fromisoformat(headers["x-first-failed-at"]).tzinfo is not None
    assert len(attempts.items) == 2
    assert hub.depth(queue) == 0


def test_other_messages_go_on_while_one_waits_for_its_retry(hub: Hub) -> None:
    handled = Collector()

    def handle(message: Message) -> None:
        if message.payload["n"] == 0 and "x-attempts" not in message.headers:
            raise RuntimeError("not yet")
        handled(message.payload["n"])

    hub.client("image").subscribe_messages(handle)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(20))

    assert handled.wait(20) == [*range(1, 20), 0]


def test_a_handler_may_ask_for_a_retry_and_refuse_one(hub: Hub, collected: Collector) -> None:
    def handle(message: Message) -> None:
        collected(message.payload["n"])
        if message.payload["n"] == "later":
            if "x-attempts" not in message.headers:
                raise MessageHubRetryError(delay=0.5)
        else:
            raise MessageHubRejectError("not for us")

    hub.client("image").subscribe_messages(handle)
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": "never"})
    sender.send_message(hub.name("image"), {"n": "later"})

    assert collected.wait(3) == ["never", "later", "later"]
    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert json.loads(dead.body) == {"n": "never"}
    assert "not for us" in dead.properties.headers["x-reason"]


def test_an_error_that_is_never_retried_dead_letters_at_once(hub: Hub) -> None:
    def fail(message: Message) -> None:
        raise KeyError("gone")

    client = hub.client("image", retry=RetryPolicy(never=(LookupError,)))
    client.subscribe_messages(fail)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    assert hub.take(f"{hub.name('image')}.messages.dead").properties.headers["x-attempts"] == 1


def test_a_retry_runs_every_callback_of_the_queue_again(hub: Hub) -> None:
    first, second = Collector(), Collector()

    def fail_once(event: str) -> None:
        second(event)
        if len(second.items) == 1:
            raise RuntimeError("once")

    client = hub.client("campaign")
    client.subscribe(["quest.started"], first)
    client.subscribe(["quest.started"], fail_once)
    hub.client("character").publish_event("quest.started", {"n": 1})

    second.wait(2)
    assert len(first.items) == 2


def test_a_retried_event_is_still_what_was_published(hub: Hub, collected: Collector) -> None:
    def fail_once(event: Event) -> None:
        collected(event)
        if len(collected.items) == 1:
            raise RuntimeError("once")

    hub.client("campaign").subscribe(["quest.*"], fail_once)
    hub.client("character").publish_event("quest.started", {"n": 1})

    first, second = collected.wait(2)
    assert second.event_type == first.event_type == "quest.started"
    assert (second.id, second.payload, second.timestamp) == (first.id, first.payload, first.timestamp)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_message_whose_ttl_has_not_passed_is_retried_though_the_clock_is_set(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    attempts = Collector()
    now = time.time

    def fail_once(message: Message) -> None:
        attempts(message)
        if len(attempts.items) == 1:
            monkeypatch.setattr("message_hub_sync.runtime.real_time.time.time", lambda: now() + jump)
            raise RuntimeError("the first time")

    hub.client("image").subscribe_messages(fail_once)
    hub.client("character").send_message(hub.name("image"), {"n": 1}, ttl=60)
    first, second = attempts.wait(2)
    assert first.id == second.id


def test_a_message_whose_ttl_passes_while_it_waits_is_dead_lettered_as_expired(hub: Hub) -> None:
    attempts = Collector()

    def fail(message: Message) -> None:
        attempts(message)
        raise RuntimeError("always")

    hub.client("image").subscribe_messages(fail)
    hub.client("character").send_message(hub.name("image"), {"n": 1}, ttl=0.5)

    dead = hub.take(f"{hub.name('image')}.messages.dead")
    assert "expired" in dead.properties.headers["x-reason"]
    assert dead.properties.expiration is None
    assert len(attempts.items) == 1


def test_a_failed_event_of_a_passing_subscription_is_dropped(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    handled = Collector()

    def fail(event: dict) -> None:  # type: ignore[type-arg]
        handled(event["n"])
        raise RuntimeError("always")

    campaign = hub.client("campaign")
    queue = campaign.subscribe(["quest.started"], fail, durable=False).queues[0]
    publisher = hub.client("character")
    publisher.publish_event("quest.started", {"n": 1})
    publisher.publish_event("quest.started", {"n": 2})

    assert handled.stays(2) == [1, 2]
    assert hub.depth(f"{queue}.dead") is None
    campaign.close()
    assert "dropped" in caplog.text


def test_sys_exit_in_a_handler_is_a_failure_like_any_other(hub: Hub, collected: Collector) -> None:
    def leave(message: Message) -> None:
        if "x-attempts" not in message.headers:
            raise SystemExit(3)
        collected(message)

    hub.client("image").subscribe_messages(leave)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    assert collected.wait()[0].headers["x-error-type"] == "SystemExit"


def test_a_message_given_back_unhandled_is_redelivered_to_another_process_and_not_counted(hub: Hub) -> None:
    started, go_on = Collector(), threading.Event()

    def stuck(message: Message) -> None:
        started(message.payload["n"])
        go_on.wait(30)

    first = hub.client("image")
    subscription = first.subscribe_messages(stuck, prefetch=2)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(2))
    started.wait()
    closing = threading.Thread(target=first.close)
    closing.start()
    assert eventually(lambda: not subscription.active)
    go_on.set()
    closing.join(30)
    handled = Collector()

    hub.client("image").subscribe_messages(handled, retry=RetryPolicy(attempts=1))

    (message,) = handled.stays(1)
    assert (message.payload, message.redelivered) == ({"n": 1}, True)
    assert "x-crashes" not in message.headers
    assert started.items == [0]


def test_a_handler_without_annotation_that_expects_a_dict_is_told_so(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    failed = Collector()

    def handle(event):  # type: ignore[no-untyped-def]
        failed(event)
        return event["n"]

    campaign = hub.client("campaign")
    campaign.subscribe(["quest.started"], handle, retry=RetryPolicy(attempts=1))
    hub.client("character").publish_event("quest.started", {"n": 1})

    hub.take(f"{hub.name('campaign')}.quest.started.dead")
    campaign.close()  # what is moved is logged after its confirm
    assert "annotate event: dict or event: Event" in caplog.text


def test_a_delivery_is_held_until_its_connection_ends_and_then_comes_again(hub: Hub) -> None:
    queue = hub.name("image") + ".messages"
    deadline = time.monotonic() + 10
    consumer = hub.raw().consume(Topology(QueueSpec(queue)), prefetch=1, deadline=deadline)
    hub.remove(queue)
    hub.put(queue, b"{}")
    first = consumer.deliveries.get(timeout=30)
    assert first is not None
    assert consumer.holds(first)

    hub.raw().interrupt()

    second = consumer.deliveries.get(timeout=30)
    assert second is not None
    assert (consumer.holds(first), consumer.holds(second), second.redelivered) == (False, True, True)
    consumer.ack(second)
    consumer.close(deadline)


def test_queue_stats_have_a_zero_for_a_dead_letter_queue_before_its_first_dead_letter(hub: Hub) -> None:
    client = hub.client("stats-service")
    client.subscribe_messages(lambda message: None)
    stats = client.get_queue_stats(timeout=30)
    assert stats[f"{hub.name('stats-service')}.messages.dead"] == {"depth": 0, "consumers": 0}
    assert stats[f"{hub.name('stats-service')}.messages"]["depth"] == 0
