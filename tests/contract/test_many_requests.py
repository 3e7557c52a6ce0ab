"""Many callers at once, and many that wait in vain."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from contract.conftest import Hub

from message_hub_sync import Message, MessageHubClient, MessageHubConnectionError, MessageHubTimeoutError

CALLERS = 50
EACH = 200


def returns(client: MessageHubClient) -> Callable[[Any], Any]:
    """Answers to ``reply_to``, with what the handler returns."""
    return lambda message: {"of": message.payload["caller"], "n": message.payload["n"]}


def as_the_guide_does(client: MessageHubClient) -> Callable[[Any], Any]:
    """Knows nothing of ``reply_to``: answers to the sender's inbox, by the correlation id alone."""

    def handle_message(message: Any) -> None:
        client.send_message(
            destination=message["source"],
            payload={"of": message["payload"]["caller"], "n": message["payload"]["n"]},
            correlation_id=message["correlation_id"],
        )

    return handle_message


@pytest.mark.parametrize("answers", [returns, as_the_guide_does])
def test_50_threads_ask_200_times_each_and_every_reply_finds_its_own_caller(
    hub: Hub, answers: Callable[[MessageHubClient], Callable[[Any], Any]]
) -> None:
    responder, client = hub.client("campaign"), hub.client("character")
    responder.subscribe_messages(answers(responder), prefetch=256, workers=2)
    strays: list[Message] = []
    client.subscribe_messages(strays.append)
    together = threading.Barrier(CALLERS)

    def ask(caller: int) -> int:
        together.wait(30)
        own = 0
        for n in range(EACH):
            # Where the reply names its request, a correlation id that all of them share must not confuse anybody.
            correlation_id = "the same for all" if answers is returns else None
            reply = client.request(
                hub.name("campaign"), {"caller": caller, "n": n}, timeout=60, correlation_id=correlation_id
            )
            own += reply.payload == {"of": caller, "n": n}
        return own

    with ThreadPoolExecutor(CALLERS) as callers:
        assert list(callers.map(ask, range(CALLERS))) == [EACH] * CALLERS
    assert client._lifecycle.session().requests.waiting == 0
    assert strays == []


def test_10_000_timeouts_leave_nothing_behind() -> None:
    hub = Hub("memory://timeouts")
    try:
        away, client = hub.client("campaign"), hub.client("character")
        away.subscribe_messages(lambda message: None)
        away.close()
        inbox = f"{hub.name('campaign')}.messages"

        def wait_in_vain(times: int, timeout: float = 0.002) -> None:
            while times:
                try:
                    client.request(hub.name("campaign"), {"n": times}, timeout=timeout)
                except MessageHubTimeoutError:
                    times -= 1
                except MessageHubConnectionError:
                    continue  # on a busy machine the time was over before it was sent

        def settled() -> tuple[int, set[threading.Thread]]:
            gc.collect()
            return sys.getallocatedblocks(), set(threading.enumerate())

        wait_in_vain(1, timeout=1)  # makes the reply queue
        with ThreadPoolExecutor(10) as callers:
            assert all(done is None for done in callers.map(wait_in_vain, [50] * 10))
            blocks, threads = settled()
            assert all(done is None for done in callers.map(wait_in_vain, [1_000] * 10))
            more, threads_now = settled()

        assert client._lifecycle.session().requests.waiting == 0
        assert threads_now == threads
        # The last ones' time to live may end a moment after their callers' patience.
        assert (hub.depth(inbox) or 0) <= 10
        assert more - blocks < 2_000, "less than a fifth of one object for each"
    finally:
        hub.end()
