"""Handlers that are declared at module level, and consumed where a client includes them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from collector import Collector
from contract.conftest import Hub

from message_hub_sync import (
    Event,
    HandlerGroup,
    MemoryDeduplication,
    Message,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubError,
    MessageValidationError,
    RetryPolicy,
    Subscription,
)
from message_hub_sync.consuming.subscription import SubscriptionRegistry


def test_a_group_consumes_once_it_is_included(hub: Hub, collected: Collector) -> None:
    group = HandlerGroup()

    @group.on_event("character.created", "campaign.*")
    def on_event(event: Event) -> None:
        collected(event.event_type)

    @group.on_message
    def on_message(message: Message) -> dict[str, Any]:
        collected("message")
        return {"n": 2}

    client = hub.client("image")
    assert client.get_health_status()["queues"] == {}
    events, messages = client.include(group)

    assert events.event_types == ("character.created", "campaign.*")
    assert messages.queues == (f"{hub.name('image')}.messages",)
    sender = hub.client("character")
    sender.publish_event("character.created", {"character_id": "1"})
    sender.publish_event("campaign.created", {"campaign_id": "1"})
    assert sender.request(hub.name("image"), {"n": 1}).payload == {"n": 2}
    assert sorted(collected.wait(3)) == ["campaign.created", "character.created", "message"]
    # The functions stay what they were.
    assert on_message.__name__ == "on_message"


def test_options_of_a_group_are_those_of_its_subscriptions(hub: Hub, collected: Collector) -> None:
    group = HandlerGroup()

    @group.on_event("character.created", durable=False, prefetch=1, workers=2)
    def on_event(event: Event) -> None:
        collected(event.id)

    @group.on_message(retry=RetryPolicy.none(), deduplicate=MemoryDeduplication())
    def on_message(message: Message) -> None:
        collected(message.id)
        raise ValueError("no")

    events, _ = hub.client("image").include(group)
    assert events.queues[0] != f"{hub.name('image')}.character.created"  # transient: with a random part
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    collected.stays(1)
    assert hub.take(f"{hub.name('image')}.messages.dead").properties.headers["x-attempts"] == 1


def test_one_group_serves_several_clients_once_each(hub: Hub, collected: Collector) -> None:
    group = HandlerGroup()
    group.on_message(collected)
    image, campaign = hub.client("image"), hub.client("campaign")
    image.include(group)
    campaign.include(group)

    sender = hub.client("character")
    sender.send_messages([(hub.name("image"), {"n": 1}), (hub.name("campaign"), {"n": 2})])
    collected.stays(2)
    with pytest.raises(MessageHubConfigurationError, match="must be included once in a client, not twice"):
        image.include(group)


def test_of_two_threads_one_includes_a_group(hub: Hub, collected: Collector) -> None:
    group = HandlerGroup()
    group.on_message(collected)
    client, together, outcomes = hub.client("image"), threading.Barrier(8), Collector()

    def include() -> None:
        together.wait(30)
        try:
            outcomes(len(client.include(group)))
        except MessageHubConfigurationError:
            outcomes("refused")

    threads = [threading.Thread(target=include) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, outcomes.items)) == ["1"] + ["refused"] * 7
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    collected.stays(1)


def test_after_an_error_nothing_of_a_group_is_subscribed_and_it_can_be_included_again(
    hub: Hub, collected: Collector
) -> None:
    group = HandlerGroup()
    group.on_event("character.created")(lambda event: collected("event"))
    group.on_message(prefetch=2)(lambda message: collected("message"))
    client = hub.client("image")
    # The inbox is consumed with other options already, so the second handler of the group cannot be subscribed.
    earlier = client.subscribe_messages(lambda message: None, prefetch=1)

    with pytest.raises(MessageHubConfigurationError, match="already consumed"):
        client.include(group)
    assert client.get_health_status()["subscriptions"] == []
    assert f"{hub.name('image')}.character.created" not in client.get_health_status()["queues"]

    earlier.cancel()
    client.include(group)
    sender = hub.client("character")
    sender.publish_event("character.created", {"character_id": "1"})
    sender.send_message(hub.name("image"), {"n": 1})
    # The event queue is durable, so the event that came in between would be there, too.
    assert sorted(collected.wait(2)) == ["event", "message"]


def test_a_handler_that_is_declared_too_late_is_an_error(hub: Hub) -> None:
    group = HandlerGroup()
    group.on_message(lambda message: None)
    hub.client("image").include(group)
    with pytest.raises(MessageHubConfigurationError, match="must be declared before its group is included"):
        group.on_event("character.created")(lambda event: None)


def test_a_group_without_handlers_warns(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    assert hub.client("image").include(HandlerGroup()) == []
    assert "<HandlerGroup of 0 handlers> has no handlers" in caplog.text


def test_a_closed_client_includes_nothing(hub: Hub) -> None:
    group = HandlerGroup()
    group.on_message(lambda message: None)
    client = hub.client("image")
    client.close()
    with pytest.raises(MessageHubConnectionError, match="closed"):
        client.include(group)
    hub.client("campaign").include(group)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda group: group.on_event("character")(print), "event_type"),
        (lambda group: group.on_event()(print), "event_types must name at least one"),
        (lambda group: group.on_event(lambda event: None), "@group.on_event"),
        (lambda group: group.on_event("a.b", durable="yes"), "durable must be True or False, not 'yes'"),
        (lambda group: group.on_event("a.b", prefetch=0), "prefetch must be a whole number from 1 to 65535, not 0"),
        (lambda group: group.on_message(workers="2"), "workers must be a whole number from 1 to 1000, not '2'"),
        (lambda group: group.on_message(retry=3), "retry must be a RetryPolicy, not 3"),
        (lambda group: group.on_message(lambda: None), "takes no parameter"),
        (
            lambda group: group.on_message("text"),
            r"callback must be a function of one parameter \(def handler\(message\): \.\.\.\), not 'text'$",
        ),
    ],
    ids=["name", "none", "parentheses", "durable", "prefetch", "workers", "retry", "signature", "callback"],
)
def test_a_mistake_is_an_error_where_the_handler_is_declared(declare: Any, says: str) -> None:
    with pytest.raises(MessageHubError, match=says) as caught:
        declare(HandlerGroup())
    assert isinstance(caught.value, MessageValidationError)


def test_only_a_group_is_included(hub: Hub) -> None:
    for wrong in (None, "group", HandlerGroup):
        with pytest.raises(MessageHubConfigurationError, match="group must be a HandlerGroup, not"):
            hub.client("image").include(wrong)  # type: ignore[arg-type]


def test_the_store_and_the_workers_of_a_group_are_used(hub: Hub) -> None:
    group, together, handled = HandlerGroup(), threading.Barrier(2), Collector()

    @group.on_event("character.created", workers=2)
    def on_event(event: Event) -> None:
        together.wait(30)  # two events are handled at the same time
        handled("event")

    @group.on_message(deduplicate=MemoryDeduplication())
    def on_message(message: Message) -> None:
        handled(message.id)

    hub.client("image").include(group)
    sender = hub.client("character")
    sender.publish_events([("character.created", {"character_id": n}) for n in ("1", "2")])
    assert handled.wait(2) == ["event"] * 2

    first = sender.send_message(hub.name("image"), {"n": 1})
    sender.send_message(hub.name("image"), {"n": 1}, message_id=first)
    last = sender.send_message(hub.name("image"), {"n": 2})
    assert handled.stays(4)[2:] == [first, last]


def test_the_options_of_events_are_used_like_those_of_messages(hub: Hub) -> None:
    group, handled = HandlerGroup(), Collector()

    @group.on_event("character.created", retry=RetryPolicy.none(), deduplicate=MemoryDeduplication())
    def on_event(event: Event) -> None:
        handled(event.id)
        if event.payload["character_id"] == "2":
            raise ValueError("no")

    @group.on_message(workers=2, prefetch=7)
    def on_message(message: Message) -> None: ...

    client = hub.client("image")
    client.include(group)
    sender = hub.client("character")
    first = sender.publish_event("character.created", {"character_id": "1"})
    sender.publish_event("character.created", {"character_id": "1"}, message_id=first)
    second = sender.publish_event("character.created", {"character_id": "2"})
    dead = hub.take(f"{hub.name('image')}.character.created.dead")
    assert (dead.properties.message_id, dead.properties.headers["x-attempts"]) == (str(second), 1)
    assert handled.items == [first, second]
    # The inbox has exactly these options.
    client.subscribe_messages(on_message, workers=2, prefetch=7)
    with pytest.raises(MessageHubConfigurationError, match="already consumed with prefetch=7, workers=2"):
        client.subscribe_messages(on_message, workers=2, prefetch=8)


def test_after_a_failed_include_a_handler_can_be_declared_and_the_group_included(
    hub: Hub, collected: Collector
) -> None:
    group = HandlerGroup()
    group.on_message(prefetch=2)(lambda message: collected("message"))
    client = hub.client("image")
    earlier = client.subscribe_messages(lambda message: None, prefetch=1)
    with pytest.raises(MessageHubConfigurationError, match="already consumed"):
        client.include(group)

    group.on_event("character.created")(lambda event: collected("event"))
    earlier.cancel()
    assert len(client.include(group)) == 2

    sender = hub.client("character")
    sender.publish_event("character.created", {"character_id": "1"})
    sender.send_message(hub.name("image"), {"n": 1})
    assert sorted(collected.wait(2)) == ["event", "message"]
    with pytest.raises(MessageHubConfigurationError, match="not twice"):
        client.include(group)


def test_a_failed_include_does_not_open_a_group_that_another_client_has_included(hub: Hub) -> None:
    group = HandlerGroup()
    group.on_message(prefetch=2)(lambda message: None)
    hub.client("campaign").include(group)
    client = hub.client("image")
    client.subscribe_messages(lambda message: None, prefetch=1)
    with pytest.raises(MessageHubConfigurationError, match="already consumed"):
        client.include(group)
    with pytest.raises(MessageHubConfigurationError, match="must be declared before its group is included"):
        group.on_event("character.created")(lambda event: None)


def test_an_include_that_is_interrupted_leaves_nothing_subscribed(
    hub: Hub, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = HandlerGroup()
    group.on_event("character.created")(lambda event: collected("event"))
    group.on_event("character.deleted")(lambda event: collected("event"))
    group.on_message(lambda message: collected("message"))
    client, subscribed = hub.client("image"), Collector()
    join, cancel = SubscriptionRegistry._join, SubscriptionRegistry.cancel

    def interrupted_join(registry: Any, subscription: Subscription, consume: bool) -> Any:
        subscribed(subscription)
        if not subscription.event_types:
            raise KeyboardInterrupt
        return join(registry, subscription, consume)

    def interrupted_cancel(registry: Any, subscription: Subscription, deadline: float) -> None:
        cancel(registry, subscription, deadline)
        if subscription.event_types == ("character.deleted",):
            raise KeyboardInterrupt  # a second Ctrl-C, while the first one is cleaned up

    with monkeypatch.context() as patched:
        patched.setattr(SubscriptionRegistry, "_join", interrupted_join)
        patched.setattr(SubscriptionRegistry, "cancel", interrupted_cancel)
        with pytest.raises(KeyboardInterrupt):
            client.include(group)

    assert len(subscribed.items) == 3
    assert [subscription.active for subscription in subscribed.items] == [False] * 3
    assert client.get_health_status()["subscriptions"] == []
    assert client.get_health_status()["queues"] == {}
    # The group is as it was before.
    group.on_event("character.updated")(lambda event: None)
    assert len(client.include(group)) == 4
    hub.client("character").send_message(hub.name("image"), {"n": 1})
    assert collected.stays(1) == ["message"]


def test_a_forked_child_can_declare_and_include_although_the_lock_was_held_at_the_fork(
    hub: Hub, collected: Collector
) -> None:
    group = HandlerGroup()
    group.on_message(lambda message: collected("message"))
    # What a child finds if another thread of its parent was declaring a handler: nobody releases this lock.
    group._lock._acquire()
    group._process = -1
    included = Collector()

    def child() -> None:
        group.on_event("character.created")(lambda event: collected("event"))
        included(len(hub.client("image").include(group)))

    threading.Thread(target=child, daemon=True).start()
    assert included.wait() == [2]
    sender = hub.client("character")
    sender.publish_event("character.created", {"character_id": "1"})
    sender.send_message(hub.name("image"), {"n": 1})
    assert sorted(collected.wait(2)) == ["event", "message"]
    # One lock from now on, not one for each call.
    assert group._guard() is group._guard()


def test_all_handlers_of_a_group_are_subscribed_together(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    group = HandlerGroup()
    group.on_event("character.created", "character.deleted")(lambda event: None)
    group.on_event("character.deleted")(lambda event: None)  # shares a queue with the first one
    group.on_message(lambda message: None)
    client = hub.client("image")
    calls = Collector()
    transport = client._lifecycle.session().transport
    consume_many = transport.consume_many

    def counted(wanted: Any, *others: Any, **more: Any) -> Any:
        calls(len(wanted))
        return consume_many(wanted, *others, **more)

    monkeypatch.setattr(transport, "consume_many", counted)
    subscriptions = client.include(group)
    assert calls.items == [3]
    assert all(subscription.active for subscription in subscriptions)
