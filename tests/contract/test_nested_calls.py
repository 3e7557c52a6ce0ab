"""A call that interrupts another call of the client works or is refused at once, and the other call is not harmed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import run

from message_hub_sync import (
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubReentryError,
    MessageHubTimeoutError,
    Middleware,
    Received,
)


@pytest.fixture
def alarm() -> Iterator[Any]:
    """Starts a repeated SIGALRM with a handler, and ends it after the test."""
    earlier = signal.getsignal(signal.SIGALRM)

    def start(handler: Any) -> None:
        signal.signal(signal.SIGALRM, lambda *_: handler())
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)


def test_a_signal_handler_may_publish_while_its_thread_publishes(hub: Any, alarm: Any) -> None:
    client = hub.client("campaign-service")
    client.publish_event("campaign.started", {"n": 0})
    nested: list[str] = []

    def publish() -> None:
        try:
            client.publish_event("campaign.started", {"from": "the signal handler"})
        except MessageHubReentryError:
            nested.append("refused")
        else:
            nested.append("published")

    alarm(publish)
    ends = time.monotonic() + 40
    number = 0
    while (number < 100 or len(nested) < 40) and time.monotonic() < ends:
        number += 1
        assert client.publish_event("campaign.started", {"n": number})
        assert client.get_health_status()["circuit_breaker_state"] == "closed"
    assert len(nested) >= 40
    assert client.get_health_status()["connected"]


def test_a_call_on_a_thread_that_holds_a_lock_is_refused_and_counted_by_no_circuit(hub: Any) -> None:
    client = hub.client("campaign-service")
    client.publish_event("campaign.started", {"n": 0})
    breakers = client._lifecycle.session().breakers

    def publish_often() -> int:
        for _ in range(20):
            with pytest.raises(MessageHubReentryError, match="nothing was sent"):
                client.publish_event("campaign.started", {"n": 1})
            with pytest.raises(MessageHubReentryError, match="nothing was sent"):
                client.publish_events([("campaign.started", {"n": 1})])
        return 20

    assert breakers._lock.run(publish_often) == 20
    assert set(client.get_health_status()["circuit_breakers"].values()) <= {"closed"}
    assert client.publish_event("campaign.started", {"n": 2})


# --- every place where user code may run ------------------------------------------------------------

PROGRAM = str(Path(__file__).parent / "nested_calls.py")
CALLS = ["publish", "bulk", "send", "request", "subscribe", "health", "stats", "close"]
HOW = ["signal", "signal in signal", "gc", "weakref", "logging", "audit", "timer"]


@pytest.mark.parametrize("how", HOW)
def test_calls_in_code_that_interrupts_calls_work_or_are_refused_at_once(hub_url: str, how: str) -> None:
    program = run([PROGRAM, hub_url, how, ",".join(CALLS), "64"], timeout=180)
    assert program.returncode == 0, program.stdout + program.stderr
    outcomes = program.stdout.splitlines()
    assert sum(int(line.split()[0]) for line in outcomes) >= 64
    assert [line for line in outcomes if line.split()[2:] not in (["done"], ["refused"])] == []


@pytest.mark.parametrize("what", ["publish", "bulk", "request", "subscribe", "wait", "close"])
def test_close_in_a_signal_handler_does_not_wait_for_the_call_that_it_interrupts(
    hub: Any, alarm: Any, responder: str, what: str
) -> None:
    client = hub.client("campaign-service", connect_timeout=60, delivery_timeout=60, close_timeout=60)
    subscription = client.subscribe(["campaign.started"], lambda event: None)
    calls: dict[str, Callable[[], Any]] = {
        "publish": lambda: client.publish_event("campaign.started", {}),
        "bulk": lambda: client.publish_events([("campaign.started", {})] * 100),
        "request": lambda: client.request(responder, {"n": 1}, timeout=60),
        "subscribe": lambda: client.subscribe(["campaign.ended"], lambda event: None, durable=False).cancel(),
        "wait": lambda: subscription.wait(50),
        "close": client.close,
    }
    client.publish_event("campaign.started", {})
    closings: list[float] = []

    def close() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # no close inside a close inside a close
        began = time.monotonic()
        with contextlib.suppress(MessageHubReentryError):  # refused at once: a later signal closes it
            client.close()
        closings.append(time.monotonic() - began)
        signal.setitimer(signal.ITIMER_REAL, 0.005)

    alarm(close)
    ends = time.monotonic() + 60
    with contextlib.suppress(MessageHubConnectionError, MessageHubDeliveryError, MessageHubTimeoutError):
        while repr(client) != "<MessageHubClient " + client.service_name + " (closed)>" and time.monotonic() < ends:
            calls[what]()
    signal.setitimer(signal.ITIMER_REAL, 0)
    client.close()
    assert max(closings, default=0.0) < 30, "it must not wait for the call that it interrupted"
    assert "closed" in repr(client)


# --- requests -------------------------------------------------------------------------------------


@pytest.fixture
def responder(hub: Any) -> str:
    """A service that answers each request."""
    client = hub.client("image-service")
    client.subscribe_messages(lambda message: {"answer": message["payload"]["n"]})
    name: str = client.service_name
    return name


def test_a_request_that_interrupts_the_opening_of_the_reply_queue_is_refused_at_once(
    hub: Any, responder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = hub.client("campaign-service", connect_timeout=60)
    transport = client._lifecycle.session().transport
    consume, refused = transport.consume, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        # As a signal handler does that runs on this thread during the opening.
        began = time.monotonic()
        with pytest.raises(MessageHubReentryError, match="nothing was sent"):
            client.request(responder, {"n": 1}, timeout=60)
        refused.append(time.monotonic() - began)
        return consume(*arguments, **options)

    monkeypatch.setattr(transport, "consume", interrupted)
    assert client.request(responder, {"n": 2}, timeout=60).payload == {"answer": 2}
    assert len(refused) == 1
    assert refused[0] < 30, "it must not wait for the call that it interrupted"
    assert client.request(responder, {"n": 3}, timeout=60).payload == {"answer": 3}


def test_a_request_on_the_thread_of_the_replies_is_refused_at_once(hub: Any, responder: str) -> None:
    outcomes: list[str] = []

    class Asking(Middleware):
        def arrived(self, received: Received) -> None:
            try:
                client.request(responder, {"n": 1}, timeout=60)
            except MessageHubReentryError as error:
                outcomes.append(str(error))
            else:
                outcomes.append("answered")

    client = hub.client("campaign-service", middleware=[Asking()])
    began = time.monotonic()
    assert client.request(responder, {"n": 2}, timeout=60).payload == {"answer": 2}
    assert len(outcomes) == 1
    assert "on the thread that receives the replies" in outcomes[0]
    assert time.monotonic() - began < 50


def test_a_handler_may_send_requests_with_the_client_that_runs_it(hub: Any, responder: str) -> None:
    client = hub.client("character-service")
    client.subscribe_messages(lambda message: client.request(responder, message["payload"], timeout=60).payload)
    assert hub.client("campaign-service").request(client.service_name, {"n": 4}, timeout=60).payload == {"answer": 4}
