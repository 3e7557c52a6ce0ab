"""The wall clock jumps. The workers run with libfaketime; the machine's own clock is not changed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from faults.judging import CIRCUIT, CONNECTION, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.timing import TOLERANCE, eventually

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


class WallClock:
    """A simulated wall clock for programs that run with ``command``. Their monotonic clock is the machine's."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)
        self.command = (
            "env",
            f"LD_PRELOAD={_FAKETIME[0]}",
            f"FAKETIME_TIMESTAMP_FILE={file}",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "DONT_FAKE_MONOTONIC=1",
        )

    def jump(self, seconds: int) -> None:
        """Set the difference to the machine's clock."""
        self._file.write_text(f"{seconds:+d}s\n")


@pytest.mark.faults
@pytest.mark.row(32)
def test_a_wall_clock_that_jumps_moves_no_deadline_no_circuit_and_no_retry(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, names: Names, tmp_path: Path
) -> None:
    if not _FAKETIME:
        pytest.skip("libfaketime is missing (Debian: apt-get install libfaketime)")
    clock = WallClock(tmp_path / "clock")
    workers.consumer("--service", names.service, "--event", names.event, "--fail-first", "50", within=clock.command)
    publisher = workers.publisher(
        *("--event", names.event, "--threads", "4", "--rate", "20"),
        *("--delivery-timeout", "2", "--reset-timeout", "3"),
        within=clock.command,
    )

    for seconds in (3600, -3600, 3600):
        handled = oracle.counts().handled
        oracle.wait(lambda counts, handled=handled: counts.handled >= handled + 50, 20)
        node.suspend()
        before = len(oracle.calls())
        unknown = oracle.counts().unknown
        oracle.wait(lambda counts, unknown=unknown: counts.unknown >= unknown + 1, 5)
        clock.jump(seconds)
        threading.Event().wait(4)
        # Without the first calls: a call that was in flight when the broker stopped may already have had its answer.
        assert {call.outcome for call in oracle.calls(before + 4)} <= {"unknown", "rejected"}
        node.resume()
        ok = oracle.counts().ok
        # Only reset_timeout passes until the circuit's next trial, not the hour by which the wall clock jumped.
        oracle.wait(lambda counts, ok=ok: counts.ok >= ok + 20, 3 + 2 + 2 * TOLERANCE)
    clock.jump(0)
    assert publisher.stop() == 0
    judge(oracle, workers, slowest=2)
    only(oracle, CONNECTION, CIRCUIT, DELIVERY)


@pytest.mark.faults
@pytest.mark.row(32)
def test_a_wall_clock_that_jumps_while_a_message_waits_for_its_retry_does_not_end_its_ttl(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names, tmp_path: Path
) -> None:
    if not _FAKETIME:
        pytest.skip("libfaketime is missing (Debian: apt-get install libfaketime)")
    clock = WallClock(tmp_path / "clock")
    consumer = workers.consumer("--service", names.service, "--inbox", "--fail-first", "3", within=clock.command)
    client = new_client(f"{names.service}-sender")
    for number, seconds in enumerate((3600, -3600, 0), 1):
        assert oracle.ledger.call(lambda id: client.send_message(names.service, {}, ttl=60, message_id=id)) is None
        eventually(lambda number=number: consumer.log.count("again in 1 s") == number, 5)
        clock.jump(seconds)
        oracle.wait(lambda counts, number=number: counts.handled == number, 1 + 2 + TOLERANCE)
    assert judge(oracle, workers).counts.duplicates == 0


@pytest.mark.faults
@pytest.mark.row(32)
def test_the_programs_under_a_jumped_clock_do_see_it(workers: Workers, tmp_path: Path) -> None:
    if not _FAKETIME:
        pytest.skip("libfaketime is missing (Debian: apt-get install libfaketime)")
    clock = WallClock(tmp_path / "clock")
    here = "import time; print(time.time() - float(open('/proc/uptime').read().split()[0]), time.monotonic())"
    readings = []
    for number, seconds in enumerate((0, 3600)):
        clock.jump(seconds)
        program = workers.program([*clock.command, "python3", "-c", here], f"clock-{number}")
        assert program.wait(10) == 0
        readings.append([float(value) for value in program.log.split()])
    (boot, monotonic), (later_boot, later_monotonic) = readings
    assert later_boot - boot == pytest.approx(3600, abs=TOLERANCE)
    assert later_monotonic - monotonic == pytest.approx(0, abs=5)
