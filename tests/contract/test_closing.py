"""How a client ends, and what it says of itself meanwhile."""

from __future__ import annotations

import json
import threading
import time

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    Message,
    MessageHubClient,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubRejectError,
)


def _threads_of(*names: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if any(name in thread.name for name in names)]


def _send_for_ever(client: MessageHubClient, destination: str) -> None:
    while True:
        client.send_message(destination, {"n": 1})


def test_close_lets_the_running_handler_finish_and_settle(hub: Hub) -> None:
    started, go_on, finished = Collector(), threading.Event(), Collector()
    client = hub.client("image")

    def handle(message: Message) -> None:
        started(message)
        go_on.wait(30)
        client.send_message(hub.name("campaign"), {"done": message.payload["n"]})
        finished(message)

    hub.client("campaign").subscribe_messages(lambda message: None)
    client.subscribe_messages(handle)
    sender = hub.client("character")
    sender.send_messages((hub.name("image"), {"n": n}) for n in range(3))
    started.wait()

    closing = threading.Thread(target=client.close)
    closing.start()
    with pytest.raises(MessageHubConnectionError, match="closed"):
        _send_for_ever(client, hub.name("campaign"))
    go_on.set()
    closing.join(30)

    assert len(finished.items) == len(started.items) == 1
    assert hub.depth(f"{hub.name('image')}.messages") == 2
    assert _threads_of(hub.name("image")) == []


@pytest.mark.parametrize("events", [False, True], ids=["messages", "events"])
def test_close_beside_a_bulk_call_leaves_the_result_of_no_message_unknown(
    hub: Hub, collected: Collector, events: bool
) -> None:
    count = 20_000
    receiver = hub.client("image")
    if events:
        receiver.subscribe(["tale.told"], lambda text: collected(json.loads(text)["n"]), prefetch=500)
    else:
        receiver.subscribe_messages(lambda message: collected(message.payload["n"]), prefetch=500)
    client = hub.client("character")
    errors: list[MessageHubDeliveryError] = []

    def call() -> None:
        try:
            if events:
                client.publish_events([("tale.told", {"n": n}) for n in range(count)], timeout=60)
            else:
                client.send_messages([(hub.name("image"), {"n": n}) for n in range(count)], timeout=60)
        except MessageHubDeliveryError as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    collected.wait(1, timeout=60)
    client.close(timeout=60)
    caller.join(60)

    assert not caller.is_alive()
    failed = [failure for error in errors for failure in error.failures]
    assert {failure.outcome for failure in failed} <= {"rejected"}
    written = sorted(set(range(count)) - {failure.index for failure in failed})
    assert sorted(collected.wait(len(written), timeout=60)) == written


def test_close_is_idempotent_and_final(hub: Hub, collected: Collector) -> None:
    client = hub.client("image")
    subscription = client.subscribe_messages(collected)

    client.close()
    client.close()

    for call in (
        client.connect,
        lambda: client.send_message(hub.name("image"), {"n": 1}),
        lambda: client.publish_event("quest.started", {"n": 1}),
        lambda: client.request(hub.name("image"), {"n": 1}),
        lambda: client.subscribe(["quest.started"], collected),
        client.get_queue_stats,
        subscription.start,
    ):
        with pytest.raises(MessageHubConnectionError, match="closed"):
            call()
    assert not client.get_health_status()["connected"]
    assert not subscription.active
    assert subscription.wait(30)


def test_close_inside_a_handler_does_not_wait_for_itself_and_settles_its_message(hub: Hub) -> None:
    client = hub.client("image")
    took = Collector()

    def last(message: Message) -> None:
        started = time.monotonic()
        client.close(120)
        took(time.monotonic() - started)

    subscription = client.subscribe_messages(last)
    hub.client("character").send_message(hub.name("image"), {"n": 1})

    assert took.wait(timeout=180)[0] < 60
    assert subscription.wait(30)
    client.close()
    assert hub.depth(f"{hub.name('image')}.messages") == 0
    assert _threads_of(hub.name("image")) == []


def test_cancel_inside_a_handler_does_not_wait_for_itself(hub: Hub) -> None:
    client = hub.client("image")
    took = Collector()

    def once(message: Message) -> None:
        started = time.monotonic()
        subscription.cancel(120)
        took(time.monotonic() - started)

    subscription = client.subscribe_messages(once)
    sender = hub.client("character")
    sender.send_message(hub.name("image"), {"n": 1})
    took.wait(timeout=180)
    sender.send_message(hub.name("image"), {"n": 2})

    assert took.stays(1)[0] < 60
    client.close()
    assert hub.depth(f"{hub.name('image')}.messages") == 1


def test_close_does_not_wait_longer_than_it_was_told_and_names_what_it_cut_off(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    started, go_on = Collector(), threading.Event()

    def stuck(message: Message) -> None:
        started(message)
        go_on.wait(120)

    client = hub.client("image")
    client.subscribe_messages(stuck)
    sent = hub.client("character").send_message(hub.name("image"), {"n": 1})
    started.wait()

    began = time.monotonic()
    client.close(timeout=0.3)
    took = time.monotonic() - began
    go_on.set()

    assert took < 60
    (told,) = [record.getMessage() for record in caplog.records if "still ran" in record.getMessage()]
    assert told.startswith(f"1 handler of {hub.name('image')}.messages still ran after 0.3")
    assert told.endswith(f"message {sent} will be delivered again")


def test_close_in_a_handler_tells_of_no_handler_that_was_cut_off(
    hub: Hub, caplog: pytest.LogCaptureFixture, collected: Collector
) -> None:
    client = hub.client("image")

    def last(message: Message) -> None:
        client.close(timeout=0.3)
        collected(message)

    client.subscribe_messages(last)
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    collected.wait()

    assert "still ran" not in caplog.text


def test_a_client_is_a_context_manager(hub: Hub) -> None:
    with MessageHubClient(hub.name("image"), hub.url) as client:
        assert client.get_health_status()["connected"]

    assert not client.get_health_status()["connected"]


def test_run_forever_ends_with_close(hub: Hub, collected: Collector) -> None:
    client = hub.client("image")
    client.subscribe_messages(collected)
    running = threading.Thread(target=client.run_forever)
    running.start()
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    collected.wait()
    assert running.is_alive()

    client.close()

    running.join(30)
    assert not running.is_alive()


@pytest.mark.parametrize("closer", ["another thread", "the handler"])
@pytest.mark.parametrize("subscribed", ["still", "cancelled"])
@pytest.mark.parametrize("in_time", [True, False])
def test_run_forever_tells_whether_every_handler_ended_in_time(
    hub: Hub, closer: str, subscribed: str, in_time: bool
) -> None:
    client = hub.client("image", close_timeout=30 if in_time else 0.5)
    began, release = threading.Event(), threading.Event()
    told: list[bool] = []

    def handle(message: Message) -> None:
        if closer == "the handler":
            client.close()
        began.set()
        release.wait(60)

    subscription = client.subscribe_messages(handle)
    running = threading.Thread(target=lambda: told.append(client.run_forever()))
    running.start()
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    assert began.wait(30)
    if in_time:
        release.set()
    if subscribed == "cancelled":
        subscription.cancel()
    client.close()
    running.join(60)
    release.set()

    assert told == [in_time]


def test_run_forever_of_a_client_that_handled_nothing_ended_in_time(hub: Hub) -> None:
    client = hub.client("image")
    client.subscribe_messages(print)
    client.close()

    assert client.run_forever() is True


def test_a_client_that_only_consumes_opens_no_other_connection_for_queue_stats(hub: Hub) -> None:
    client = hub.client("image")
    client.subscribe_messages(print)

    client.get_queue_stats()

    assert [connection["role"] for connection in client.get_health_status()["connections"]] == ["consume"]


def test_an_interrupted_connection_has_a_last_error(hub: Hub) -> None:
    client = hub.client("image")
    client.connect()
    connected = threading.Event()
    transport = client._lifecycle.session().transport
    transport.on_connected(connected.set)
    before = client.get_health_status()
    assert before["last_error"] is None

    transport.interrupt()

    assert connected.wait(30)
    after = client.get_health_status()
    assert after["last_error"]
    assert after["last_error_at"]
    assert [connection["last_error"] for connection in after["connections"]] == [after["last_error"]]


def test_connect_is_idempotent(hub: Hub) -> None:
    client = hub.client("image")
    assert client.get_health_status()["status"] == "idle"

    client.connect()
    client.connect()

    assert client.get_health_status()["connected"]


def test_health_says_how_everything_is_in_words_of_json(hub: Hub, collected: Collector) -> None:
    client = hub.client("image")
    client.subscribe(["quest.started", "quest.*"], collected)
    client.subscribe_messages(collected)
    client.publish_event("quest.started", {"n": 1})
    service = hub.name("image")

    status = json.loads(json.dumps(client.get_health_status()))

    assert status["service_name"] == service
    assert status["connected"] is True
    assert status["status"] == "ok"
    assert status["subscriptions"] == ["quest.started", "quest.*"]
    assert status["circuit_breaker_state"] == "closed"
    assert {connection["role"] for connection in status["connections"]} == {"publish", "consume"}
    assert set(status["queues"]) == {f"{service}.quest.started", f"{service}.quest.*", f"{service}.messages"}
    assert all(queue["active"] for queue in status["queues"].values())
    assert status["last_error"] is None


def test_queue_stats_count_what_waits_and_who_consumes(hub: Hub) -> None:
    started, go_on = Collector(), threading.Event()

    def stuck(message: Message) -> None:
        started(message)
        go_on.wait(30)

    client = hub.client("image")
    client.subscribe_messages(stuck, prefetch=1)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(4))
    started.wait()

    stats = client.get_queue_stats()
    go_on.set()

    inbox = f"{hub.name('image')}.messages"
    assert stats == {inbox: {"depth": 3, "consumers": 1}, f"{inbox}.dead": {"depth": 0, "consumers": 0}}


@pytest.mark.parametrize("where", ["outside", "in a handler"])
def test_a_cancel_that_gives_up_waiting_gives_back_what_was_prefetched(hub: Hub, where: str) -> None:
    inside, cancelled, go_on = threading.Event(), threading.Event(), threading.Event()
    finished = Collector()

    def handle(message: Message) -> None:
        if where == "in a handler":
            subscription.cancel(0.5)
            cancelled.set()
        inside.set()
        go_on.wait(60)
        finished(message.payload["n"])

    subscription = hub.client("image").subscribe_messages(handle)
    sender = hub.client("character")
    sender.send_messages((hub.name("image"), {"n": n}) for n in range(10))
    assert inside.wait(30)
    if where == "outside":
        subscription.cancel(0.5)

    other = Collector()
    hub.client("image").subscribe_messages(lambda message: other(message.payload["n"]))

    assert sorted(other.wait(9, 30)) == list(range(1, 10))
    assert finished.items == []
    go_on.set()
    assert finished.wait(1, 30) == [0]
    other.stays(9)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_messages_that_fail_while_their_client_stops_are_moved_once(hub: Hub, how: str) -> None:
    client = hub.client("image")
    seen = Collector()

    def handle(message: Message) -> None:
        seen(message.payload["n"])
        raise MessageHubRejectError("no")

    subscription = client.subscribe_messages(handle)
    hub.client("character").send_messages((hub.name("image"), {"n": n}) for n in range(200))
    seen.wait(20, 30)

    if how == "cancel":
        subscription.cancel(30)
    else:
        client.close(30)

    inbox = f"{hub.name('image')}.messages"
    # No sum above 200: none is in both. What was returned because the dead-letter queue did not exist yet stays.
    assert (hub.depth(inbox) or 0) + (hub.depth(f"{inbox}.dead") or 0) == 200
