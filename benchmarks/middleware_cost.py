"""What one empty middleware costs: microseconds for each message that is sent, and for each that is handled.

``python -m benchmarks.middleware_cost``; half a minute, no RabbitMQ. It measures in two ways:

1. By itself: CPU time of the caller's thread in a tight loop, with and without the middleware, over a transport that
   confirms at once. This is what its code costs.
2. In a whole call over the embedded hub: two clients take turns in short blocks, one with the middleware, so that what
   else the machine does meets both. This is more, as between two messages other code takes the processor's caches.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from message_hub_sync import Message, MessageHubClient, Middleware, Received, Sending
from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.consuming.handler_middleware import HandlerMiddleware
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.publishing.circuit_breaker import CircuitBreakers
from message_hub_sync.publishing.middleware_publisher import MiddlewarePublisher
from message_hub_sync.publishing.outgoing import outgoing_event
from message_hub_sync.publishing.publisher import Publisher
from message_hub_sync.transport.base import Delivery, Outgoing, PublishResult, Receipt

__all__ = ["main"]

_ROUNDS = 60
_MESSAGES = 300
_ALONE_ROUNDS, _ALONE_CALLS = 9, 20_000
_METRICS = ServiceMetrics("image-service")
_PAYLOAD = {"character_id": "42", "name": "Mira", "text": "x" * 200}


class Empty(Middleware):
    """Only calls on."""

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        call_next()

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next()


def main() -> None:
    """Measure and print."""
    for what, cost in (("send", _send_alone()), ("handle", _handle_alone())):
        print(f"{what}, by itself: {cost:.1f} us")
    for what, costs in (("send", _cost(_sending)), ("handle", _cost(_handling))):
        low, median, high = statistics.quantiles(costs, n=4)
        print(f"{what}, in a whole call: {median:.1f} us (quartiles {low:.1f} and {high:.1f}, {len(costs)} pairs)")


class _Confirming:
    """A transport that confirms at once."""

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        receipt = Receipt()
        receipt.resolve(PublishResult.CONFIRMED)
        return receipt


def _send_alone() -> float:
    config = ClientConfig("image-service", MemoryAddress("unused"))
    parts: Any = (_Confirming(), config, CircuitBreakers(config.circuit_breaker, "image-service"), _METRICS)
    plain, around = Publisher(*parts), MiddlewarePublisher(*parts, [Empty()])
    outgoing = outgoing_event(config, "character.created", _PAYLOAD)
    return _difference(lambda: plain.publish(outgoing, 5), lambda: around.publish(outgoing, 5))


def _handle_alone() -> float:
    config = ClientConfig("image-service", MemoryAddress("unused"))
    outgoing = outgoing_event(config, "character.created", _PAYLOAD)
    delivery = Delivery(outgoing.body, outgoing.properties, "events", "character.created", "queue", False, 1, 1, None)
    decoded = DecodedDelivery(delivery, "event", "image-service", 1_000)
    middleware = HandlerMiddleware([Empty()])

    def run() -> None: ...

    return _difference(run, lambda: middleware.handle(decoded, run))


def _difference(plain: Callable[[], object], around: Callable[[], object]) -> float:
    """Microseconds of CPU time that ``around`` takes more than ``plain``: the least of several rounds of each."""
    least = []
    for call in (plain, around):
        rounds = []
        for _ in range(_ALONE_ROUNDS):
            began = time.thread_time()
            for _ in range(_ALONE_CALLS):
                call()
            rounds.append(time.thread_time() - began)
        least.append(min(rounds))
    return (least[1] - least[0]) / _ALONE_CALLS * 1e6


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
