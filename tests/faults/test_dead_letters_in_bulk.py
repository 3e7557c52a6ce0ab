"""20,000 dead letters, and a command that is ended while it puts them back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.envelope.values import Properties
from message_hub_sync.testing import MessageHubTestFramework
from message_hub_sync.transport.base import Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import QueueSpec, Topology

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults]

QUEUE = "quest-service.messages"
DEAD = f"{QUEUE}.dead"
COUNT = 20_000


@pytest.fixture(params=["classic", "quorum"])
def operator(rabbitmq_url: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, Transport]]:
    """A virtual host with 20,000 dead letters: its URL and a transport to it."""
    with MessageHubTestFramework(rabbitmq_url) as framework:
        transport = _transport(ClientConfig("operator", parse_addresses(framework.url)))
        quorum = {"x-queue-type": "quorum", "x-delivery-limit": 100_000}
        transport.declare_queue(QueueSpec(QUEUE), soon())
        transport.declare_queue(QueueSpec(DEAD, arguments=quorum if request.param == "quorum" else {}), soon())
        for start in range(0, COUNT, 2_000):
            batch = [Outgoing("", DEAD, b"{}", Properties(message_id=str(start + one))) for one in range(2_000)]
            for receipt in transport.publish_many(batch, soon()):
                assert receipt.wait(soon()) is PublishResult.CONFIRMED, receipt.reason
        yield framework.url, transport
        transport.close(soon())


def soon() -> float:
    return time.monotonic() + 60


def command(url: str, name: str, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "message_hub_sync.cli", "dead-letters", name, "--queue", QUEUE, *arguments]
    environment = {**os.environ, "MESSAGE_HUB_URL": url}
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(url: str, name: str, *arguments: str) -> tuple[int, str, str]:
    process = command(url, name, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def ids(transport: Transport, queue: str) -> Counter[str]:
    """The message ids of all messages of a queue, which are removed."""
    found: Counter[str] = Counter()
    consumer = transport.consume(Topology(QueueSpec(queue, passive=True)), prefetch=2_000, deadline=soon())
    quiet = 0
    while quiet < 3:
        try:
            delivery = consumer.deliveries.get(timeout=1)
        except Exception:
            stats = transport.queue_stats([queue], soon())[queue]
            quiet = quiet + 1 if stats is None or not stats.depth else 0
            continue
        assert delivery is not None
        found[str(delivery.properties.message_id)] += 1
        consumer.ack(delivery)
    consumer.cancel(soon())
    consumer.close(soon())
    return found


ALL = Counter(map(str, range(COUNT)))


def test_all_are_listed_in_order_reached_by_id_and_put_back_once(operator: tuple[str, Transport]) -> None:
    url, transport = operator
    code, out, err = run(url, "list", "--messages", "--json")
    assert code == 0, err
    assert [json.loads(line)["message_id"] for line in out.splitlines()] == list(map(str, range(COUNT)))
    code, out, err = run(url, "show", "--message-id", str(COUNT - 1))
    assert code == 0, err
    assert json.loads(out)["properties"]["message_id"] == str(COUNT - 1)
    code, out, err = run(url, "requeue", "--all")
    assert (code, out) == (0, f"{COUNT} put back into {QUEUE}\n"), err
    assert ids(transport, QUEUE) == ALL
    assert ids(transport, DEAD) == Counter()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_can_be_repeated(operator: tuple[str, Transport], number: signal.Signals) -> None:
    url, transport = operator
    process = command(url, "requeue", "--all", "--json")
    assert process.stdout is not None
    for _ in range(3_000):
        assert process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    if number is signal.SIGKILL:
        most_doubled = 2_000
    else:
        assert process.returncode == 128 + number, err
        done = 3_000 + len(out.splitlines())
        assert f"interrupted: {done} put back, the others stay" in err
        assert done < COUNT, "it was not ended early"
        most_doubled = 0
    code, _, err = run(url, "requeue", "--all")
    assert code == 0, err
    found = ids(transport, QUEUE)
    assert found.keys() == ALL.keys(), "none is lost"
    assert sum(found.values()) - COUNT <= most_doubled
    assert ids(transport, DEAD) == Counter()
