"""Fixtures for the fault tests: a node that tests may break, workers, the oracle, and the report."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.proxy import Proxy
from faults.report import Row, write_table

from message_hub_sync import MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

_ROWS = pytest.StashKey[dict[int, Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-fault", action="store_true", help="also the faults that take long")
    parser.addoption("--write-report", action="store_true", help="write the counts into docs/reliability.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The option exists only if pytest loads this file at startup, and not if it runs from a directory above.
    if config.getoption("every_fault", default=False):
        return
    long = [item for item in items if item.get_closest_marker("faults")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    marker = item.get_closest_marker("row")
    if marker is None or (report.passed and report.when != "call"):
        return report
    row = item.config.stash[_ROWS].setdefault(marker.args[0], Row())
    if report.passed:
        row.passed += 1
    elif report.failed:
        row.failed += 1
    elif isinstance(report.longrepr, tuple):
        row.not_run.append(report.longrepr[2].removeprefix("Skipped: "))
    oracle = getattr(item, "funcargs", {}).get("oracle")
    if report.when == "call" and oracle is not None:
        row.counts += oracle.verdict().counts
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("write_report", default=False):
        write_table(session.config.stash[_ROWS])


@pytest.fixture
def names() -> Names:
    """A service name and an event type that only this test uses."""
    tail = uuid.uuid4().hex[:8]
    return Names(f"fault-{tail}", f"fault.happened_{tail}")


@pytest.fixture(scope="session")
def _node() -> Iterator[RabbitMQNode]:
    with RabbitMQNode(install=True) as node:
        yield node


@pytest.fixture
def node(_node: RabbitMQNode) -> Iterator[RabbitMQNode]:
    """A node that the test may break. Afterwards it is started again, without an alarm."""
    yield _node
    if _node.running:
        _node.resume()
    _node.start()


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    """The oracle of this test. Its counts go into the report."""
    with Oracle(tmp_path / "oracle") as oracle:
        yield oracle


@pytest.fixture
def new_client(node: RabbitMQNode) -> Iterator[NewClient]:
    """Creates clients of the node or of another URL, and closes them after the test."""
    clients = []

    def new(service: str, url: str | None = None, **settings: Any) -> MessageHubClient:
        client = MessageHubClient(service, url or node.url, **settings)
        clients.append(client)
        return client

    yield new
    for client in clients:
        client.close(2)


@pytest.fixture
def workers(tmp_path: Path, oracle: Oracle, node: RabbitMQNode) -> Iterator[Workers]:
    """Starts processes of this test. Processes that still run after the test are killed."""
    workers = Workers(tmp_path, oracle, node.url)
    yield workers
    workers.close()


@pytest.fixture
def proxy(node: RabbitMQNode) -> Iterator[Proxy]:
    """A TCP proxy before the node that fails on command."""
    with Proxy(node.port) as proxy:
        yield proxy
