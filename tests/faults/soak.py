"""Random faults for a given time. Then all faults are healed, all messages are consumed, and the oracle judges.

    python -m faults.soak --minutes 10 --seed 42

It prints a line of progress every second and a report at the end. With ``--write-report`` it writes a row in
docs/reliability.md. The exit code is 0 if nothing was lost, no call exceeded its deadline, no process ended with an
error, and no log reports a fault of the library; otherwise 1. The seed decides which faults happen, when, and for how
long. It is printed; the same seed gives the same faults.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from faults.oracle import Call, Counts, Oracle, Verdict
from faults.processes import Program, Workers
from faults.proxy import Proxy
from faults.raw import raw_channel
from faults.report import Row, write_table

from message_hub_sync.testing.rabbitmq_node import RabbitMQNode, RabbitMQNodeError

SERVICE, EVENT = "fault-soak", "fault.soaked"
#: Seconds for consuming everything after the last fault is healed.
DRAIN = 120.0
#: Seconds that a call may take: the workers' delivery_timeout, and a margin for a machine under full load.
DEADLINE, MARGIN = 5.0, 2.0


@dataclass(frozen=True)
class Outcome:
    """What is judged: the messages, the calls' durations, the ends of the processes, and faults in their logs."""

    verdict: Verdict
    calls: tuple[Call, ...] = ()
    bad_ends: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def late(self) -> list[Call]:
        """The calls that exceeded their deadline."""
        return [call for call in self.calls if call.seconds > DEADLINE + MARGIN]

    @property
    def holds(self) -> bool:
        """Whether all of it is in order."""
        return self.verdict.holds and not (self.late or self.bad_ends or self.complaints)


class Soak:
    """One run: a node, a proxy, two publishers, two consumers, and the faults. Used by the main thread."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.dice = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self._bad_ends: list[str] = []
        self._now = "starting"  # the current fault; also read by the progress thread
        self._stop = threading.Event()
        self._started = time.monotonic()
        self.node = RabbitMQNode(install=True).start()
        self.oracle = Oracle(directory)
        self.proxy = Proxy(self.node.port)
        self.workers = Workers(directory, self.oracle, self.node.url)
        self._kinds: dict[str, Callable[[], None]] = {
            "broker killed": self._kill_broker,
            "broker stopped and started": self.node.restart,
            "broker silent": self._suspend_broker,
            "memory alarm": self._alarm,
            "connections closed": lambda: self._ctl("close_all_connections", "soak"),
            "blackhole": self._blackhole,
            "answers swallowed": self._swallow,
            "connections reset": self._reset,
            "publisher killed": self._kill_publisher,
            "consumer killed": self._kill_consumer,
            "forks": self._fork,
        }

    def __enter__(self) -> Soak:
        self._begin()
        threading.Thread(target=self._print_progress, name="message-hub-soak-progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.workers.close()
        self.proxy.close()
        self.oracle.close()
        self.node.stop()

    def run(self, seconds: float) -> None:
        """Cause random faults until the time is over."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            name = self.dice.choice(list(self._kinds))
            self.faults[name] += 1
            self._now = name
            self._kinds[name]()
            self._now = "calm"
            self._stop.wait(self.dice.uniform(0.5, 5))

    def finish(self) -> Outcome:
        """Stop the publishers, wait until everything is consumed, count the dead letters, and judge."""
        self._now = "draining"
        for publisher in self._publishers:
            self._end("publisher", publisher, 30)
        if not self.oracle.drained(DRAIN):
            print("not everything was consumed in time", file=sys.stderr)
        for consumer in self._consumers:
            self._end("consumer", consumer, 30)
        self._count_dead_letters()
        self._now = "judged"
        return Outcome(
            self.oracle.verdict(),
            tuple(self.oracle.calls()),
            tuple(self._bad_ends),
            tuple(self.workers.complaints()),
        )

    def _end(self, name: str, program: Program, timeout: float) -> None:
        try:
            code: object = program.stop(timeout)
        except AssertionError:
            code = f"nothing within {timeout:g} s"
        if code != 0:
            self._bad_ends.append(f"a {name} ended with {code}")
            print(program.log[-3000:], file=sys.stderr)

    # --- the processes ----------------------------------------------------------------------------

    def _begin(self) -> None:
        # Create the retry queue before the first kill: RabbitMQ 3.10 loses a quorum queue that is created just before.
        self._consumers = [self._consumer("--fail-first", "5"), self._consumer(url=self.proxy.url)]
        self._publishers = [self._publisher(), self._publisher(url=self.proxy.url)]
        self.oracle.wait(lambda counts: counts.handled >= 100, 30)

    def _publisher(self, *arguments: str, url: str | None = None) -> Program:
        sends = ("--event", EVENT, "--to", SERVICE, "--threads", "4", "--rate", "15", "--reset-timeout", "3")
        return self.workers.publisher(*sends, *arguments, url=url)

    def _consumer(self, *arguments: str, url: str | None = None) -> Program:
        takes = ("--service", SERVICE, "--event", EVENT, "--inbox", "--patient", "--attempts", "1000")
        return self.workers.consumer(*takes, *arguments, url=url)

    # --- the faults -------------------------------------------------------------------------------

    def _kill_broker(self) -> None:
        pause = self.dice.uniform(0, 4)
        self.node.kill()
        self._stop.wait(pause)
        try:
            self.node.start()
        except RabbitMQNodeError as error:
            # Not a failure of the library, but of the machine, mostly because of its load: try again.
            print(f"the broker did not start, once more: {error}", file=sys.stderr)
            self.node.start(120)

    def _suspend_broker(self) -> None:
        self.node.suspend()
        self._stop.wait(self.dice.choice((1, 3, 8, 14)))
        self.node.resume()

    def _alarm(self) -> None:
        self._ctl("set_vm_memory_high_watermark", "0.000001")
        self._stop.wait(self.dice.uniform(1, 10))
        self._ctl("set_vm_memory_high_watermark", "0.4")

    def _blackhole(self) -> None:
        self.proxy.blackhole()
        self._stop.wait(self.dice.choice((1, 4, 12)))
        self.proxy.heal()

    def _swallow(self) -> None:
        self.proxy.swallow_answers()
        self._stop.wait(self.dice.choice((1, 4, 12)))
        self.proxy.heal()

    def _reset(self) -> None:
        for _ in range(self.dice.randint(1, 4)):
            self.proxy.cut()
            self._stop.wait(0.3)

    def _kill_publisher(self) -> None:
        which = self.dice.randrange(2)
        self._publishers[which].kill()
        self._publishers[which] = self._publisher(url=(None, self.proxy.url)[which])

    def _kill_consumer(self) -> None:
        which = self.dice.randrange(2)
        self._consumers[which].kill()
        self._consumers[which] = self._consumer(url=(None, self.proxy.url)[which])

    def _fork(self) -> None:
        program = self.workers.script("forking", SERVICE, EVENT, "3", "20")
        self._end("process that forks", program, 60)

    def _ctl(self, *arguments: str) -> None:
        self.node.ctl(*arguments, timeout=60)

    # --- progress and report ----------------------------------------------------------------------

    def _print_progress(self) -> None:
        while not self._stop.wait(1):
            counts = self.oracle.counts()
            print(
                f"{time.monotonic() - self._started:6.0f} s  invoked {counts.invoked:7,}  ok {counts.ok:7,}  "
                f"rejected {counts.rejected:6,}  unknown {counts.unknown:4,}  handled {counts.handled:7,}  "
                f"duplicates {counts.duplicates:4,}  waiting {counts.lost:5,}  {self._now}",
                flush=True,
            )

    def _count_dead_letters(self) -> None:
        for queue in (f"{SERVICE}.{EVENT}.dead", f"{SERVICE}.messages.dead"):
            with raw_channel(self.node.url) as channel:
                channel.queue_declare(queue, durable=True)
                while True:
                    method, properties, _ = channel.basic_get(queue, auto_ack=True)
                    if method is None:
                        break
                    self.oracle.ledger.dead(properties.message_id)


def report(seed: int, minutes: float, faults: Counter[str], outcome: Outcome) -> str:
    """The report that is printed at the end."""
    verdict, late = outcome.verdict, outcome.late
    counts: Counts = verdict.counts
    longest = max((call.seconds for call in outcome.calls), default=0.0)
    lines = [
        f"soak of {minutes:g} minutes, seed {seed}: {'HOLDS' if outcome.holds else 'VIOLATED'}",
        "faults: " + ", ".join(f"{name} x {count}" for name, count in sorted(faults.items())),
        str(counts),
        f"longest call: {longest:.2f} s of {DEADLINE:g} s; past it by more than {MARGIN:g} s: {len(late)}",
    ]
    if not verdict.holds:
        lines.append(str(verdict))
    lines += [f"late: {call.outcome} {call.error} after {call.seconds:.2f} s" for call in late[:20]]
    lines += [f"end: {end}" for end in outcome.bad_ends]
    lines += [f"log: {line}" for line in outcome.complaints[:20]]
    return "\n".join(lines)


def main() -> int:
    """Parse, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", type=Path, help="a directory for ledger and logs, kept")
    parser.add_argument("--write-report", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="message-hub-soak-") as temporary,
        Soak(options.seed, options.keep or Path(temporary)) as soak,
    ):
        soak.run(options.minutes * 60)
        outcome = soak.finish()
        print(report(options.seed, options.minutes, soak.faults, outcome), flush=True)
    if options.write_report:
        minutes = f"{options.minutes:g} minute{'s' if options.minutes != 1 else ''}, seed {options.seed}"
        holds, counts = outcome.holds, outcome.verdict.counts
        write_table({34: Row(passed=int(holds), failed=int(not holds), counts=counts, played=minutes)})
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
