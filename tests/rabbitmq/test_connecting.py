"""Connections to a real node: lost, refused, failed over, forked, and nothing left of them at the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from locking import held
from mailing import mailing

from message_hub_sync import CircuitBreakerConfig, MessageHubClient
from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError, MessageHubError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode
from message_hub_sync.transport.base import ConnectionState, PublishResult
from message_hub_sync.transport.rabbitmq import backoff
from message_hub_sync.transport.topology import inbox_subscription

pytestmark = pytest.mark.rabbitmq

DESCRIPTORS = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts descriptors in /proc")


def descriptors() -> int:
    return len(list(DESCRIPTORS.iterdir()))


def io_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-io")]


def test_a_wrong_password_is_an_authorization_error_at_once(bench: Any) -> None:
    transport = bench.transport(bench.node.url.replace("guest:guest", "guest:s3cret"))
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(MessageHubAuthorizationError, match="user 'guest'") as caught:
            transport.connect(bench.within(120))
        assert "s3cret" not in str(caught.value)
    took = time.monotonic() - began
    assert took < 60
    assert bench.node.log().count("invalid credentials") <= 3 + took  # no storm of attempts


def test_a_wrong_vhost_is_an_authorization_error_at_once(bench: Any) -> None:
    with pytest.raises(MessageHubAuthorizationError, match="virtual host 'nowhere'"):
        bench.transport(bench.node.vhost_url("nowhere")).connect(bench.within(5))


def test_a_password_changed_while_connected_is_told_to_callers_and_recovered_from(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    node = bench.node
    node.ctl("add_user", bench.service, "old")
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    transport = bench.transport(node.url.replace("guest:guest", f"{bench.service}:old"))
    transport.declare(inbox_subscription(bench.service), bench.within())
    node.ctl("change_password", bench.service, "new")
    node.ctl("close_all_connections", "test")
    # Until the loss is noticed, the connection counts as open.
    assert eventually(lambda: transport.status()[0].state is ConnectionState.RECOVERING)
    with pytest.raises(MessageHubAuthorizationError):
        transport.publish(bench.message(), bench.within(5))
    node.ctl("change_password", bench.service, "old")

    def back() -> bool:
        try:
            return transport.publish(bench.message(), bench.within(5)).wait(bench.within(5)) is PublishResult.CONFIRMED
        except MessageHubError:
            return False

    assert eventually(back, timeout=30)


def test_a_client_used_before_the_broker_is_up_works_once_it_is(
    bench: Any, in_thread: Callable[..., SimpleQueue[Any]]
) -> None:
    bench.kill()
    transport = bench.transport()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(MessageHubConnectionError):
            transport.publish(bench.message(), bench.within(0.5))
        assert time.monotonic() - began < 30
    waiting = in_thread(lambda: transport.connect(bench.within(60)))
    bench.node.start()
    assert waiting.get(timeout=60) is None
    assert len(io_threads()) == 1


def test_who_calls_while_the_thread_backs_off_profits_from_a_broker_that_came_back(
    bench: Any, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.kill()
    assert eventually(lambda: transport.status()[0].state is ConnectionState.RECOVERING)
    monkeypatch.setattr(backoff, "_LONGEST_PAUSE", 600.0)
    transport._publish_connection.recovering._backoff._rounds = 20  # without a caller, the next attempt is far away
    attempts = transport.status()[0].last_error_at
    assert eventually(lambda: transport.status()[0].last_error_at != attempts)
    bench.node.start()
    bench.confirmed(transport)


def test_a_stopped_broker_holds_up_no_caller_past_its_deadline(bench: Any) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    newcomer = bench.transport()
    bench.node.suspend()
    try:
        began = time.monotonic()
        receipt = transport.publish(bench.message(), bench.within(0.3))
        assert receipt.wait(began + 0.3) is None
        with pytest.raises(MessageHubConnectionError):
            transport.queue_stats(["x"], bench.within(0.3))
        with pytest.raises(MessageHubConnectionError):
            newcomer.connect(bench.within(0.3))
        newcomer.close(bench.within(0.5))
        assert time.monotonic() - began < 30
    finally:
        bench.node.resume()
    assert receipt.wait(bench.within()) is PublishResult.CONFIRMED


def test_closing_does_not_wait_for_a_question_that_nobody_answers(
    bench: Any, in_thread: Callable[..., SimpleQueue[Any]], eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    transport.connect(bench.within())
    bench.node.suspend()
    try:
        question = in_thread(lambda: transport.queue_stats(["x"], bench.within(120)))
        assert eventually(lambda: bool(transport._publish_connection.recovering._connection._channels.keys() - {1}))
        began = time.monotonic()
        transport.close(began + 0.5)
        error = question.get(timeout=120)
        assert isinstance(error, MessageHubConnectionError)
        assert time.monotonic() - began < 60
    finally:
        bench.node.resume()


def test_the_next_host_is_taken_when_one_dies(bench: Any, eventually: Callable[..., bool]) -> None:
    with RabbitMQNode() as second:
        transport = bench.transport([bench.node.url, second.url], hosts_in_order=True)
        consumer = bench.consume(transport)
        bench.confirmed(transport)
        consumer.ack(bench.take(consumer))
        bench.kill()
        try:
            assert eventually(
                lambda: bool(consumer.active) and consumer._consumer_channel.connection.params.port == second.port
            )
            bench.confirmed(transport)
            consumer.ack(bench.take(consumer))
            assert transport.status()[0].address.endswith(str(second.port))
            transport.close(bench.within(5))
        finally:
            bench.node.start()


def test_a_restarting_broker_is_never_taken_for_a_wrong_password(bench: Any) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    stop = threading.Event()
    errors: list[MessageHubError] = []

    def connect_over_and_over() -> None:
        while not stop.is_set():
            newcomer = bench.transport(service_name="newcomer")
            try:
                newcomer.connect(bench.within(5))
            except MessageHubError as error:
                errors.append(error)
            finally:
                newcomer.close(bench.within(2))

    callers = [threading.Thread(target=connect_over_and_over) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(2):
            bench.node.ctl("stop_app")
            bench.node.ctl("start_app")
        bench.kill()
        bench.node.start()
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)
    assert {type(error) for error in errors} <= {MessageHubConnectionError}
    assert not [error for error in errors if "does not speak" in str(error)]
    bench.confirmed(transport)


def test_heartbeats_keep_an_idle_connection_on_both_sides(bench: Any) -> None:
    transport = bench.transport(heartbeat=1)
    consumer = bench.consume(transport)
    transport.connect(bench.within())
    connections = [transport._publish_connection.recovering._connection, consumer._consumer_channel.connection]
    # The broker ends a connection after two silent heartbeats, pika after one and five seconds.
    worked = time.process_time()
    assert not threading.Event().wait(8)
    assert time.process_time() - worked < 4  # it sleeps between them
    assert all(connection.alive for connection in connections)
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))


@needs_proc
def test_200_clients_made_and_closed_leave_no_descriptor_and_no_thread(bench: Any) -> None:
    def once() -> None:
        transport = bench.transport()
        consumer = bench.consume(transport)
        bench.confirmed(transport)
        consumer.ack(bench.take(consumer))
        consumer.close(bench.within())
        transport.close(bench.within())

    once()
    before, threads = descriptors(), threading.active_count()
    for _ in range(200):
        once()
    assert descriptors() <= before
    assert threading.active_count() <= threads


@needs_proc
def test_reconnecting_leaves_no_descriptor_and_no_thread(
    bench: Any, eventually: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_STABLE_SECONDS", 0.0)  # so that there is no pause between them
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    before, threads = descriptors(), threading.active_count()
    for _ in range(50):
        for link in (transport._publish_connection.recovering, transport._consume_connection.recovering):
            connection = link._connection
            with held(connection.lock):
                connection.kill(ConnectionError("cut"))
            assert eventually(
                lambda link=link, old=connection: link.state is ConnectionState.OPEN and link._connection is not old,
                timeout=15,
            )
    bench.confirmed(transport)
    assert eventually(lambda: bool(consumer.active))
    assert descriptors() <= before
    assert threading.active_count() <= threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_drops_its_copy_and_the_parent_does_not_notice(bench: Any) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = b"failed"
        try:
            links = (transport._publish_connection.recovering, transport._consume_connection.recovering)
            sockets = [link._connection._socket.fileno() for link in links]
            transport.after_fork_in_child()
            closed = all(not os.path.exists(f"/proc/self/fd/{number}") for number in sockets)
            own = bench.transport()
            bench.confirmed(own)
            own.close(bench.within(5))
            outcome = b"ok" if closed or not DESCRIPTORS.exists() else b"sockets are open"
        finally:
            os.write(writer, outcome)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"ok"
    os.waitpid(child, 0)
    bench.confirmed(transport)
    for _ in range(2):
        delivery = bench.take(consumer)
        assert delivery.channel_generation == 1
        consumer.ack(delivery)
    assert "UNEXPECTED_FRAME" not in bench.node.log()


def test_no_log_of_ours_or_of_pika_holds_the_password_at_any_level(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = bench.node
    node.ctl("add_user", bench.service, "s3cret-Passw0rd")
    node.ctl("set_permissions", bench.service, ".*", ".*", ".*")
    url = node.url.replace("guest:guest", f"{bench.service}:s3cret-Passw0rd")
    with caplog.at_level(logging.DEBUG):
        transport = bench.transport(url)
        consumer = bench.consume(transport)
        bench.confirmed(transport, bench.message("the body"))
        bench.publish(transport, bench.message("the body", to="nobody"))
        bench.take(consumer)
        node.ctl("close_all_connections", "test")
        bench.confirmed(transport)
        transport.close(bench.within())
        wrong = bench.transport(url.replace("s3cret-Passw0rd", "s3cret-too"))
        with pytest.raises(MessageHubAuthorizationError):
            wrong.connect(bench.within(2))
    text = "\n".join(f"{record.getMessage()} {record.args!r} {record.exc_text}" for record in caplog.records)
    assert "s3cret" not in text
    assert "the body" not in text
    assert "recovering" in text
    assert not [record for record in caplog.records if record.name.startswith("pika")]


def test_a_logging_handler_may_publish(bench: Any) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    results: SimpleQueue[Any] = SimpleQueue()

    class Publishing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Publishing needs this lock: a thread that logs while it holds it would wait for itself.
            lock = transport._publish_connection._shared.connection.lock
            free = not lock._is_owned()
            results.put((record.getMessage(), free))

    handler = Publishing()
    loggers = [logging.getLogger("message_hub_sync.rabbitmq"), logging.getLogger("pika")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        poison = bench.message()
        poison.exchange = "no-such-exchange"
        bench.publish(transport, poison)
        bench.node.ctl("close_all_connections", "test")
        bench.confirmed(transport)
        transport.close(bench.within())
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    answers = [results.get_nowait() for _ in range(results.qsize())]
    assert answers
    assert all(free for _, free in answers), answers


def test_a_logging_handler_that_publishes_with_the_same_client_holds_nothing_up(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    calls: SimpleQueue[tuple[str, float, str]] = SimpleQueue()
    busy = threading.local()

    class Publishing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(busy, "here", False):
                return  # what its own publishing says
            busy.here = True
            began, error = time.monotonic(), "none"
            try:
                client.send_message(bench.service, {"text": record.getMessage()}, timeout=60)
            except MessageHubError as caught:
                error = f"{type(caught).__name__}: {caught}"
            finally:
                busy.here = False
                thread = threading.current_thread().name
                calls.put((f"{thread}: {record.getMessage()}: {error}", time.monotonic() - began, thread))

    breaker = CircuitBreakerConfig(failure_threshold=1, reset_timeout=600)
    ours, handler = logging.getLogger("message_hub_sync"), Publishing(logging.INFO)
    with MessageHubClient(bench.service, bench.node.url, circuit_breaker_config=breaker) as client:
        client.subscribe_messages(lambda message: None)
        client.send_message(bench.service, {"text": "x"})
        level = ours.level
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            for _ in range(2):
                lost = client._lifecycle.session().transport._publish_connection.recovering._connection
                bench.node.ctl("close_all_connections", "test")
                assert eventually(
                    lambda lost=lost: (
                        (link := client._lifecycle.session().transport._publish_connection.recovering).state
                        is ConnectionState.OPEN
                        and link._connection is not lost
                    )
                )
                client.send_message(bench.service, {"text": "x"})  # its circuit admits it as the trial
                assert client.get_health_status()["circuit_breaker_state"] == "closed"
        finally:
            ours.removeHandler(handler)
            ours.setLevel(level)
    answers = [calls.get_nowait() for _ in range(calls.qsize())]
    assert [text for text, _, thread in answers if thread.endswith("publish-io")]
    assert [text for text, took, _ in answers if took > 30] == [], "one that waits for itself takes 60 s"


def test_a_logging_handler_that_raises_costs_no_consumer_its_connection(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    consumer = bench.consume(transport)
    with mailing():
        for _ in range(2):
            before = consumer._consumer_channel
            bench.node.ctl("close_all_connections", "test")
            assert eventually(lambda before=before: consumer._consumer_channel is not before and bool(consumer.active))
        bench.confirmed(transport)
        consumer.ack(bench.take(consumer))


def test_a_login_that_is_larger_than_the_brokers_first_frames_is_refused_at_once(bench: Any) -> None:
    """For example a token of 6 kB as the password: RabbitMQ 3.10 takes 4 kB before frame sizes are negotiated."""
    transport = bench.transport(bench.node.url.replace("guest:guest", "guest:" + "s3cret" * 1000), connect_timeout=60)
    # Newer brokers take 8 kB and refuse the login itself.
    with pytest.raises(MessageHubAuthorizationError, match=r"initial_frame_max|did not accept the login") as caught:
        transport.connect(bench.within(60))
    assert "s3cret" not in str(caught.value)


def test_closing_under_a_memory_alarm_waits_for_no_answer_of_the_broker(
    bench: Any, eventually: Callable[..., bool]
) -> None:
    transport = bench.transport()
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    bench.node.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        transport.publish(bench.message(), bench.within())  # the broker announces its alarm to those that publish
        assert eventually(lambda: transport.status()[0].state is ConnectionState.BLOCKED, timeout=60)
        began = time.monotonic()
        transport.close(began + 60)
        assert time.monotonic() - began < 30
    finally:
        bench.node.ctl("set_vm_memory_high_watermark", "0.6")
