"""What is counted for Prometheus, in prometheus_client's default registry.

The async library has metrics of the same names. Whichever of the two is imported first, neither is refused
and each family is exposed once, with the samples of both: ours claim no name in the registry and join the
family of the same name where there is one. In multiprocess mode prometheus_client does that by itself,
over files; there our help texts, which are part of its keys, keep the two apart until they are summed.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Literal

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from message_hub_sync.runtime.fork import call_after_fork_in_child

__all__ = ["MESSAGE_COUNTER", "MESSAGE_LATENCY", "ServiceMetrics"]

#: prometheus_client's default buckets and, below them, what a hub nearby takes. A superset of the default, so
#: that the sum with a histogram of default buckets is a histogram still.
_BUCKETS = (0.0005, 0.001, 0.0025, *Histogram.DEFAULT_BUCKETS)
#: The same, as the histogram has them, infinity included.
_BOUNDS = sorted({*map(float, _BUCKETS), float("inf")})

MESSAGE_COUNTER = Counter(
    "message_hub_messages_total",
    "Messages and events sent, published or received by message_hub_sync",
    ["service", "type", "status"],
    registry=None,
)
MESSAGE_LATENCY = Histogram(
    "message_hub_message_latency_seconds",
    "Seconds until the hub confirmed (send, publish) or the handler returned (receive), in message_hub_sync",
    ["service", "type"],
    registry=None,
    buckets=_BUCKETS,
)
_CIRCUIT_STATE = Gauge(
    "message_hub_circuit_breaker_state",
    "Circuit of a destination in message_hub_sync: 0 closed, 1 half-open, 2 open",
    ["service", "destination"],
    registry=None,
    multiprocess_mode="livemax",
)
_RETRIES = Counter(
    "message_hub_retries_total",
    "Deliveries that message_hub_sync put back for a later retry",
    ["service", "queue"],
    registry=None,
)
_DEAD_LETTERED = Counter(
    "message_hub_dead_lettered_total",
    "Deliveries that message_hub_sync moved to a dead-letter queue, or dropped for want of one",
    ["service", "queue"],
    registry=None,
)
_DUPLICATES = Counter(
    "message_hub_duplicates_total",
    "Deliveries that message_hub_sync dropped as duplicates",
    ["service", "queue"],
    registry=None,
)
_SKIPPED = Counter(
    "message_hub_skipped_total",
    "Deliveries that a middleware of message_hub_sync acknowledged without running their handlers",
    ["service", "queue"],
    registry=None,
)
_LATE_REPLIES = Counter(
    "message_hub_late_replies_total",
    "Replies that came to message_hub_sync after their request had ended",
    ["service"],
    registry=None,
)

Kind = Literal["send", "publish", "receive"]
_KINDS: tuple[Kind, ...] = ("send", "publish", "receive")
_STATES = {"closed": 0, "half-open": 1, "open": 2}


class ServiceMetrics:
    """The metrics of one service. Nothing in it changes; prometheus_client's values lock themselves."""

    def __init__(self, service: str) -> None:
        self._service = service
        # Made once: looking a child up costs three times its increment. Zeros show from the start.
        self._succeeded = {kind: _Counted(service, kind, "success").each for kind in _KINDS}
        self._failed = {kind: _Counted(service, kind, "error").each for kind in _KINDS}

    def count(self, kind: Kind, ok: bool, seconds: float, number: int = 1) -> None:
        """So many messages that were sent, published or received, and how long each of them took."""
        (self._succeeded if ok else self._failed)[kind](seconds, number)

    def circuit_made(self, destination: str) -> None:
        """There is a circuit of ``destination`` now: it shows, closed where nobody else has said otherwise."""
        _CIRCUIT_STATE.labels(self._service, destination)

    def circuit_state(self, destination: str, state: str) -> None:
        """The circuit of ``destination`` is ``closed``, ``half-open`` or ``open`` now."""
        _CIRCUIT_STATE.labels(self._service, destination).set(_STATES[state])

    def retried(self, queue: str) -> None:
        """A delivery of ``queue`` was put back for later."""
        _RETRIES.labels(self._service, queue).inc()

    def dead_lettered(self, queue: str) -> None:
        """A delivery of ``queue`` was given up."""
        _DEAD_LETTERED.labels(self._service, queue).inc()

    def duplicate_dropped(self, queue: str) -> None:
        """A delivery of ``queue`` had been handled before."""
        _DUPLICATES.labels(self._service, queue).inc()

    def skipped(self, queue: str) -> None:
        """A middleware ended a delivery of ``queue`` without its handlers."""
        _SKIPPED.labels(self._service, queue).inc()

    def late_reply_dropped(self) -> None:
        """A reply came when its request had ended."""
        _LATE_REPLIES.labels(self._service).inc()


class _Counted:
    """One child of the counter with one of the histogram, counted together.

    Every message comes by here, and ``inc()`` and ``observe()`` spend two thirds of their time on questions whose
    answer is known. So the values under them are asked, which lock themselves (in multiprocess mode, write files).
    """

    def __init__(self, service: str, kind: Kind, status: str) -> None:
        counter: Any = MESSAGE_COUNTER.labels(service, kind, status)
        latency: Any = MESSAGE_LATENCY.labels(service, kind)
        self._count = counter._value.inc
        self._sum = latency._sum.inc
        self._buckets = [bucket.inc for bucket in latency._buckets]

    def each(self, seconds: float, number: int) -> None:
        self._count(number)
        self._sum(seconds * number)
        self._buckets[bisect_left(_BOUNDS, seconds)](number)


class _Exposition(Collector):
    """Shows our metrics in the default registry beside, or as part of, another library's of the same name."""

    def __init__(self, *metrics: Collector) -> None:
        self._own = {family.name: metric for metric in metrics for family in metric.collect()}

    def describe(self) -> Iterable[Metric]:
        """Claims no name, so that whoever registers one of these names later is not refused."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The families that nobody else has. It comes before any collector registered after this module."""
        joined = self.join()
        return [family for name, own in self._own.items() if name not in joined for family in own.collect()]

    def join(self) -> set[str]:
        """Have every foreign collector of one of our names collect ours with its own."""
        joined = set()
        for name, own in self._own.items():
            # There is no public way from a name to its collector.
            foreign: Any = REGISTRY._names_to_collectors.get(name)
            if foreign is None:
                continue
            joined.add(name)
            # Ours itself is there when somebody registered it by hand.
            if foreign is not own and not isinstance(foreign.collect, _Joined):
                foreign.collect = _Joined(foreign.collect, self._own)
        return joined


class _Joined:
    """A foreign collector's ``collect``, with our samples merged into its families of our names."""

    def __init__(self, theirs: Callable[[], Iterable[Metric]], own: dict[str, Collector]) -> None:
        self._theirs = theirs
        self._own = own

    def __call__(self) -> list[Metric]:
        families = list(self._theirs())
        for family in families:
            if family.name in self._own:
                for ours in self._own[family.name].collect():
                    # Of another type, ours cannot be shown at all: a family has one type.
                    if ours.type == family.type:
                        _merge(ours, into=family)
        return families


def _merge(ours: Metric, *, into: Metric) -> None:
    """Sum what counts, keep the greater of two gauges and the earlier of two moments of creation."""
    found = {(sample.name, *sorted(sample.labels.items())): sample for sample in ours.samples}
    for sample in into.samples:
        key = (sample.name, *sorted(sample.labels.items()))
        same = found.get(key)
        if same is None:
            found[key] = sample
        elif sample.name.endswith("_created"):
            found[key] = same._replace(value=min(same.value, sample.value))
        elif ours.type == "gauge":
            found[key] = same._replace(value=max(same.value, sample.value))
        else:
            found[key] = same._replace(value=same.value + sample.value)
    into.samples = list(found.values())


_exposition = _Exposition(
    MESSAGE_COUNTER, MESSAGE_LATENCY, _CIRCUIT_STATE, _RETRIES, _DEAD_LETTERED, _DUPLICATES, _SKIPPED, _LATE_REPLIES
)
_exposition.join()
REGISTRY.register(_exposition)
# A scrape restricted to names (``?name[]=``) asks only who claims them, and these; old versions have no list.
getattr(REGISTRY, "_collectors_without_names", []).append(_exposition)


def _after_fork_in_child() -> None:
    """In a forked child: a thread that does not exist there may hold any of them (there is no public way)."""
    for metric in _exposition._own.values():
        for child in (metric, *getattr(metric, "_metrics", {}).values()):
            values = (getattr(child, "_value", None), getattr(child, "_sum", None), *getattr(child, "_buckets", ()))
            for holder in (child, *values):
                if hasattr(holder, "_lock"):
                    holder._lock = threading.RLock()
    for child in getattr(_CIRCUIT_STATE, "_metrics", {}).values():
        child.set(0)  # circuits stay with the parent


call_after_fork_in_child(_after_fork_in_child)
