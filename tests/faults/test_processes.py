"""Processes that fork after their client was created, connected and used."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults.judging import judge
from faults.names import Names
from faults.oracle import Oracle
from faults.processes import Program, Workers
from faults.timing import eventually

from message_hub_sync.testing._node.free_ports import free_port
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


def frame_errors(node: RabbitMQNode) -> list[str]:
    """The log lines that the broker writes if two processes write to one connection."""
    return [line for line in node.log().splitlines() if "unexpected_frame" in line.lower() or " 505" in line]


@pytest.mark.rabbitmq
@pytest.mark.row(22)
def test_parent_and_forked_children_publish_and_the_parent_consumes(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    program = workers.script("forking", names.service, names.event, "4", "50")
    oracle.told("published", timeout=30)
    counts = judge(oracle, workers).counts
    assert program.stop() == 0, program.log
    assert counts.ok == counts.invoked >= 4 * 2 * 50 + 50
    assert counts.duplicates == 0
    assert frame_errors(node) == []


def needs(module: str) -> None:
    """Skip the test, with the name of the module, if it is not installed."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def served(
    workers: Workers, oracle: Oracle, node: RabbitMQNode, names: Names, command: Sequence[str], port: int, name: str
) -> set[str]:
    """Start a server and send 200 requests. Returns the ids of the processes that answered."""
    workers.consumer("--service", names.service, "--event", names.event)
    server = workers.program(command, name, FAULT_URL=node.url, FAULT_LEDGER=str(oracle.path), FAULT_EVENT=names.event)
    address = f"http://127.0.0.1:{port}/"

    def ask(_: int = 0) -> list[str]:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.read().decode().split(" ", 2)

    def answers() -> bool:
        assert server.process.poll() is None, server.log
        try:
            return bool(ask())
        except OSError:
            return False

    eventually(answers, 20)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(200)))
    assert {error for _, _, error in found} == {"None"}
    assert {forked for _, forked, _ in found} == {"True"}, "no worker was forked from the process that connected"
    server.terminate()
    server.wait(20)
    return {process for process, _, _ in found}


@pytest.mark.faults
@pytest.mark.row(22)
def test_gunicorn_with_preload_and_four_workers_publishes_from_each(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    needs("gunicorn")
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "--preload", "--workers", "4", "--bind", f"127.0.0.1:{port}"),
        "faults.scripts.wsgi:application",
    ]
    processes = served(workers, oracle, node, names, command, port, "gunicorn")
    assert len(processes) >= 2
    counts = judge(oracle, workers).counts
    assert counts.ok == counts.invoked >= 200
    assert frame_errors(node) == []


@pytest.mark.faults
@pytest.mark.row(22)
def test_uwsgi_forking_after_the_application_was_loaded_publishes_from_each_worker(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    program = shutil.which("uwsgi", path=str(Path(sys.executable).parent)) or shutil.which("uwsgi")
    if program is None:
        pytest.skip("uwsgi is not installed (it is built with a C compiler and Python's headers)")
    port = free_port()
    command = [
        *(program, "--http-socket", f"127.0.0.1:{port}", "--processes", "4", "--master", "--enable-threads"),
        *("--need-app", "--die-on-term", "--virtualenv", sys.prefix, "--module", "faults.scripts.wsgi:application"),
    ]
    processes = served(workers, oracle, node, names, command, port, "uwsgi")
    assert len(processes) >= 2
    counts = judge(oracle, workers).counts
    assert counts.ok == counts.invoked >= 200
    assert frame_errors(node) == []


@pytest.mark.faults
@pytest.mark.row(22)
def test_celery_prefork_workers_publish(node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names) -> None:
    needs("celery")
    workers.consumer("--service", names.service, "--event", names.event)
    environment = {
        "FAULT_URL": node.url,
        "FAULT_LEDGER": str(oracle.path),
        "FAULT_EVENT": names.event,
        "FAULT_QUEUE": f"{names.service}-celery",
    }
    application = [sys.executable, "-m", "celery", "--app", "faults.scripts.celery_tasks"]
    server: Program = workers.program(
        [*application, "worker", "--pool", "prefork", "--concurrency", "4", "--loglevel", "INFO"],
        "celery",
        **environment,
    )
    eventually(lambda: " ready." in server.log or server.process.poll() is not None, 30)
    assert server.process.poll() is None, server.log
    sender = (
        "import os; from faults.scripts.celery_tasks import publish, client; "
        "[publish.delay() for _ in range(200)]; client.close()"
    )
    assert workers.program([sys.executable, "-c", sender], "celery-sender", **environment).wait(30) == 0
    oracle.wait(lambda counts: counts.ok == 200, 30)
    assert oracle.told("forked") == 200
    server.terminate()
    server.wait(20)
    judge(oracle, workers)
    assert frame_errors(node) == []


@pytest.mark.faults
@pytest.mark.row(23)
def test_a_gevent_timeout_thrown_into_a_call_shifts_no_answer(oracle: Oracle, workers: Workers, names: Names) -> None:
    needs("gevent")
    program = workers.script("greenlets", names.service, names.event)
    try:
        oracle.told("done", timeout=60)
    except AssertionError:
        pytest.fail(program.log[-3000:])
    counts = judge(oracle, workers).counts
    assert program.stop() == 0, program.log
    assert counts.ok >= 2200
    assert counts.rejected == 200
