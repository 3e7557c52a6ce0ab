"""The client as a process has it: settings, forks, signals, event loops, the interpreter's end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import locking
import pytest
from collector import Collector
from interrupting import interrupted
from mailing import mailing
from scripted_transport import ScriptedTransport

from message_hub_sync import (
    MESSAGE_COUNTER,
    MESSAGE_LATENCY,
    Message,
    MessageHubClient,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageValidationError,
    RetryPolicy,
    Subscription,
)
from message_hub_sync.transport.topology import QueueSpec, Topology

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def client() -> Any:
    with MessageHubClient("image-service", f"memory://{os.urandom(4).hex()}") as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [
        {"service_name": ""},
        {"service_name": "Image Service"},
        {"service_name": None},
        {"rabbitmq_url": "http://localhost"},
        {"rabbitmq_url": ""},
        {"rabbitmq_url": []},
        {"auth_key": ""},
        {"circuit_breaker_config": 5},
        {"connect_timeout": 0},
        {"delivery_timeout": float("nan")},
        {"close_timeout": "5"},
        {"heartbeat": 0},
        {"queue_type": "stream"},
        {"message_priorities": "yes"},
        {"strict_catalogue": 1},
        {"settle_each": None},
        {"ssl_context": 1},
        {"max_message_bytes": 0},
        {"retry": 3},
    ],
)
def test_a_wrong_setting_is_refused_when_the_client_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(MessageHubConfigurationError):
        MessageHubClient(**{"service_name": "image-service", "rabbitmq_url": "memory://", **options})


def test_nothing_starts_before_it_is_needed() -> None:
    before = threading.active_count()

    client = MessageHubClient("image-service", "amqp://nowhere.invalid")

    assert threading.active_count() == before
    assert client.get_health_status()["status"] == "idle"


def test_neither_key_nor_password_shows() -> None:
    client = MessageHubClient("image-service", "amqp://user:s3cret@nowhere.invalid", auth_key="k3y")

    shown = repr(client) + json.dumps(client.get_health_status()) + repr(vars(client))

    assert "s3cret" not in shown
    assert "k3y" not in shown


def test_a_call_inside_a_running_event_loop_warns_once(
    client: MessageHubClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def calling() -> None:
        client.publish_event("quest.started", {"n": 1})
        client.publish_event("quest.started", {"n": 2})

    asyncio.run(calling())
    client.publish_event("quest.started", {"n": 3})

    assert [r.getMessage() for r in caplog.records if "event loop" in r.getMessage()][1:] == []
    assert "asyncio.to_thread" in caplog.text


def test_a_priority_without_effect_is_warned_about_once(
    client: MessageHubClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.subscribe_messages(lambda message: None)
    for _ in range(2):
        client.send_message("image-service", {"n": 1}, priority=5)

    assert caplog.text.count("message_priorities=True") == 1


def test_a_logging_handler_that_raises_keeps_nothing_from_being_sent(client: MessageHubClient) -> None:
    received = Collector()
    client.subscribe_messages(received)

    with mailing():
        client.send_message("image-service", {"n": 1}, priority=5)

    received.wait()


def test_under_uwsgi_without_threads_a_timeout_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    uwsgi = types.ModuleType("uwsgi")
    uwsgi.opt = {"http": b":8000"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    client = MessageHubClient("image-service", "amqp://127.0.0.1:1", connect_timeout=0.2, delivery_timeout=0.2)

    with pytest.raises(MessageHubConnectionError, match="uWSGI without enable-threads"):
        client.connect()
    with pytest.raises(MessageHubConnectionError, match="uWSGI without enable-threads"):
        client.publish_event("quest.started", {"n": 1})

    uwsgi.opt["enable-threads"] = True
    with pytest.raises(MessageHubConnectionError) as caught:
        client.publish_event("quest.started", {"n": 1})
    assert "uWSGI" not in str(caught.value)
    client.close()


def test_the_parent_of_a_reloader_never_connects(
    client: MessageHubClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parent = MessageHubClient("image-service", "amqp://nowhere.invalid")
    for module in (
        "message_hub_sync.client.client",
        "message_hub_sync.client.calls",
        "message_hub_sync.consuming.subscription",
    ):
        monkeypatch.setattr(f"{module}.reloader_parent", lambda: "flask")

    with caplog.at_level(logging.INFO):
        parent.connect()
        subscription = parent.subscribe(["quest.started"], lambda event: None)
        with pytest.raises(MessageHubConnectionError, match="parent of the flask reloader"):
            parent.publish_event("quest.started", {"n": 1})

    assert not subscription.active
    assert parent.get_health_status()["connections"] == []
    assert [record.levelno for record in caplog.records if "reloader" in record.getMessage()] == [logging.INFO] * 2


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (("quest.started", "text"), "payload"),
        (("Quest", {}), "event type"),
        (7, r"it must be a pair \(event_type, payload\) or an envelope, not int$"),
    ],
)
def test_of_many_the_item_that_is_not_usable_is_named(client: MessageHubClient, second: Any, reason: str) -> None:
    with pytest.raises(MessageValidationError, match=f"^item 1: .*{reason}"):
        client.publish_events([("quest.started", {"n": 1}), second])


def test_a_call_that_is_refused_warns_of_no_unknown_event(
    client: MessageHubClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MessageValidationError, match="correlation_id"):
        client.publish_event("quest.refused_at_once", {"n": 1}, correlation_id="")
    with pytest.raises(MessageValidationError):
        client.subscribe("quest.refused_at_once", "no handler")  # type: ignore[arg-type]

    assert caplog.text == ""


# --- decorators ----------------------------------------------------------------------------------


def test_on_event_without_parentheses_is_refused(client: MessageHubClient) -> None:
    with pytest.raises(MessageValidationError, match=r'@client\.on_event\("character\.created"\)'):

        @client.on_event
        def handle(event: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("event_types", [(), ("Quest Started",), (["quest.started"],), (7,)])
def test_on_event_refuses_wrong_event_types_before_it_decorates(
    client: MessageHubClient, event_types: tuple[Any, ...]
) -> None:
    with pytest.raises(MessageValidationError):
        client.on_event(*event_types)


def test_an_option_that_no_decorator_has_is_refused_before_it_decorates(client: MessageHubClient) -> None:
    with pytest.raises(TypeError, match="durrable"):
        client.on_event("quest.started", durrable=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="durable"):
        client.on_message(durable=False)  # type: ignore[call-overload]


# --- fork ----------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked child, by way of JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # one that waits for ever is a failure too
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def test_a_forked_child_begins_anew_and_its_subscriptions_are_inactive_until_started(
    client: MessageHubClient, collected: Collector
) -> None:
    subscription = client.subscribe(["quest.started"], collected)

    def child() -> list[Any]:
        before = client.get_health_status()
        received = Collector()
        own = client.subscribe_messages(received)
        client.send_message("image-service", {"n": 1})
        received.wait()
        subscription.start()
        return [
            before["status"],
            before["subscriptions"],
            before["queues"],
            own.active,
            subscription.active,
            client.get_health_status()["connected"],
        ]

    holders: list[Any] = [
        client._lifecycle,
        client._lifecycle.session().subscriptions,
        MESSAGE_COUNTER,
        MESSAGE_LATENCY,
    ]
    holders.append(MESSAGE_COUNTER.labels("image-service", "send", "success")._value)
    holders.append(MESSAGE_LATENCY.labels("image-service", "receive")._sum)
    with contextlib.ExitStack() as held:  # as if by a thread that will not exist in the child
        for holder in holders:
            lock = holder._lock
            held.enter_context(lock if hasattr(lock, "__enter__") else locking.held(lock))
        answer = in_a_child(child)

    inactive = {"image-service.quest.started": {"active": False, "event_types": ["quest.started"], "error": None}}
    inactive["image-service.quest.started"]["possibly_limited"] = False
    assert answer == ["degraded", ["quest.started"], inactive, True, True, True]
    client.publish_event("quest.started", {"n": 2})
    collected.wait()
    assert subscription.active


def test_a_logging_handler_that_publishes_through_the_client_holds_no_forked_child_up(
    client: MessageHubClient, collected: Collector
) -> None:
    client.subscribe(["quest.started"], collected)

    def child() -> list[str]:
        heard: list[str] = []

        class Publishing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                client.publish_event("quest.started", {"text": record.getMessage()})
                heard.append(record.getMessage())

        ours = logging.getLogger("message_hub_sync.client")
        ours.addHandler(Publishing())
        ours.setLevel(logging.INFO)
        client.publish_event("quest.started", {"n": 1})
        client.publish_event("quest.started", {"n": 2})
        return heard

    assert in_a_child(child) == [
        "1 subscriptions of image-service consume in the process that made them, and are inactive in this forked "
        "process until their start(): to consume in a process of its own, run `message-hub consume`"
    ]


@pytest.mark.parametrize("url", ["memory://", "amqp://127.0.0.1:1"])
def test_everything_is_imported_where_the_client_is_made(url: str) -> None:
    process = start(
        f"""
        client = MessageHubClient("image-service", {url!r}, connect_timeout=0.1, delivery_timeout=0.1)
        before = set(sys.modules)
        for call in (
            client.connect,
            lambda: client.publish_event("quest.started", {{}}),
            lambda: client.subscribe(["quest.started"], print),
        ):
            try:
                call()
            except Exception:
                pass
        print(sorted(name for name in set(sys.modules) - before if name.startswith("message_hub_sync")))
        """
    )

    out, err = process.communicate(timeout=20)

    assert out.split() == ["[]"], err


def test_a_child_drops_its_parents_connections_without_a_word_on_them(client: MessageHubClient) -> None:
    client.connect()
    session = client._lifecycle.session()
    real, scripted = session.transport, ScriptedTransport()
    session.transport = scripted

    client._lifecycle.after_fork_in_child()

    assert scripted.asked() == ["after_fork_in_child"]
    assert client._lifecycle.session() is not session
    real.close(time.monotonic() + 1)


def test_a_client_closed_in_a_child_stays_open_in_the_parent(client: MessageHubClient) -> None:
    client.publish_event("quest.started", {"n": 1})

    assert in_a_child(lambda: client.close()) is None

    client.publish_event("quest.started", {"n": 2})


# --- dropped without close() ------------------------------------------------------------------------


def a_client(**options: Any) -> MessageHubClient:
    return MessageHubClient("image-service", f"memory://{os.urandom(4).hex()}", **options)


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    """The texts of warnings, without the place that each must name: where the client was created."""
    assert all(f"created at {__file__}:" in str(each.message) for each in caught)
    return [re.sub(" created at .*:[0-9]+,", "", str(each.message)) for each in caught]


def warned(use: Callable[[MessageHubClient], Any]) -> list[str]:
    """The warnings when a client is dropped after ``use``."""
    client = a_client()
    lifecycle = client._lifecycle
    kept = use(client)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    del kept
    lifecycle.session().close(time.monotonic() + 5)
    assert {each.category for each in caught} <= {ResourceWarning}
    return texts(caught)


DROPPED = (
    "the client of image-service, was dropped without close(): its connections and their threads stay until the "
    "process ends"
)


def test_a_client_dropped_with_its_connections_open_says_so() -> None:
    assert warned(MessageHubClient.connect) == [DROPPED]
    assert warned(lambda client: client.publish_event("quest.started", {"n": 1})) == [DROPPED]


@pytest.mark.skipif(sys.version_info[:2] == (3, 11), reason="tracemalloc of Python 3.11 does not find instances")
def test_the_warning_leads_to_where_the_client_was_made() -> None:
    tracemalloc.start(10)
    try:
        client = a_client()
        lifecycle = client._lifecycle
        client.connect()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
        assert caught[0].filename == __file__
        made = tracemalloc.get_object_traceback(caught[0].source)
        lifecycle.session().close(time.monotonic() + 5)
    finally:
        tracemalloc.stop()
    assert made is not None
    assert __file__ in {frame.filename for frame in made}


def subscribe(client: MessageHubClient) -> Subscription:
    client.connect()
    return client.subscribe(["quest.started"], lambda event: None)


def test_only_a_client_that_leaves_something_behind_warns() -> None:
    def closed(client: MessageHubClient) -> None:
        client.connect()
        client.close()

    def cancelled(client: MessageHubClient) -> None:
        subscribe(client).cancel()

    assert warned(lambda client: None) == []
    assert warned(MessageHubClient.get_health_status) == []
    assert warned(closed) == []
    assert warned(subscribe) == []
    assert warned(cancelled) == [DROPPED]


def test_a_client_may_be_collected_in_a_thread_that_holds_its_locks() -> None:
    client = a_client()
    client.connect()
    lifecycle = client._lifecycle
    session = lifecycle.session()
    transport: Any = session.transport
    locks = [lifecycle._lock, session._lock, session.subscriptions._lock, transport._lock]
    with contextlib.ExitStack() as held, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for lock in locks:
            held.enter_context(lock if hasattr(lock, "__enter__") else locking.held(lock))
        del client
    assert texts(caught) == [DROPPED]
    session.close(time.monotonic() + 5)


def test_a_forked_child_warns_of_its_own_connections_only() -> None:
    clients = [a_client()]
    clients[0].connect()

    def drop(used: bool) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if used:
                clients[0].connect()
            clients.clear()
        return texts(caught)

    assert in_a_child(lambda: drop(False)) == []
    assert in_a_child(lambda: drop(True)) == [DROPPED]
    clients[0].close()


# --- whole processes -----------------------------------------------------------------------------


def start(code: str) -> subprocess.Popen[str]:
    head = """
        import logging, sys, threading, time
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
        from message_hub_sync import MessageHubClient
        client = MessageHubClient("image-service", "memory://", close_timeout=3)
    """
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_at_the_interpreters_end_a_client_is_closed_and_nothing_is_said() -> None:
    process = start(
        """
        import gc, warnings
        warnings.simplefilter("always")
        client.connect()
        class Owner:
            pass
        owner = Owner()
        owner.client, owner.itself = MessageHubClient("llm-service", "memory://"), owner
        owner.client.connect()
        gc.disable()  # left to what ends the interpreter
        del owner
        """
    )
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_run_forever_and_earlier_handlers_come_back(number: signal.Signals) -> None:
    process = start(
        """
        import os, signal
        def say(word):
            os.write(1, word.encode() + b"\\n")  # at once: two threads speak
        from message_hub_sync.runtime.signals import StopSignals
        wait, pause, subscribed = StopSignals.wait, threading.Event(), threading.Event()
        StopSignals.wait = lambda signals: (say("waiting"), wait(signals))
        before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        def handle(message):
            say("started")
            subscribed.wait(30)
            while subscription.active:  # until the signal has ended it
                pause.wait(0.01)
            say("finished")
        subscription = client.subscribe_messages(handle)
        subscribed.set()
        client.send_messages([("image-service", {"n": n}) for n in range(3)])
        client.run_forever()
        print(client.get_health_status()["connected"])
        print([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before)
        """
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"started\n", "waiting\n"}
    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert out.split() == ["finished", "False", "True"], err
    assert process.returncode == 0


def test_a_script_that_ends_with_live_subscriptions_is_told_so_and_ends() -> None:
    process = start("client.subscribe_messages(lambda message: None)")

    _, err = process.communicate(timeout=20)

    assert process.returncode == 0
    assert err.count("image-service: the interpreter exits with 1 active subscriptions, which end now") == 1
    assert err.count("call run_forever() to keep a script serving") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "end",
    [
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getpid(), signal.SIGTERM)",
        "raise KeyboardInterrupt",
        "import types; sys.modules['gunicorn'] = types.ModuleType('gunicorn')",
        "sys.modules['werkzeug.serving'] = threading",
    ],
)
def test_what_a_server_or_a_signal_ended_is_not_told_to_run_for_ever(end: str) -> None:
    process = start(f"import os\nclient.subscribe_messages(lambda message: None)\n{end}")

    _, err = process.communicate(timeout=20)

    assert err.count("image-service: the interpreter exits with 1 active subscriptions, which end now\n") == 1
    assert "run_forever" not in err


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(3)", 3),
        ("raise RuntimeError('uncaught')", 1),
        ("import atexit; atexit.register(lambda: client.publish_event('quest.started', {'n': 1}))", 0),
    ],
)
def test_the_interpreter_ends_whatever_a_script_does(code: str, expected: int) -> None:
    process = start("client.subscribe_messages(lambda message: None)\nclient.connect()\n" + code)

    process.communicate(timeout=20)

    assert process.returncode == expected


def test_a_stuck_handler_does_not_keep_the_interpreter() -> None:
    process = start(
        """
        client = MessageHubClient("image-service", "memory://", close_timeout=0.3)
        inside = threading.Event()
        def handle(message):
            inside.set()
            threading.Event().wait(60)
        client.subscribe_messages(handle)
        client.send_message("image-service", {"n": 1})
        inside.wait(30)
        """
    )

    process.communicate(timeout=20)

    assert process.returncode == 0


@pytest.mark.parametrize("interruptions", [1, 2])
def test_a_close_that_is_interrupted_at_any_moment_is_completed_by_itself_or_by_another_one(
    interruptions: int, collected: Collector
) -> None:
    moment = 0
    came_so_far = True
    while came_so_far:
        client = MessageHubClient(f"closing-{moment}", "memory://")
        subscription = client.subscribe_messages(collected)
        for _ in range(interruptions):
            came_so_far = interrupted(client.close, moment)
        client.close()
        assert subscription.wait(60)
        assert client.run_forever() is True
        assert [connection["state"] for connection in client.get_health_status()["connections"]] == ["closed"]
        moment += 1
    assert moment > 20


def test_a_close_that_is_interrupted_needs_no_other_call_once_its_thread_runs(client: MessageHubClient) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        begun.set()
        go_on.wait(60)

    subscription = client.subscribe_messages(handle)
    client.send_message(client.service_name, {"n": 1})
    assert begun.wait(60)
    moment = 0
    while subscription.active:
        assert interrupted(client.close, moment)
        moment += 1

    go_on.set()

    assert subscription.wait(60)
    assert client.run_forever() is True


def test_a_fault_in_closing_leaves_no_connection_open(
    client: MessageHubClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = client._lifecycle.session()

    def fault(deadline: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(session.requests, "close", fault)
    client.close()

    assert [connection["state"] for connection in client.get_health_status()["connections"]] == ["closed"]
    assert "a step of closing the client failed" in caplog.text


def test_run_forever_off_the_main_thread_leaves_signals_alone(client: MessageHubClient) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look_and_close() -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        client.close()

    def running() -> None:
        threading.Timer(0.1, look_and_close).start()
        client.run_forever()

    thread = threading.Thread(target=running)
    thread.start()
    thread.join(30)

    assert not thread.is_alive()
    assert seen == [before]


def test_run_forever_of_a_closed_client_returns(client: MessageHubClient) -> None:
    client.subscribe_messages(lambda message: None)
    client.close()

    client.run_forever()

    assert repr(client) == "<MessageHubClient image-service (closed)>"


@pytest.mark.parametrize("subscribed", [True, False])
def test_run_forever_without_a_subscription_says_so(
    client: MessageHubClient, caplog: pytest.LogCaptureFixture, subscribed: bool
) -> None:
    if subscribed:
        client.subscribe_messages(lambda message: None)
    threading.Timer(0.1, client.close).start()

    client.run_forever()

    assert ("nothing is subscribed to" in caplog.text) is not subscribed


def test_a_policy_of_the_client_holds_for_its_subscriptions(collected: Collector) -> None:
    def fail(message: Any) -> None:
        raise ValueError("always")

    with MessageHubClient("image-service", f"memory://{os.urandom(4).hex()}", retry=RetryPolicy.none()) as client:
        client.subscribe_messages(fail)
        client.send_message("image-service", {"n": 1})
        dead = Topology(QueueSpec("image-service.messages.dead"))
        transport = client._lifecycle.session().transport
        consumer = transport.consume(dead, prefetch=1, deadline=time.monotonic() + 5)

        delivery = consumer.deliveries.get(timeout=30)

        assert delivery is not None
        assert delivery.properties.headers["x-attempts"] == 1


def test_a_closed_client_is_collected_though_a_handler_of_its_inbox_refers_to_it() -> None:
    def made_and_closed() -> weakref.ref[MessageHubClient]:
        client = MessageHubClient("character-service", "memory://collected")
        client.subscribe_messages(lambda message: client.service_name)
        client.close()
        return weakref.ref(client)

    gone = made_and_closed()
    gc.collect()
    assert gone() is None
