"""Processes end by a signal, by an exception, or normally; and signals interrupt calls."""

from __future__ import annotations

import time

import pytest
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.timing import TOLERANCE

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode


@pytest.mark.rabbitmq
@pytest.mark.row(24)
def test_sigterm_with_a_full_prefetch_ends_in_time_with_nothing_handled_twice(
    oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    arguments = ("--service", names.service, "--event", names.event, "--run-forever")
    consumer = workers.consumer(*arguments, "--seconds", "0.3", "--prefetch", "50", "--workers", "4")
    client = new_client(f"{names.service}-sender")
    for _ in range(200):
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    oracle.wait(lambda counts: counts.handled >= 4, 10)
    consumer.terminate()
    handled = oracle.counts().handled
    started = time.monotonic()
    assert consumer.wait(5 + TOLERANCE) == 0
    assert time.monotonic() - started <= 0.3 + TOLERANCE, "it waits for more than the handlers that run"
    oracle.settle()
    assert oracle.counts().handled <= handled + 4 + 4, "the intake went on"
    workers.consumer(*arguments)
    counts = judge(oracle, workers).counts
    assert (counts.handled, counts.duplicates) == (200, 0)


@pytest.mark.rabbitmq
@pytest.mark.row(24)
def test_a_consumer_killed_in_the_middle_repeats_what_it_had_not_settled_and_loses_nothing(
    oracle: Oracle, workers: Workers, names: Names
) -> None:
    arguments = ("--service", names.service, "--event", names.event, "--inbox")
    consumer = workers.consumer(*arguments)
    publisher = workers.publisher("--event", names.event, "--to", names.service, "--threads", "4", "--rate", "40")
    for _ in range(2):
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 200, 20)
        consumer.kill()
        consumer = workers.consumer(*arguments)
    assert publisher.stop() == 0
    counts = judge(oracle, workers).counts
    # Two killed processes, each with two queues and at most 64 handled messages per queue that were not acknowledged.
    assert counts.duplicates <= 2 * 2 * 64


@pytest.mark.faults
@pytest.mark.row(24)
def test_with_settle_each_and_a_prefetch_of_one_a_killed_consumer_repeats_one_message_at_most(
    oracle: Oracle, workers: Workers, names: Names
) -> None:
    # With a prefetch of 1, the broker delivers the next message after it has read the acknowledgement of the last one.
    # With more, several acknowledgements can be in flight when the process is killed.
    arguments = ("--service", names.service, "--event", names.event, "--settle-each", "--prefetch", "1")
    consumer = workers.consumer(*arguments)
    publisher = workers.publisher("--event", names.event, "--threads", "4", "--rate", "40")
    for _ in range(3):
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 100, 20)
        consumer.kill()
        consumer = workers.consumer(*arguments)
    assert publisher.stop() == 0
    # One per killed process: the handled message whose acknowledgement was in flight.
    assert judge(oracle, workers).counts.duplicates <= 3


@pytest.mark.rabbitmq
@pytest.mark.row(25)
def test_a_signal_handler_that_raises_inside_a_call_shifts_no_answer(
    oracle: Oracle, workers: Workers, names: Names
) -> None:
    program = workers.script("interrupted", names.service, names.event, "5")
    try:
        oracle.told("interrupted", timeout=25)
    except AssertionError:
        pytest.fail(program.log[-3000:])
    # Logs are not judged here: a signal that interrupts the write itself ends the connection, and this is logged.
    counts = judge(oracle).counts
    assert program.stop() == 0, program.log
    assert counts.rejected >= 50
    assert counts.unknown


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(False, marks=pytest.mark.faults, id="broker"),
        pytest.param(True, marks=pytest.mark.rabbitmq, id="silent-broker"),
    ],
)
@pytest.mark.parametrize(("way", "code"), [("exit", 7), ("raise", 1), ("end", 0), ("atexit", 0)])
def test_the_interpreter_exits_within_the_close_timeout(
    way: str, code: int, silent: bool, node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names
) -> None:
    program = workers.script("exiting", names.service, names.event, way)
    oracle.told("ready")
    if silent:
        node.suspend()
    assert program.process.stdin is not None
    program.process.stdin.write(b"go\n")
    program.process.stdin.flush()
    started = time.monotonic()
    # A call of the process's own atexit handler has its own deadline: delivery_timeout (5 s).
    limit = 5 + 2 if silent and way == "atexit" else 2
    assert program.wait(limit + 2 * TOLERANCE) == code, program.log
    assert time.monotonic() - started <= limit + TOLERANCE
    assert "Fatal Python error" not in program.log
    assert "Exception ignored" not in program.log
    node.resume()
    workers.consumer("--service", names.service, "--event", names.event)
    judge(oracle)
