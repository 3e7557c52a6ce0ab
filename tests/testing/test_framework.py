"""The guide's test framework: delivery verified, services isolated, nothing left behind."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest

from message_hub_sync import Message, MessageHubClient, MessageHubConfigurationError
from message_hub_sync.envelope.encode import message_properties
from message_hub_sync.testing import MessageHubTestFramework, RabbitMQNode
from message_hub_sync.testing.mock_service import PROBE_HEADER
from message_hub_sync.transport.base import Outgoing


def own_threads() -> list[threading.Thread]:
    """The library's threads, those of a RabbitMQ node aside."""
    return [
        one
        for one in threading.enumerate()
        if one.name.startswith("message-hub") and not one.name.startswith("message-hub-wait-")
    ]


def depths(url: str, *queues: str) -> list[int | None]:
    client = MessageHubClient("observer", url)
    try:
        stats = client._lifecycle.session().transport.queue_stats(queues, time.monotonic() + 5)
        return [None if stats[queue] is None else stats[queue].depth for queue in queues]
    finally:
        client.close()


def test_a_message_is_verified_where_it_arrived(framework: MessageHubTestFramework) -> None:
    a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    message_id = a.send_message("service-b", {"test": "data"})
    assert framework.verify_message_delivery("service-a", "service-b", message_id) is True
    assert framework.verify_message_delivery("service-a", "service-b", str(message_id)) is True
    assert b.messages_received[0].payload == {"test": "data"}
    assert a.messages_received == []


def test_a_message_from_elsewhere_is_not_taken_for_it(framework: MessageHubTestFramework) -> None:
    a, _ = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    message_id = a.send_message("service-b", {})
    assert framework.verify_message_delivery("service-a", "service-b", message_id)
    assert framework.verify_message_delivery("service-b", "service-b", message_id, timeout=0.01) is False
    assert framework.verify_message_delivery("service-a", "service-b", uuid4(), timeout=0.01) is False
    assert framework.verify_message_delivery("service-a", "service-a", message_id, timeout=0.01) is False


def test_an_event_is_verified_for_each_subscriber(framework: MessageHubTestFramework) -> None:
    a, b, c = (framework.create_mock_service(name) for name in ("service-a", "service-b", "service-c"))
    b.subscribe_to_events(["test.event"])
    event_id = a.publish_event("test.event", {"data": "test"})
    assert framework.verify_event_delivery("service-a", "test.event", event_id, ["service-b"]) == (True, ["service-b"])
    assert framework.verify_event_delivery("service-a", "test.event", event_id, ["service-b", "service-c"], 0.01) == (
        False,
        ["service-b"],
    )
    assert framework.verify_event_delivery("service-a", "test.other", event_id, [b.name], 0.01) == (False, [])
    assert c.events_received == []


def test_a_verification_waits_for_what_comes_later(memory: MessageHubTestFramework) -> None:
    a, _ = memory.create_mock_service("service-a"), memory.create_mock_service("service-b")
    message_id = uuid4()
    sender = threading.Timer(0.05, lambda: a.send_message("service-b", {}, message_id=message_id))
    sender.start()
    assert memory.verify_message_delivery("service-a", "service-b", message_id)
    sender.join()


@pytest.mark.parametrize(("source", "destination"), [("nobody", "service-a"), ("service-a", "nobody"), ("", "")])
def test_unknown_names_are_value_errors(memory: MessageHubTestFramework, source: str, destination: str) -> None:
    memory.create_mock_service("service-a")
    with pytest.raises(ValueError, match="it has service-a"):
        memory.verify_message_delivery(source, destination, uuid4())
    with pytest.raises(ValueError, match="it has service-a"):
        memory.verify_event_delivery(source, "test.event", uuid4(), [destination])
    with pytest.raises(ValueError, match="it has service-a"):
        memory.verify_no_cross_talk(["nobody"])


def test_what_is_no_id_or_name_is_a_value_error(memory: MessageHubTestFramework) -> None:
    memory.create_mock_service("service-a")
    for wrong in (None, "not-an-id", 7):
        with pytest.raises(ValueError, match="send_message or publish_event returned"):
            memory.verify_message_delivery("service-a", "service-a", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be an event type"):
        memory.verify_event_delivery("service-a", "Nonsense", uuid4(), ["service-a"])
    with pytest.raises(ValueError, match="must be a service name"):
        memory.create_mock_service("Service A")
    with pytest.raises(ValueError, match="already"):
        memory.create_mock_service("service-a")


def test_a_name_is_free_again_when_its_service_could_not_be_made(memory: MessageHubTestFramework) -> None:
    with pytest.raises(TypeError):
        memory.create_mock_service("service-a", nonsense=True)
    memory.create_mock_service("service-a")


def test_a_client_for_the_code_under_test_is_known_as_a_source(memory: MessageHubTestFramework) -> None:
    memory.create_mock_service("service-b")
    client = memory.client("service-a")
    assert memory.client("service-a") is client
    assert memory.verify_message_delivery("service-a", "service-b", client.send_message("service-b", {}))


# --- apart from each other ------------------------------------------------------------------------


def test_frameworks_on_memory_do_not_meet() -> None:
    with MessageHubTestFramework() as one, MessageHubTestFramework() as other:
        assert one.url != other.url
        first, second = one.create_mock_service("service-a"), other.create_mock_service("service-a")
        first.send_message("service-a", {"number": 1})
        second.send_message("service-a", {"number": 2})
        assert first.expect_message().payload == {"number": 1}
        assert second.expect_message().payload == {"number": 2}


def test_a_hub_of_its_own_is_forgotten() -> None:
    with MessageHubTestFramework() as framework:
        url = framework.url
        framework.create_mock_service("service-a")
        assert depths(url, "service-a.messages") == [0]
    assert depths(url, "service-a.messages") == [None]


@pytest.mark.rabbitmq
def test_a_framework_makes_a_virtual_host_of_its_own_and_deletes_it(rabbitmq_node: RabbitMQNode) -> None:
    real = MessageHubClient("service-b", rabbitmq_node.url)
    stolen: list[object] = []
    real.subscribe_messages(stolen.append)
    with MessageHubTestFramework(rabbitmq_node.url) as framework:
        assert framework.url.rpartition("/")[2] in rabbitmq_node.ctl("list_vhosts")
        a, b = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
        for number in range(4):
            a.send_message("service-b", {"number": number})
        assert [b.expect_message().payload["number"] for _ in range(4)] == [0, 1, 2, 3]
        assert framework.verify_no_cross_talk(["service-a", "service-b"])
    assert rabbitmq_node.ctl("list_vhosts").split() == ["name", "/"]
    real.close()
    assert stolen == []


@pytest.mark.rabbitmq
def test_a_url_that_names_a_virtual_host_means_it(rabbitmq_node: RabbitMQNode) -> None:
    url = rabbitmq_node.create_vhost("given")
    try:
        with MessageHubTestFramework(url) as framework:
            assert framework.url == url
            framework.create_mock_service("service-a").subscribe_to_events(["test.event"])
            assert "service-a.test.event" in rabbitmq_node.ctl("list_queues", "--vhost", "given", "name")
        assert "service-a" not in rabbitmq_node.ctl("list_queues", "--vhost", "given", "name")
    finally:
        rabbitmq_node.delete_vhost("given")


@pytest.mark.rabbitmq
def test_isolation_that_cannot_be_had_is_an_error(rabbitmq_node: RabbitMQNode, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another process's node, and no management plugin.
    monkeypatch.setattr("message_hub_sync.testing.targets.running_node", lambda host, port: None)
    with pytest.raises(MessageHubConfigurationError, match="management API"):
        MessageHubTestFramework(rabbitmq_node.url, isolated=True).start()
    with MessageHubTestFramework(rabbitmq_node.url) as framework:
        assert framework.url == rabbitmq_node.url


def test_queues_that_were_there_before_stay(hub_url: str) -> None:
    real = MessageHubClient(f"real-{uuid4().hex[:6]}", hub_url)
    inbox = f"{real.service_name}.messages"
    subscription = real.subscribe_messages(lambda message: None)
    subscription.cancel()
    with MessageHubTestFramework(hub_url, isolated=False) as framework:
        framework.create_mock_service(real.service_name)
        new = framework.create_mock_service(f"new-{uuid4().hex[:6]}")
        new.subscribe_to_events("test.event")
        names = [f"{new.name}.messages", f"{new.name}.test.event"]
        assert depths(framework.url, inbox, *names) == [0, 0, 0]
    assert depths(hub_url, inbox, *names) == [0, None, None]
    subscription.delete()
    real.close()


# --- cross-talk -----------------------------------------------------------------------------------


def test_ordinary_traffic_is_no_cross_talk(framework: MessageHubTestFramework) -> None:
    a, b, c = (framework.create_mock_service(name) for name in ("service-a", "service-b", "service-c"))
    b.subscribe_to_events(["test.event"])
    c.subscribe_to_events(["test.*"], durable=False)
    a.send_message("service-b", {})
    a.publish_event("test.event", {})
    assert framework.verify_no_cross_talk(["service-a", "service-b", "service-c"])
    assert [len(one.messages_received) for one in (a, b, c)] == [0, 1, 0]
    assert [len(one.events_received) for one in (a, b, c)] == [0, 1, 1]


def test_a_message_in_the_wrong_inbox_is_cross_talk(
    framework: MessageHubTestFramework, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = framework.create_mock_service("service-a"), framework.create_mock_service("service-b")
    misdirected = message_properties(source="service-c", destination="service-b")
    outgoing = Outgoing("", "service-a.messages", b"{}", misdirected)
    a.client._lifecycle.session().transport.publish(outgoing, time.monotonic() + 5)
    assert framework.verify_no_cross_talk(["service-a"]) is False
    assert "service-a received what is not addressed to it: message to service-b" in caplog.text
    assert framework.verify_no_cross_talk(["service-b"])


def test_somebody_else_on_the_same_queue_is_cross_talk(
    framework: MessageHubTestFramework, caplog: pytest.LogCaptureFixture
) -> None:
    framework.create_mock_service("service-a")
    framework.client("service-a").subscribe_messages(lambda message: None)
    assert framework.verify_no_cross_talk(["service-a"], timeout=0.5) is False
    assert "has 2 consumers" in caplog.text


def test_probes_are_not_shown_to_the_test(memory: MessageHubTestFramework) -> None:
    a = memory.create_mock_service("service-a")
    a.subscribe_to_events(["test.event"])
    a.fail_next(1)
    assert memory.verify_no_cross_talk(["service-a"])
    assert (a.messages_received, a.events_received, a.deliveries_failed) == ([], [], [])
    assert PROBE_HEADER.startswith("x-")  # a name that no service can send


# --- the end --------------------------------------------------------------------------------------


def test_stop_ends_every_thread_and_can_be_repeated(framework: MessageHubTestFramework) -> None:
    service = framework.create_mock_service("service-a")
    service.subscribe_to_events(["test.event"])
    framework.client("service-b").publish_event("test.event", {})
    service.expect_event("test.event")
    assert own_threads()
    framework.stop()
    assert own_threads() == []
    framework.stop()


def test_a_stopped_framework_starts_anew(memory: MessageHubTestFramework) -> None:
    memory.create_mock_service("service-a").send_message("service-a", {"number": 1})
    memory.stop()
    again = memory.create_mock_service("service-a")
    again.send_message("service-a", {"number": 2})
    assert again.expect_message().payload == {"number": 2}


def test_a_framework_that_is_dropped_stops(hub_url: str) -> None:
    name = f"dropped-{uuid4().hex[:6]}"

    def forgetful_test() -> threading.Event:
        framework = MessageHubTestFramework(hub_url, isolated=False)
        framework.create_mock_service(name).send_message(name, {})
        assert framework._state is not None
        return framework._state.stopped

    stopped = forgetful_test()
    gc.collect()
    assert stopped.wait(10)
    for thread in own_threads():  # the one that stopped it is on its way out
        thread.join(30)
    assert depths(hub_url, f"{name}.messages") == [None]
    assert own_threads() == []


@pytest.mark.parametrize("stopping", ["framework = None", "pass"])
def test_a_framework_left_at_exit_ends_with_the_interpreter(hub_url: str, stopping: str) -> None:
    name = f"left-{uuid4().hex[:6]}"
    program = (
        "from message_hub_sync.testing import MessageHubTestFramework\n"
        f"framework = MessageHubTestFramework({hub_url!r}, isolated=False)\n"
        f"framework.create_mock_service({name!r}).send_message({name!r}, {{}})\n"
        f"{stopping}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert depths(hub_url, f"{name}.messages") == [None]


def test_the_framework_needs_no_pytest() -> None:
    program = (
        "import sys; import message_hub_sync.testing as t; t.MessageHubTestFramework().create_mock_service('a');"
        "assert not {'pytest', 'pika', 'click'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- the clock ------------------------------------------------------------------------------------


def test_retries_over_an_hour_take_no_time(virtual: MessageHubTestFramework) -> None:
    service = virtual.create_mock_service("service-a")
    service.fail_next(3, ValueError("not yet"))
    service.send_message("service-a", {"number": 1}, ttl=None)
    for delay in (1, 5):
        virtual.advance(delay)
        assert service.messages_received == []
    virtual.advance(29)
    virtual.advance(0)
    assert service.messages_received == []
    virtual.advance(1)
    assert service.expect_message().payload == {"number": 1}
    assert [str(error) for _, error in service.deliveries_failed] == ["not yet"] * 3


def test_time_does_not_pass_while_a_handler_stands_still(virtual: MessageHubTestFramework) -> None:
    go = threading.Event()
    service = virtual.create_mock_service("service-a")
    service.reply_with(lambda message: go.wait(30))
    service.send_message("service-a", {})
    service.expect_message()
    with pytest.raises(AssertionError, match="still being handled"):
        virtual.advance(1, timeout=0.01)
    go.set()
    virtual.advance(1)


def test_only_a_virtual_clock_can_be_advanced(memory: MessageHubTestFramework) -> None:
    with pytest.raises(MessageHubConfigurationError, match="virtual_clock=True"):
        memory.advance(1)
    with pytest.raises(MessageHubConfigurationError, match="memory://"):
        MessageHubTestFramework("amqp://localhost", virtual_clock=True).start()


def test_failures_are_listened_to_only_while_it_runs(memory: MessageHubTestFramework) -> None:
    listeners = logging.getLogger("message_hub_sync.subscription").handlers
    before = len(listeners)
    memory.stop()
    assert len(listeners) == before - 1


@pytest.mark.parametrize("steps", [(3600,), (1, 5, 30), (6, 3594)])
def test_one_advance_runs_every_attempt_that_falls_due_and_makes_the_dead_letter(steps: tuple[float, ...]) -> None:
    with MessageHubTestFramework(virtual_clock=True) as framework:
        service = framework.create_mock_service("import-service")
        service.fail_next(4, TimeoutError("closed"))
        service.send_message("import-service", {"n": 1}, ttl=None)
        for seconds in steps:
            framework.advance(seconds, timeout=60)
        assert len(service.deliveries_failed) == 4
        assert framework.export_dead_letter("import-service.messages", timeout=30).failure["attempts"] == 4


@pytest.mark.parametrize(
    ("ttl", "before", "after", "attempts"),
    [(4, 3.5, 0, 1), (6, 3.5, 0, 2), (6, 3.5, 2, 1), (6, 3.5, 1, 2), (2, 0, 0, 2), (1, 0, 0, 1)],
)
def test_a_ttl_passes_by_the_virtual_clock(ttl: float, before: float, after: float, attempts: int) -> None:
    """The message waits in the inbox ``before`` its first attempt, 1 s for its retry, and in the inbox ``after`` it."""
    with MessageHubTestFramework(virtual_clock=True) as framework:
        client = framework.client("import-service")
        handled: list[Message] = []

        def fail_once(message: Message) -> None:
            handled.append(message)
            if len(handled) == 1:
                raise TimeoutError("closed")

        client.subscribe_messages(fail_once).cancel()
        framework.advance(1_000_000)  # time that passed before does not count
        client.send_message("import-service", {"n": 1}, ttl=ttl)
        framework.advance(before)
        subscription = client.subscribe_messages(fail_once)
        framework.advance(0)
        subscription.cancel()
        framework.advance(1 + after)
        client.subscribe_messages(fail_once)
        framework.advance(0)

        assert len(handled) == attempts
        if attempts == 1:
            reason = framework.export_dead_letter("import-service.messages", timeout=30).failure["reason"]
            assert "ttl" in reason or "expired" in reason
