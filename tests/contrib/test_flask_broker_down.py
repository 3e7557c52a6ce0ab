"""A broker that is killed and comes back, under the requests of web processes with the settings of docs/web.md."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from collector import Collector
from contrib.conftest import Hub
from contrib.test_flask_servers import environment, gunicorn, is_ready, preload_or_not, terminated
from programs import eventually, running

from message_hub_sync import MessageHubClient
from message_hub_sync.testing._node.free_ports import free_port

pytestmark = pytest.mark.rabbitmq

SETTINGS = {
    "MESSAGE_HUB_CONNECT_TIMEOUT": "1",
    "MESSAGE_HUB_DELIVERY_TIMEOUT": "1",
    "MESSAGE_HUB_FAILURE_THRESHOLD": "1",
    "MESSAGE_HUB_RESET_TIMEOUT": "2",
}
#: Seconds that a request may take on a machine with much else to do. Without deadlines it would hang for good.
LONGEST = 30.0


@dataclass
class Load:
    """Sends requests from several threads, and keeps what each of them got."""

    port: int
    answers: list[tuple[str, int, float, int | None]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for number in range(6):
            self.threads.append(threading.Thread(target=self._publish, args=(number,), daemon=True))
        self.threads.append(threading.Thread(target=self._look, daemon=True))
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(LONGEST * 2)
            assert not thread.is_alive(), "a request hangs"

    def _publish(self, first: int) -> None:
        number = first
        while not self.ended.wait(0.02):
            self._ask(f"/quests/{number}", b"", number)
            number += 10

    def _look(self) -> None:
        while not self.ended.wait(0.05):
            self._ask("/health/live", None, None)

    def _ask(self, path: str, body: bytes | None, number: int | None) -> None:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", body, timeout=LONGEST * 2) as response:
                status = response.status
        except urllib.error.HTTPError as error:
            with error:
                status = error.code
        self.answers.append((path.split("/")[1], status, time.monotonic() - began, number))

    def of(self, kind: str) -> list[tuple[str, int, float, int | None]]:
        return [answer for answer in list(self.answers) if answer[0] == kind]


@preload_or_not
def test_each_request_gets_an_answer_in_time_and_each_confirmed_event_is_handled(
    hub: Hub, collected: Collector, options: tuple[str, ...], record_property: Callable[[str, object], None]
) -> None:
    port = free_port()
    load = Load(port)
    consumer = MessageHubClient("archive-service", hub.url, connect_timeout=60)
    settings = environment(hub.url, "command", **SETTINGS)
    with consumer, running([*gunicorn(port, *options), "--access-logfile", "/dev/null"], **settings) as service:
        consumer.subscribe(["quest.started"], lambda event: collected(json.loads(event)["number"]))
        assert eventually(lambda: is_ready(port), 60), service.output
        load.start()
        assert eventually(lambda: len(load.of("quests")) > 50, 60)
        hub.node.ctl("eval", "mnesia:sync_log().")  # RabbitMQ writes a new queue down up to two seconds later
        hub.node.kill()
        assert eventually(lambda: any(status == 503 for _, status, _, _ in load.of("quests")), 60)
        down = len(load.answers)
        assert eventually(lambda: len(load.answers) > down + 200, 120), "workers serve while the broker is down"
        hub.node.start()
        back = len(load.answers)
        assert eventually(lambda: Counter(answer[1] for answer in load.answers[back:])[200] > 100, 120)
        load.stop()
        confirmed = {number for _, status, _, number in load.of("quests") if status == 200}
        collected.until(lambda numbers: confirmed <= set(numbers), 60)
        assert terminated(service) == 0
    statuses = Counter(status for _, status, _, _ in load.of("quests"))
    assert {status for _, status, _, _ in load.of("health")} == {200}
    # 500: the confirm was lost with the broker, so the event may have been sent (MessageHubDeliveryError, unknown).
    assert statuses.keys() <= {200, 503, 500}
    assert max(seconds for _, _, seconds, _ in load.answers) < LONGEST
    # In the report of --junit-xml.
    record_property("publishing", f"{_times(load.of('quests'))}, statuses {dict(statuses)}")
    record_property("health", _times(load.of("health")))


def _times(answers: list[Any]) -> str:
    seconds = sorted(answer[2] for answer in answers)
    return f"{len(seconds)} requests, median {seconds[len(seconds) // 2]:.4f} s, longest {seconds[-1]:.2f} s"
