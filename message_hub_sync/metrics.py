"""The metrics for Prometheus, in prometheus_client's default registry.

The async library has metrics of the same names. Both libraries can be imported, in either order, and each family is
exposed once, with the samples of both: this module's metrics claim no name in the registry, and join a family of the
same name if there is one. If this module is loaded again, the metrics of the first time stay in use. In multiprocess
mode, prometheus_client merges the samples itself, from files. In these files the help text is a part of the key, so
the samples of the two libraries stay separate until they are summed.

Metrics only observe: no error of prometheus_client leaves this module, for example of a full disk in multiprocess mode.
"""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.locks import Lock
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["MESSAGE_COUNTER", "MESSAGE_LATENCY", "ServiceMetrics", "exposition"]

#: prometheus_client's default buckets, and smaller ones for a hub in the same network. As they are a superset of the
#: default buckets, the sum with a histogram of default buckets is a valid histogram.
_BUCKETS = (0.0005, 0.001, 0.0025, *Histogram.DEFAULT_BUCKETS)
#: The upper bounds in the histogram: the buckets and infinity.
_BOUNDS = sorted({*map(float, _BUCKETS), float("inf")})

M = TypeVar("M")
P = ParamSpec("P")

logger = SafeLogger("message_hub_sync.metrics")


def _earlier() -> Any:
    """The collector that this module registered when it was loaded before, or ``None``."""
    # By its name: the class is another one then.
    registered = getattr(REGISTRY, "_collector_to_names", {})
    return next((one for one in registered if (type(one).__module__, type(one).__name__) == _EXPOSITION), None)


_EXPOSITION = (__name__, "_Exposition")
_JOINED = (__name__, "_Joined")
_earlier_exposition = _earlier()


def _once(make: Callable[..., M], name: str, *details: Any, **options: Any) -> M:
    """A metric, or the one of this name from when this module was loaded before: its samples are still counted."""
    known: dict[str, Any] = {} if _earlier_exposition is None else _earlier_exposition._own
    found: M | None = known.get(name.removesuffix("_total"))
    return make(name, *details, registry=None, **options) if found is None else found


MESSAGE_COUNTER = _once(
    Counter,
    "message_hub_messages_total",
    "Messages and events sent, published or received by message_hub_sync",
    ["service", "type", "status"],
)
MESSAGE_LATENCY = _once(
    Histogram,
    "message_hub_message_latency_seconds",
    "Seconds until the hub confirmed (send, publish) or the handler returned (receive), in message_hub_sync",
    ["service", "type"],
    buckets=_BUCKETS,
)
_CIRCUIT_STATE = _once(
    Gauge,
    "message_hub_circuit_breaker_state",
    "Circuit of a destination in message_hub_sync: 0 closed, 1 half-open, 2 open",
    ["service", "destination"],
    multiprocess_mode="livemax",
)
_RETRIES = _once(
    Counter,
    "message_hub_retries_total",
    "Deliveries that message_hub_sync moved to a retry queue",
    ["service", "queue"],
)
_DEAD_LETTERED = _once(
    Counter,
    "message_hub_dead_lettered_total",
    "Deliveries that message_hub_sync moved to a dead-letter queue, or dropped because there was none",
    ["service", "queue"],
)
_DUPLICATES = _once(
    Counter,
    "message_hub_duplicates_total",
    "Deliveries that message_hub_sync dropped as duplicates",
    ["service", "queue"],
)
_SKIPPED = _once(
    Counter,
    "message_hub_skipped_total",
    "Deliveries that a middleware of message_hub_sync acknowledged without running their handlers",
    ["service", "queue"],
)
_LATE_REPLIES = _once(
    Counter,
    "message_hub_late_replies_total",
    "Replies that message_hub_sync received after their request had ended",
    ["service"],
)

Kind = Literal["send", "publish", "receive"]
_KINDS: tuple[Kind, ...] = ("send", "publish", "receive")
_STATES = {"closed": 0, "half-open": 1, "open": 2}


_RLOCK = type(threading.RLock())

# Held while a message is counted, whatever other lock is held. A forked child gets a new one.
_counting = Lock(1_000)


def _child(metric: Any, *labels: str) -> Any:
    """The child of ``metric`` with these labels. A signal handler or ``__del__`` may use it inside any use of it."""
    child = metric.labels(*labels)
    _let_locks_be_taken_again(child)
    return child


_failures = itertools.count()


def _report_failure(error: Exception) -> None:
    """Log the first failure of this process."""
    if next(_failures) == 0:
        logger.error(
            "a metric was not updated; the metrics of this process may be incomplete from now on", exc_info=error
        )


def _observing(method: Callable[P, None]) -> Callable[P, None]:
    """The method cannot raise: a metric must not replace the result of what it measures."""

    @wraps(method)
    def observe(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            _report_failure(error)

    return observe


class ServiceMetrics:
    """The metrics of one service. No method raises. Safe from any thread: prometheus_client's values have locks."""

    def __init__(self, service: str) -> None:
        self._service = service
        # Created once: looking up a child takes three times as long as its increment. So the children are also exposed
        # from the start, as zeros.
        self._succeeded = {kind: _Counted(service, kind, "success").each for kind in _KINDS}
        self._failed = {kind: _Counted(service, kind, "error").each for kind in _KINDS}

    def count(self, kind: Kind, ok: bool, seconds: float, number: int = 1) -> None:
        """Count messages or events.

        :param kind: ``send``, ``publish`` or ``receive``.
        :param ok: whether the hub confirmed them (send, publish), or the handler returned (receive).
        :param seconds: duration for each of them.
        :param number: how many.
        """
        (self._succeeded if ok else self._failed)[kind](seconds, number)

    @_observing
    def circuit_made(self, destination: str) -> None:
        """Expose the circuit of ``destination``: as closed, unless its state was set before."""
        _child(_CIRCUIT_STATE, self._service, destination)

    @_observing
    def circuit_state(self, destination: str, state: str) -> None:
        """Set the state of the circuit of ``destination``: ``closed``, ``half-open`` or ``open``."""
        _child(_CIRCUIT_STATE, self._service, destination).set(_STATES[state])

    @_observing
    def retried(self, queue: str) -> None:
        """Count a delivery of ``queue`` that was moved to a retry queue."""
        _child(_RETRIES, self._service, queue).inc()

    @_observing
    def dead_lettered(self, queue: str) -> None:
        """Count a delivery of ``queue`` that was dead-lettered, or dropped because there was no dead-letter queue."""
        _child(_DEAD_LETTERED, self._service, queue).inc()

    @_observing
    def duplicate_dropped(self, queue: str) -> None:
        """Count a delivery of ``queue`` that was dropped because it had been handled before."""
        _child(_DUPLICATES, self._service, queue).inc()

    @_observing
    def skipped(self, queue: str) -> None:
        """Count a delivery of ``queue`` that a middleware ended without running its handlers."""
        _child(_SKIPPED, self._service, queue).inc()

    @_observing
    def late_reply_dropped(self) -> None:
        """Count a reply that was dropped because its request had ended."""
        _child(_LATE_REPLIES, self._service).inc()


class _Nothing:
    """In place of a value that could not be made."""

    _multiprocess = False
    _value = 0.0


class _Counted:
    """One child of the counter and one of the histogram, updated together."""

    def __init__(self, service: str, kind: Kind, status: str) -> None:
        # Each message is counted here. inc() and observe() spend two thirds of their time on checks that always pass,
        # so the values inside the children are updated directly, in multiprocess mode by their inc(), which writes to
        # files. Not by inc() elsewhere: on Python 3.14 a signal handler that raises could leave its lock held.
        self._count: Any = _Nothing()
        self._sum: Any = _Nothing()
        self._buckets: list[Any] = [_Nothing()] * len(_BOUNDS)
        self._find_children(service, kind, status)
        self._add = self._add_to_files if self._count._multiprocess else self._add_in_memory

    @_observing
    def _find_children(self, service: str, kind: Kind, status: str) -> None:
        """Raises inside if a file cannot be made (multiprocess mode); then this object counts nothing."""
        counter = _child(MESSAGE_COUNTER, service, kind, status)
        latency = _child(MESSAGE_LATENCY, service, kind)
        self._count, self._sum, self._buckets = counter._value, latency._sum, latency._buckets

    def each(self, seconds: float, number: int) -> None:
        try:
            _counting.run(self._add, seconds, number)
        except Exception as error:
            _report_failure(error)

    def _add_in_memory(self, seconds: float, number: int) -> None:
        self._count._value += number
        self._sum._value += seconds * number
        self._buckets[bisect_left(_BOUNDS, seconds)]._value += number

    def _add_to_files(self, seconds: float, number: int) -> None:
        self._count.inc(number)
        self._sum.inc(seconds * number)
        self._buckets[bisect_left(_BOUNDS, seconds)].inc(number)


class _Exposition(Collector):
    """Exposes this module's metrics in the default registry, merged with another library's metrics of the same name."""

    def __init__(self, *metrics: Collector) -> None:
        self._own = {family.name: metric for metric in metrics for family in metric.collect()}

    def describe(self) -> Iterable[Metric]:
        """Claim no name: another library can then register a metric of the same name later without an error."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The families whose names only this module has. For other names, the other collector returns this module's
        samples with its own.

        The registry calls this before collectors that were registered after this module, so it joins those in time.
        """
        joined = self.join()
        return [family for name, own in self._own.items() if name not in joined for family in own.collect()]

    def join(self) -> set[str]:
        """Make each foreign collector of one of our names collect this module's samples with its own.

        :returns: the names of these collectors.
        """
        joined = set()
        for name, own in self._own.items():
            # prometheus_client has no public way to find the collector of a name.
            foreign: Any = REGISTRY._names_to_collectors.get(name)
            if foreign is None:
                continue
            joined.add(name)
            # It is ``own`` if the application registered our metric itself.
            if foreign is own:
                continue
            collect: Any = foreign.collect
            # By its name: when this module was loaded before, the class was another one.
            if (type(collect).__module__, type(collect).__name__) != _JOINED:
                foreign.collect = _Joined(collect, self._own)
            elif collect._own is not self._own:
                foreign.collect = _Joined(collect._theirs, self._own)
        return joined


class _Joined:
    """The ``collect`` of a foreign collector, with this module's samples merged into its families of the same name."""

    def __init__(self, theirs: Callable[[], Iterable[Metric]], own: dict[str, Collector]) -> None:
        self._theirs = theirs
        self._own = own

    def __call__(self) -> list[Metric]:
        families = list(self._theirs())
        for family in families:
            if family.name in self._own:
                for ours in self._own[family.name].collect():
                    # If the types differ, our samples are not exposed: a family has one type.
                    if ours.type == family.type:
                        _merge(ours, into=family)
        return families


def _merge(ours: Metric, *, into: Metric) -> None:
    """Merge samples: add counts, keep the larger of two gauges and the earlier of two creation times."""
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
if _earlier_exposition is not None:
    REGISTRY.unregister(_earlier_exposition)
REGISTRY.register(_exposition)
# A scrape restricted to names (``?name[]=``) asks only the collectors that claim them and those in this list. Old
# versions of prometheus_client have no list.
getattr(REGISTRY, "_collectors_without_names", []).append(_exposition)


def exposition() -> tuple[bytes, str]:
    """All metrics of this process as Prometheus reads them, and their content type.

    In multiprocess mode, those of all processes.
    """
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _let_locks_be_taken_again(metric: Any, *, anew: bool = False) -> None:
    """Give a metric, and the values in it, locks that the thread which holds one may take again.

    prometheus_client has plain locks and no public way to replace them. User code that interrupts a use of the metric
    on the same thread would wait for itself.

    :param anew: replace such locks, too; in a forked child, where no lock of the parent may be taken.
    """
    values = (getattr(metric, "_value", None), getattr(metric, "_sum", None), *getattr(metric, "_buckets", ()))
    for holder in (metric, *values):
        if hasattr(holder, "_lock"):
            if anew or not isinstance(holder._lock, _RLOCK):
                holder._lock = threading.RLock()
        elif getattr(holder, "_multiprocess", False):
            _replace_shared_lock(type(holder), anew)


def _replace_shared_lock(values: type, anew: bool) -> None:
    """Replace the lock of multiprocess mode. All values share it: it is a local variable of what made their class."""
    for function in vars(values).values():
        code = getattr(function, "__code__", None)
        for name, cell in zip(
            getattr(code, "co_freevars", ()), getattr(function, "__closure__", ()) or (), strict=True
        ):
            if name == "lock" and anew:
                cell.cell_contents = threading.RLock()
            elif name == "lock" and not isinstance(cell.cell_contents, _RLOCK):
                with cell.cell_contents:  # not while another thread writes to the files
                    cell.cell_contents = threading.RLock()


def _after_fork_in_child() -> None:
    """Replace all locks: a thread that does not exist in the child may have held one at the fork."""
    global _counting
    _counting = Lock(_counting.order)
    for metric in _exposition._own.values():
        for child in (metric, *getattr(metric, "_metrics", {}).values()):
            _let_locks_be_taken_again(child, anew=True)
    for child in getattr(_CIRCUIT_STATE, "_metrics", {}).values():
        # The circuits are the parent's; those of the child start closed. In multiprocess mode the child has files of
        # its own, which start with zeros.
        if not child._value._multiprocess:
            child._value._value = 0.0


for _metric in _exposition._own.values():
    _let_locks_be_taken_again(_metric)
call_after_fork_in_child(_after_fork_in_child)
