"""A publisher and a consumer. Each is a separate process, which a test can kill.

    python -m faults.workers publish --url amqp://… --ledger …/ledger.pipe --event fault.happened --rate 100
    python -m faults.workers consume --url amqp://… --ledger …/ledger.pipe --event fault.happened

They run until their stdin ends or they get SIGTERM. Then they close their client and exit with 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any
from uuid import UUID, uuid4

from faults.oracle import Ledger

from message_hub_sync import (
    CircuitBreakerConfig,
    MemoryDeduplication,
    MessageHubClient,
    MessageHubDeliveryError,
    MessageHubError,
    MessageHubRetryError,
    RetryPolicy,
)

logger = logging.getLogger("faults.workers")

#: Seconds between two attempts to connect, if the process starts while the broker is down.
_START_PAUSE = 0.5


def publish(client: MessageHubClient, ledger: Ledger, options: argparse.Namespace, stop: threading.Event) -> None:
    """Send at a constant rate from several threads, and write every call to the ledger."""
    sends: list[Callable[[UUID], Any]] = []
    for event in options.event:
        sends.append(lambda id, event=event: client.publish_event(event, {"text": options.text}, message_id=id))
    for destination in options.to:
        sends.append(
            lambda id, destination=destination: client.send_message(
                destination, {"text": options.text}, ttl=None, message_id=id
            )
        )

    def run(number: int) -> None:
        count = number
        while not stop.is_set():
            send = sends[count % len(sends)]
            count += 1
            message_id = uuid4()
            error = ledger.call(send, message_id)
            while (
                options.repeat_unknown
                and isinstance(error, MessageHubDeliveryError)
                and error.outcome == "unknown"
                and not stop.is_set()
            ):
                error = ledger.call(send, message_id)
            stop.wait(1 / options.rate)

    threads = [
        threading.Thread(target=run, args=(number,), name=f"message-hub-test-publisher-{number}")
        for number in range(options.threads)
    ]
    for thread in threads:
        thread.start()
    ledger.write("publisher", os.getpid())
    stop.wait()
    for thread in threads:
        thread.join()


def consume(client: MessageHubClient, ledger: Ledger, options: argparse.Namespace, stop: threading.Event) -> None:
    """Consume, and write to the ledger what was handled."""

    def handle(message: Any, envelope: Any) -> None:
        if options.seconds:
            time.sleep(options.seconds)  # the work of this handler
        ledger.handled(envelope.id)

    failed: set[UUID] = set()

    def on_event(event: dict[str, Any], envelope: Any) -> None:
        if options.fail_first and len(failed) < options.fail_first and envelope.id not in failed:
            failed.add(envelope.id)
            raise MessageHubRetryError("as asked", delay=1)
        handle(event, envelope)

    def store() -> MemoryDeduplication | None:
        return MemoryDeduplication() if options.deduplicate else None

    settings: dict[str, Any] = {"prefetch": options.prefetch, "workers": options.workers}
    while not stop.is_set():
        try:
            if options.event:
                client.subscribe(options.event, on_event, deduplicate=store(), **settings)
            if options.inbox:
                client.subscribe_messages(on_event, deduplicate=store(), **settings)
            break
        except MessageHubError as error:
            if not options.patient:
                raise
            logger.info("not consuming yet: %s", error)
            stop.wait(_START_PAUSE)
    ledger.write("consumer", os.getpid())
    if options.run_forever:
        client.run_forever()
    else:
        stop.wait()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("publish", "consume"))
    parser.add_argument("--url", action="append", required=True)
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--service", default="fault-publisher")
    parser.add_argument("--event", action="append", default=[])
    parser.add_argument("--to", action="append", default=[])
    parser.add_argument("--inbox", action="store_true")
    parser.add_argument("--rate", type=float, default=50, help="calls a second of each thread")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", default="x")
    parser.add_argument("--repeat-unknown", action="store_true")
    parser.add_argument("--delivery-timeout", type=float, default=5)
    parser.add_argument("--connect-timeout", type=float, default=5)
    parser.add_argument("--close-timeout", type=float, default=5)
    parser.add_argument("--reset-timeout", type=float, default=60)
    parser.add_argument("--heartbeat", type=int, default=10)
    parser.add_argument("--queue-type", default="classic")
    parser.add_argument("--settle-each", action="store_true")
    parser.add_argument("--attempts", type=int, default=4)
    parser.add_argument("--prefetch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--fail-first", type=int, default=0, help="messages whose first handling fails")
    parser.add_argument("--deduplicate", action="store_true")
    parser.add_argument("--run-forever", action="store_true")
    parser.add_argument("--patient", action="store_true", help="start while the broker is down")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(threadName)s %(name)s %(message)s")

    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    ledger = Ledger(options.ledger)
    client = MessageHubClient(
        options.service,
        options.url,
        circuit_breaker_config=CircuitBreakerConfig(5, options.reset_timeout, 30),
        connect_timeout=options.connect_timeout,
        delivery_timeout=options.delivery_timeout,
        close_timeout=options.close_timeout,
        heartbeat=options.heartbeat,
        queue_type=options.queue_type,
        settle_each=options.settle_each,
        retry=RetryPolicy(attempts=options.attempts),
    )

    def until_stdin_ends() -> None:
        sys.stdin.read()
        stop.set()
        if options.run_forever:
            client.close()

    threading.Thread(target=until_stdin_ends, name="message-hub-test-stdin", daemon=True).start()
    (publish if options.role == "publish" else consume)(client, ledger, options, stop)
    client.close()
    ledger.write("closed", os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main())
