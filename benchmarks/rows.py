"""The rows of the table: what is measured, for which libraries, and the target ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["COMPETITORS", "METRICS", "OURS", "PEERS", "ROWS", "Metric", "Row", "Target"]

OURS = "message_hub"


@dataclass(frozen=True)
class Competitor:
    """One way of using one library.

    ``pace``: the part of a row's messages for a competitor that would need minutes for all of them. All others get the
    same number of messages, because RabbitMQ accepts the first 3,000 of a queue a fifth faster than the following ones.
    """

    module: str
    title: str
    variant: str = ""
    pace: float = 1.0


COMPETITORS = {
    OURS: Competitor("message_hub", "message_hub_sync"),
    "librabbitmq": Competitor("librabbitmq", "C (librabbitmq)"),
    "pika": Competitor("pika", "pika"),
    "pika-shared": Competitor("pika", "pika, one + lock", variant="-shared"),
    "kombu": Competitor("kombu", "kombu"),
    "aio_pika": Competitor("aio_pika", "aio-pika"),
    "amqpstorm": Competitor("amqpstorm", "amqpstorm", pace=0.1),
    "amqpstorm-shared": Competitor("amqpstorm", "amqpstorm, one channel", variant="-shared", pace=0.03),
    "imports": Competitor("imports", "pika + pydantic + prometheus_client"),
}
#: Values for ``--peers``: the libraries.
PEERS = ("librabbitmq", "pika", "kombu", "aio_pika", "amqpstorm")


@dataclass(frozen=True)
class Metric:
    """A number of a measurement. For ``rate``, a ratio above 1 is better; for all others, a ratio below 1."""

    title: str
    unit: str
    more_is_better: bool = False


METRICS = {
    "rate": Metric("messages per second", "msg/s", more_is_better=True),
    "cpu_per_10k": Metric("client CPU per 10,000 messages", "s"),
    "p50_us": Metric("p50", "µs"),
    "p99_us": Metric("p99", "µs"),
    "cpu_ms_per_s": Metric("CPU while idle", "ms/s"),
    "threads": Metric("threads beside the main one", ""),
    "sockets": Metric("connections", ""),
    "import_ms": Metric("import", "ms"),
    "max_rss_mb": Metric("memory at most", "MB"),
}


@dataclass(frozen=True)
class Target:
    """A target for the ratio of our number to a peer's: ``must`` be reached, and ``want``, if possible."""

    peer: str
    must: float
    want: float | None = None
    metric: str = "rate"

    def met(self, ratio: float) -> bool:
        """Compares the ratio as it is printed, with two decimals."""
        ratio = round(ratio, 2)
        return ratio >= self.must if METRICS[self.metric].more_is_better else ratio <= self.must

    def __str__(self) -> str:
        sign = "≥" if METRICS[self.metric].more_is_better else "≤"
        return f"{sign} {self.must:g}" + ("" if self.want is None else f" → {self.want:g}")


@dataclass(frozen=True)
class Row:
    """One row: every competitor does the same ``operation`` with these settings (fields of a ``Task``)."""

    name: str
    title: str
    operation: str
    peers: tuple[str, ...]
    messages: int = 0
    metrics: tuple[str, ...] = ("rate", "cpu_per_10k")
    targets: tuple[Target, ...] = ()
    settings: Sequence[tuple[str, Any]] = ()
    #: Whether the body size matters. If so, the row is run for each size.
    sized: bool = True
    #: The row's own body sizes, in bytes. Without them it is run for the sizes of the plan.
    bodies: tuple[int, ...] = ()
    #: Whether the rate is independent of the number of messages, so that slow competitors may process fewer.
    paced: bool = True
    #: Whether the queue is filled before the measurement.
    filled: bool = False


_CONFIRMED = ("librabbitmq", "pika", "kombu", "aio_pika", "amqpstorm")
_CONFIRMED_SHARED = ("librabbitmq", "pika", "pika-shared", "kombu", "aio_pika", "amqpstorm", "amqpstorm-shared")
_SINGLE = ("p50_us", "p99_us", "cpu_per_10k")

ROWS = {
    row.name: row
    for row in (
        Row(
            "publish-1",
            "publish, confirmed, 1 thread",
            "publish",
            _CONFIRMED,
            messages=3000,
            targets=(
                Target("pika", 1.1, 1.25),
                Target("kombu", 1.0),
                Target("aio_pika", 1.2),
                Target("librabbitmq", 0.75, 0.9),
                Target("pika", 0.65, 0.4, metric="cpu_per_10k"),
                Target("kombu", 0.75, metric="cpu_per_10k"),
                Target("aio_pika", 0.45, metric="cpu_per_10k"),
            ),
        ),
        Row(
            "publish-8",
            "publish, confirmed, 8 threads",
            "publish",
            _CONFIRMED_SHARED,
            messages=4000,
            settings=(("threads", 8),),
            targets=(
                Target("pika", 1.2, 1.6),
                Target("pika-shared", 3.5),
                Target("kombu", 1.2),
                Target("aio_pika", 1.2),
                Target("librabbitmq", 0.55, 0.8),
            ),
        ),
        Row(
            "publish-32",
            "publish, confirmed, 32 threads",
            "publish",
            _CONFIRMED_SHARED,
            messages=6000,
            settings=(("threads", 32),),
            targets=(
                Target("pika", 1.9, 3),
                Target("pika-shared", 5),
                Target("kombu", 1.6),
                Target("aio_pika", 1.4),
                Target("librabbitmq", 0.5, 0.8),
            ),
        ),
        Row(
            "bulk",
            "bulk, confirmed",
            "bulk",
            ("librabbitmq", "pika", "kombu", "aio_pika"),
            messages=10_000,
            targets=(
                Target("pika", 10),
                Target("kombu", 9),
                Target("aio_pika", 2.3),
                Target("librabbitmq", 0.85),
            ),
        ),
        Row(
            "publish-bodies",
            "publish, confirmed, 1 thread",
            "publish",
            ("pika",),
            messages=400,
            targets=(Target("pika", 1.0), Target("pika", 1.0, metric="cpu_per_10k")),
            bodies=(256, 16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024),
        ),
        Row(
            "consume-default",
            "consume, the defaults of each",
            "consume",
            _CONFIRMED,
            messages=10_000,
            targets=(
                Target("pika", 1.5),
                Target("kombu", 1.5),
                Target("aio_pika", 2.2),
                Target("librabbitmq", 0.5),
            ),
            paced=False,
            filled=True,
        ),
        Row(
            "consume-each",
            "consume, prefetch 100, ack each",
            "consume",
            _CONFIRMED,
            messages=10_000,
            settings=(("acks", "each"),),
            paced=False,
            filled=True,
        ),
        Row(
            "consume-coalesced",
            "consume, prefetch 100, acks coalesced",
            "consume",
            ("librabbitmq", "pika"),
            messages=10_000,
            settings=(("acks", "coalesced"),),
            paced=False,
            filled=True,
        ),
        Row(
            "moves",
            "failing messages, moved to another queue",
            "move",
            ("pika",),
            messages=2_000,
            targets=(Target("pika", 1.0),),
            paced=False,
            filled=True,
        ),
        Row(
            "letters-look",
            "dead letters: looked at",
            "look",
            ("pika",),
            messages=10_000,
            sized=False,
            paced=False,
        ),
        Row(
            "letters-back",
            "dead letters: put back",
            "put-back",
            ("pika",),
            messages=3_000,
            targets=(Target("pika", 3.0),),
            sized=False,
            paced=False,
        ),
        Row(
            "latency",
            "publish → handler",
            "latency",
            ("pika", "kombu", "aio_pika"),
            messages=1500,
            metrics=_SINGLE,
            sized=False,
            paced=False,
        ),
        Row(
            "request",
            "request → response",
            "request",
            ("pika", "kombu", "aio_pika"),
            messages=1500,
            metrics=_SINGLE,
            targets=(Target("pika", 1.0, metric="p50_us"),),
            sized=False,
            paced=False,
        ),
        Row(
            "connect",
            "connect, until a message can be published",
            "connect",
            ("pika",),
            messages=100,
            metrics=("p50_us", "p99_us"),
            sized=False,
            paced=False,
        ),
        *(
            Row(
                f"idle-{subscriptions}",
                f"idle, {subscriptions} subscription{'s' if subscriptions > 1 else ''}",
                "idle",
                ("pika",),
                metrics=("cpu_ms_per_s", "threads", "sockets", "max_rss_mb"),
                settings=(("subscriptions", subscriptions),),
                sized=False,
            )
            for subscriptions in (1, 10, 50)
        ),
        Row(
            "import",
            "import",
            "import",
            ("imports",),
            metrics=("import_ms",),
            targets=(Target("imports", 1.6, metric="import_ms"),),
            sized=False,
        ),
    )
}
