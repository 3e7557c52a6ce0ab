"""What docs/operating.md and docs/handling.md say, done on a broker."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from code_blocks import python_blocks
from collector import Collector
from prometheus_client import start_http_server

from message_hub_sync import (
    Message,
    MessageHubCircuitBreakerError,
    MessageHubClient,
    MessageHubConnectionError,
    MessageHubError,
    MessageHubRejectError,
    RetryPolicy,
    metrics,
)
from message_hub_sync.testing import MessageHubTestFramework, RabbitMQNode
from message_hub_sync.testing._node.free_ports import free_port

DOCS = Path(__file__).parents[2] / "docs"
URL = "amqp://localhost:5672"


def run(name: str, url: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": name}
    # The first: what else operating.md has serves metrics, on a port.
    block = python_blocks(DOCS / name)[0]
    block.run(namespace, lambda text: text.replace(URL, url))
    return namespace


def test_the_code_of_handling_does_what_it_says(hub_url: str) -> None:
    with MessageHubTestFramework(hub_url) as framework:
        said = run("handling.md", framework.url)
        letter = framework.export_dead_letter("quest-service.messages")
        assert (letter.payload, letter.failure["reason"]) == ({"action": "obsolete"}, "nobody does that any more")
        assert letter.failure["attempts"] == 1
        done = threading.Event()

        class Tries(list[str]):
            def append(self, item: str) -> None:
                super().append(item)
                if self.count("busy") == 2:
                    done.set()

        said["tries"] = Tries(said["tries"])
        assert said["tries"].count("busy") == 2 or done.wait(30)
        said["client"].close()


def test_a_worker_that_has_sent_nothing_yet_is_ready_and_one_that_cannot_connect_is_not() -> None:
    with MessageHubTestFramework() as framework:
        said = run("operating.md", framework.url)
        assert said["ready"]()
        said["client"].close()
    with contextlib.closing(MessageHubClient("quest-service", "amqp://127.0.0.1:1", connect_timeout=0.2)) as forked:
        said["client"] = forked
        assert (forked.get_health_status()["status"], said["ready"]()) == ("idle", True)
        with pytest.raises(MessageHubConnectionError):
            forked.connect()
        assert (forked.get_health_status()["status"], said["ready"]()) == ("disconnected", False)


def test_the_settings_for_web_services_hold_threads_once_while_the_broker_is_down() -> None:
    namespace: dict[str, Any] = {}
    unused = free_port()
    web_services = python_blocks(DOCS / "operating.md")[1]
    web_services.run(namespace, lambda text: text.replace("localhost:5672", f"127.0.0.1:{unused}"))
    with contextlib.closing(namespace["web"]) as web:
        raised: list[type[Exception]] = []

        def call(_: object = None) -> None:
            try:
                web.send_message("image-service", {"n": 1})
            except MessageHubError as error:
                raised.append(type(error))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(call, range(4)))
        assert set(raised) <= {MessageHubConnectionError, MessageHubCircuitBreakerError}
        assert MessageHubConnectionError in raised
        raised.clear()
        for _ in range(100):
            call()
        # One call may be the trial, if the machine was slow meanwhile.
        assert raised.count(MessageHubCircuitBreakerError) >= 90
        assert web.get_health_status()["circuit_breaker_state"] in ("open", "half-open")


def test_the_metrics_are_served_with_the_names_and_labels_of_the_table() -> None:
    port = str(free_port())
    namespace: dict[str, Any] = {}
    serving = python_blocks(DOCS / "operating.md")[2]
    with pytest.MonkeyPatch.context() as patch:
        # Served on every address by default, which a test must not do.
        patch.setattr("prometheus_client.start_http_server", functools.partial(start_http_server, addr="127.0.0.1"))
        serving.run(namespace, lambda text: text.replace("9000", port))
    served = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    said = re.findall(r"^\| `(message_hub_\w+)` \| (.*?) \|", (DOCS / "operating.md").read_text("utf-8"), re.MULTILINE)
    known = {
        family.name + ("_total" if family.type == "counter" else ""): metric._labelnames
        for metric in metrics._exposition._own.values()
        for family in metric.collect()
    }
    assert {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in said} == known
    for name in known:
        assert f"# TYPE {name} " in served


@pytest.mark.rabbitmq
def test_a_service_waits_for_its_broker_with_the_recipe() -> None:
    node = RabbitMQNode()
    starting = threading.Thread(target=node.start)
    starting.start()
    try:
        said = run("operating.md", node.url)
        assert said["ready"]()
        said["client"].close()
        assert not said["ready"]()
    finally:
        starting.join()
        node.stop()


@pytest.mark.rabbitmq
def test_the_permissions_are_enough(rabbitmq_node: RabbitMQNode) -> None:
    [line] = [line for line in (DOCS / "operating.md").read_text("utf-8").splitlines() if "set_permissions" in line]
    node = rabbitmq_node
    node.ctl("add_user", "quest-service", "secret")
    node.ctl(*shlex.split(line)[1:])
    collected = Collector()

    def handle(message: Message) -> dict[str, Any]:
        collected(message)
        if message.payload.get("fail") == "once" and len(collected.items) == 1:
            raise ValueError
        if message.payload.get("fail") == "ever":
            raise MessageHubRejectError
        return {"n": 1}

    url = node.url.replace("guest:guest", "quest-service:secret")
    with MessageHubClient("quest-service", url, retry=RetryPolicy(2, (1,))) as client:
        client.subscribe(["character.created"], lambda event: collected(event))
        client.subscribe_messages(handle)
        client.send_message("quest-service", {"fail": "once"})
        collected.wait(2, timeout=15)  # by way of its retry queue
        client.publish_event("character.created", {"character_id": "1"})
        collected.wait(3)
        client.send_message("quest-service", {"fail": "ever"})
        assert client.request("quest-service", {}).payload == {"n": 1}
        with MessageHubTestFramework(node.url, isolated=False) as framework:
            assert framework.export_dead_letter("quest-service.messages", remove=True).payload == {"fail": "ever"}
    node.ctl("delete_user", "quest-service")
