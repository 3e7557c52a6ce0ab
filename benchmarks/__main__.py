"""``python -m benchmarks`` measures this and other libraries; ``python -m benchmarks gate`` checks a message's cost."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import gate
from benchmarks.hub import Hub
from benchmarks.peers import with_librabbitmq
from benchmarks.plot import plotted
from benchmarks.progress import Progress
from benchmarks.report import as_json, as_markdown, circumstances
from benchmarks.rows import COMPETITORS, OURS, PEERS, ROWS, Row
from benchmarks.running import Measurement, Plan, run

_RESULTS = Path(__file__).with_name("results")


def main(words: Sequence[str]) -> int:
    """Run the command line. Returns the exit code."""
    if words[:1] == ["gate"]:
        return gate.main(words[1:])
    given = _parser().parse_args(words)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as directory, Progress() as progress:
        missing = _missing(given.peers, Path(directory))
        for name, why in missing.items():
            progress.say(f"{name} is not measured: {why}")
        plan = Plan(
            rows=_chosen(given.rows),
            peers=[name for name, it in COMPETITORS.items() if it.module in {"imports", *given.peers} - set(missing)],
            bodies=given.body or ([256] if given.quick else [256, 1024]),
            rounds=given.rounds or (1 if given.quick else 5),
            scale=1 / 6 if given.quick else 1.0,
            seconds=1.0 if given.quick else 5.0,
            minutes=given.minutes,
        )
        measurements: list[Measurement] = []
        with Hub() as hub:
            about = circumstances(_versions([m for m in given.peers if m not in missing]), hub.version(), missing)
            about["rounds"], about["quick"] = plan.rounds, given.quick
            try:
                for measurement in run(plan, hub, progress.measured):
                    measurements.append(measurement)
            except KeyboardInterrupt:
                progress.say("interrupted: reporting the measurements so far")
            about["measured"], about["planned"] = len(measurements), len(plan.steps())
        written = _write(about, measurements, given.quick, progress)
    print(as_json(about, measurements) if given.json else written, end="")
    return 1 if not measurements or any(measurement.error for measurement in measurements) else 0


def _write(about: dict[str, object], measurements: list[Measurement], quick: bool, progress: Progress) -> str:
    """Write JSON, table and plot. A quick run has its own file names, so that nobody takes it for a full run."""
    _RESULTS.mkdir(exist_ok=True)
    markdown = ""
    for name in ("quick",) if quick else (str(about["date"])[:10], "latest"):
        picture = _RESULTS / f"{name}.png"
        problem = plotted(about, measurements, picture)
        if problem:
            progress.say(problem)
        markdown = as_markdown(about, measurements, None if problem else picture)
        (_RESULTS / f"{name}.json").write_text(as_json(about, measurements), "utf-8")
        (_RESULTS / f"{name}.md").write_text(markdown, "utf-8")
        progress.say(f"written: {_RESULTS / name}.json, .md" + ("" if problem else ", .png"))
    return markdown


def _chosen(names: Sequence[str]) -> list[Row]:
    return [row for name, row in ROWS.items() if not names or any(name.startswith(start) for start in names)]


def _missing(peers: Sequence[str], directory: Path) -> dict[str, str]:
    """Peers that cannot be measured, each with the way to install it."""
    found = {}
    for name in peers:
        try:
            module = importlib.import_module(f"benchmarks.peers.with_{name}")
        except ImportError:
            found[name] = f"not installed: pip install {name.replace('_', '-')}"
            continue
        if module is with_librabbitmq:
            problem = with_librabbitmq.compiled_into(directory)
            if problem is not None:
                found[name] = problem
    return found


def _versions(peers: Sequence[str]) -> dict[str, str]:
    names = [importlib.import_module(f"benchmarks.peers.with_{name}").DISTRIBUTION for name in (OURS, *peers)]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # librabbitmq is not a Python package, and this library may run from its source tree.
            continue
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library and its peers on a throwaway RabbitMQ node. Results are written to "
        "benchmarks/results/. For the regression gate see `python -m benchmarks gate --help`.",
    )
    parser.add_argument("--quick", action="store_true", help="one round with fewer messages; takes about a minute")
    parser.add_argument("--rounds", type=_positive, help="number of rounds; default 5")
    parser.add_argument(
        "--rows", type=_words, default=[], metavar="A,B", help=f"rows whose names begin so; all: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--peers", type=_peers, default=list(PEERS), metavar="A,B", help=f"some of {', '.join(PEERS)}; or none"
    )
    parser.add_argument(
        "--body", type=_positive, action="append", help="size of the body in bytes, repeatable; default 256 and 1024"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="stop after so many minutes and report the measurements so far; default 60",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    return parser


def _words(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    for word in words:
        if not any(name.startswith(word) for name in ROWS):
            raise argparse.ArgumentTypeError(
                f"must be the beginning of a row's name, not {word!r}; the rows are {', '.join(ROWS)}"
            )
    return words


def _peers(text: str) -> list[str]:
    words = [word.replace("-", "_") for word in text.split(",") if word and word != "none"]
    for word in words:
        if word not in PEERS:
            raise argparse.ArgumentTypeError(f"must be some of {', '.join(PEERS)}, not {word!r}")
    return words


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
