"""What one empty middleware costs: microseconds for each message that is sent, and for each that is handled.

``python -m benchmarks.middleware_cost``; ten seconds, no RabbitMQ. Two clients of an embedded hub, one with middleware
that only calls on, take turns in short blocks, so that what else the machine does meets both. The median of the
differences between neighbouring blocks is printed, with the quartiles.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from message_hub_sync import Message, MessageHubClient, Middleware, Received, Sending

__all__ = ["main"]

_ROUNDS = 60
_MESSAGES = 300
_PAYLOAD = {"character_id": "42", "name": "Mira", "text": "x" * 200}


class Empty(Middleware):
    """Only calls on."""

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        call_next()

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next()


def main() -> None:
    """Measure and print."""
    for what, cost in (("send", _cost(_sending)), ("handle", _cost(_handling))):
        low, median, high = statistics.quantiles(cost, n=4)
        print(f"{what}: {median:.2f} us for each message (quartiles {low:.2f} and {high:.2f}, {len(cost)} pairs)")


def _cost(block: Callable[[str, MessageHubClient], float]) -> list[float]:
    with (
        MessageHubClient("image-service", "memory://without") as without,
        MessageHubClient("image-service", "memory://with", middleware=[Empty()]) as having,
    ):
        for client in (without, having):
            block("warm-up", client)
        differences = []
        for number in range(_ROUNDS):
            # Which of them comes first changes, as the first of a pair may find a colder machine.
            pair = (without, having) if number % 2 else (having, without)
            seconds = {client: block("measured", client) for client in pair}
            differences.append((seconds[having] - seconds[without]) / _MESSAGES * 1e6)
        return differences


def _sending(_name: str, client: MessageHubClient) -> float:
    began = time.perf_counter()
    for _ in range(_MESSAGES):
        client.publish_event("character.created", _PAYLOAD)
    return time.perf_counter() - began


def _handling(name: str, client: MessageHubClient) -> float:
    handled = threading.Semaphore(0)

    def handle(message: Message) -> None:
        handled.release()

    subscription = client.subscribe_messages(handle, prefetch=_MESSAGES)
    subscription.cancel()
    # All of them wait in the inbox, so that the handlers run without a pause once they start.
    client.send_messages([("image-service", _PAYLOAD)] * _MESSAGES)
    began = time.perf_counter()
    subscription.start()
    for _ in range(_MESSAGES):
        if not handled.acquire(timeout=30):
            raise RuntimeError(f"{name}: a message was not handled within 30 s")
    seconds = time.perf_counter() - began
    subscription.cancel()
    return seconds


if __name__ == "__main__":
    main()
