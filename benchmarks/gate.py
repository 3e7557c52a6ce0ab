"""The regression gate: compares what a message costs with ``baseline.json``.

It counts instead of measuring time, and uses a scripted broker that always does the same. So its result does not depend
on the load of the machine. It takes a few seconds and needs no RabbitMQ. Each version of Python has its own baseline,
because the numbers differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.counting import PASSES, WORKLOADS

__all__ = ["BASELINE", "main"]

BASELINE = Path(__file__).with_name("baseline.json")

_ROOT = BASELINE.parent.parent
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_TIMEOUT = 60.0


@dataclass(frozen=True)
class _Count:
    """One kind of count per message: its name, and how much it may exceed the baseline."""

    title: str
    relative: float
    absolute: float = 0.0

    def limit(self, baseline: float) -> float:
        return baseline * (1 + self.relative) + self.absolute


#: The runs of one commit differ by 0.1 % in calls and instructions, by one or two system calls in 1,000 messages, by
#: 0.3 blocks (caches that fill), and by 5 bytes.
_COUNTS = {
    "instructions": _Count("bytecode instructions", 0.02),
    "python_calls": _Count("calls of Python functions", 0.02),
    "c_calls": _Count("calls of C functions", 0.02),
    "sends": _Count("system calls: send", 0.05, 0.02),
    "receives": _Count("system calls: receive", 0.05, 0.02),
    "polls": _Count("system calls: poll", 0.05, 0.02),
    "bytes_written": _Count("bytes written", 0.01, 0.5),
    "frames_written": _Count("frames written", 0.01, 0.02),
    "blocks_kept": _Count("memory blocks kept", 0.0, 0.6),
    "peak_bytes": _Count("bytes of memory at the peak", 0.05, 50.0),
}
Numbers = dict[str, dict[str, float]]


def main(words: Sequence[str]) -> int:
    """Count, compare and print the differences. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gate", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the current counts as the baseline of this Python")
    given = parser.parse_args(words)
    baselines: dict[str, Numbers] = json.loads(BASELINE.read_text("utf-8")) if BASELINE.exists() else {}
    numbers = {workload: _count(workload, baselines.get(_VERSION, {}).get(workload, {})) for workload in WORKLOADS}
    if given.update:
        baselines[_VERSION] = numbers
        BASELINE.write_text(json.dumps(dict(sorted(baselines.items())), indent=1) + "\n", "utf-8")
        print(f"{BASELINE.name}: Python {_VERSION} written")
        return 0
    if _VERSION not in baselines:
        print(
            f"{BASELINE.name} has no numbers for Python {_VERSION}, only for {', '.join(baselines) or 'none'}: "
            "run `python -m benchmarks gate --update` on a good commit to write them"
        )
        return 1
    return _compare(baselines[_VERSION], numbers)


def _compare(baseline: Numbers, numbers: Numbers) -> int:
    worse = better = 0
    print(f"{'per message, Python ' + _VERSION:40}{'baseline':>12}{'now':>12}{'limit':>12}")
    for workload, counts in numbers.items():
        for name, kind in _COUNTS.items():
            now, before = counts[name], baseline.get(workload, {}).get(name, 0.0)
            limit = kind.limit(before)
            remark = ""
            if now > limit:
                worse += 1
                remark = f"   MORE THAN ALLOWED{f': {now / before:.2f} times' if before else ''}"
            elif kind.limit(now) < before:
                better += 1
                remark = f"   less: {now / before - 1:+.0%}"
            numbers = (round(number, 2) + 0.0 for number in (before, now, limit))  # never -0.00
            print(f"{f'{workload}: {kind.title}':40}{''.join(f'{number:12,.2f}' for number in numbers)}{remark}")
    if worse:
        print(
            f"\n{worse} number{'s' if worse > 1 else ''} above the limit: a message costs more than before. If that is "
            "intended, run `python -m benchmarks gate --update` and commit baseline.json with the reason."
        )
    elif better:
        print("\nCheaper than the baseline: run `python -m benchmarks gate --update` and commit it, to keep the gain.")
    else:
        print("\nAs the baseline.")
    return 1 if worse else 0


def _count(workload: str, baseline: dict[str, float]) -> dict[str, float]:
    """Run every pass. Repeat a pass that exceeds a limit, and keep the smaller counts: outliers are no regression."""
    found: dict[str, float] = {}
    for way in PASSES:
        counts = _pass(workload, way)
        if any(counts[name] > _COUNTS[name].limit(baseline[name]) for name in counts if name in baseline):
            again = _pass(workload, way)
            counts = {name: min(counts[name], again[name]) for name in counts}
        found.update(counts)
    return {name: round(found[name], 3) for name in _COUNTS}


def _pass(workload: str, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.counting", workload, way]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"counting {workload}, {way}, failed:\n{done.stderr}")
    counts: dict[str, float] = json.loads(done.stdout)
    return counts
