"""Metrics: what the guide shows works, and the async library's metrics of the same names are no clash."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from message_hub_sync import CircuitBreakerConfig, MessageHubClient, MessageHubDeliveryError
from message_hub_sync.metrics import MESSAGE_COUNTER, MESSAGE_LATENCY, ServiceMetrics

#: What a library with the same metrics does at its import: the default registry, names, labels, buckets.
THEIRS = """
from prometheus_client import Counter, Histogram
theirs = Counter("message_hub_messages_total", "Theirs", ["service", "type", "status"])
latency = Histogram("message_hub_message_latency_seconds", "Theirs", ["service", "type"])
"""
OURS = """
from message_hub_sync.metrics import MESSAGE_COUNTER, MESSAGE_LATENCY, ServiceMetrics
"""
HELPERS = """
import os
from collections import Counter as Tally
from prometheus_client import CollectorRegistry, REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels)

def check_once(registry=REGISTRY):
    text = generate_latest(registry).decode()
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)), types
    list(text_string_to_metric_families(text))
    samples = Tally(line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#"))
    assert samples.most_common(1)[0][1] == 1, samples.most_common(1)
    if registry is REGISTRY:  # older MultiProcessCollectors group no histogram as OpenMetrics has it
        list(parse_openmetrics(openmetrics(registry).decode()))
"""


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def run(*parts: str, **environment: str) -> None:
    """Run code in an interpreter of its own: what is imported first is what these tests are about."""
    code = "".join(textwrap.dedent(part) for part in (HELPERS, *parts))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- ours alone ------------------------------------------------------------------------------------


def test_a_message_is_counted_by_service_type_and_status_and_its_latency_observed() -> None:
    metrics = ServiceMetrics("counting-service")
    metrics.count("send", True, 0.002)
    metrics.count("send", True, 3)
    metrics.count("send", False, 5)
    metrics.count("receive", True, 0.0005)
    service = "counting-service"
    name = "message_hub_messages_total"
    assert value(name, service=service, type="send", status="success") == 2
    assert value(name, service=service, type="send", status="error") == 1
    assert value(name, service=service, type="receive", status="success") == 1
    assert value(name, service=service, type="publish", status="success") == 0
    name = "message_hub_message_latency_seconds"
    assert value(f"{name}_count", service=service, type="send") == 3
    assert value(f"{name}_sum", service=service, type="send") == pytest.approx(8.002)
    assert value(f"{name}_bucket", service=service, type="send", le="0.0025") == 1
    assert value(f"{name}_bucket", service=service, type="send", le="5.0") == 3


def test_many_messages_are_counted_like_each_of_them() -> None:
    ServiceMetrics("many-service").count("publish", True, 0.002, 250)
    for _ in range(250):
        ServiceMetrics("each-service").count("publish", True, 0.002)
    latency = "message_hub_message_latency_seconds"
    for name, labels in (
        ("message_hub_messages_total", {"status": "success"}),
        (f"{latency}_count", {}),
        (f"{latency}_bucket", {"le": "0.001"}),
        (f"{latency}_bucket", {"le": "0.0025"}),
        (f"{latency}_sum", {}),
    ):
        many, each = (value(name, service=f"{who}-service", type="publish", **labels) for who in ("many", "each"))
        assert many == pytest.approx(each)


def test_a_latency_is_observed_as_prometheus_client_does() -> None:
    """The library updates the histogram's buckets directly: each duration must count in the bucket of ``observe()``."""
    ours, theirs = (MESSAGE_LATENCY.labels(service, "send") for service in ("our-way", "their-way"))
    metrics = ServiceMetrics("our-way")
    edges = [float(edge) for edge in theirs._upper_bounds]
    for seconds in [0.0, 1e9, *edges, *(edge * 0.999 for edge in edges), *(edge * 1.001 for edge in edges)]:
        metrics.count("send", True, seconds)
        theirs.observe(seconds)
    assert [bucket.get() for bucket in ours._buckets] == [bucket.get() for bucket in theirs._buckets]
    assert ours._sum.get() == theirs._sum.get()


def test_a_circuit_shows_from_its_first_call_on_and_is_open_no_longer_than_its_client() -> None:
    labels = {"service": "gauge-service", "destination": "nobody-at-all"}
    name = "message_hub_circuit_breaker_state"
    with MessageHubClient("gauge-service", "memory://gauges", circuit_breaker_config=CircuitBreakerConfig(1)) as client:
        with pytest.raises(MessageHubDeliveryError):
            client.send_message("nobody-at-all", {})
        assert value(name, **labels) == 0
        breakers = client._lifecycle.session().breakers
        breakers.admit("nobody-at-all").failed()
        assert value(name, **labels) == 2
    assert value(name, **labels) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_has_none_of_its_parents_open_circuits() -> None:
    run(
        OURS,
        """
        ServiceMetrics("s").circuit_state("d", "open")
        child = os.fork()
        if not child:
            os._exit(int(value("message_hub_circuit_breaker_state", service="s", destination="d")))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert value("message_hub_circuit_breaker_state", service="s", destination="d") == 2
        """,
    )


def test_the_state_of_a_circuit_is_a_number_that_grows_with_the_harm() -> None:
    metrics = ServiceMetrics("gauge-service")
    for state, number in (("open", 2), ("half-open", 1), ("closed", 0)):
        metrics.circuit_state("dead-service", state)
        labels = {"service": "gauge-service", "destination": "dead-service"}
        assert REGISTRY.get_sample_value("message_hub_circuit_breaker_state", labels) == number


def test_what_becomes_of_deliveries_is_counted_by_queue() -> None:
    metrics = ServiceMetrics("fates-service")
    metrics.retried("q")
    metrics.retried("q")
    metrics.dead_lettered("q")
    metrics.duplicate_dropped("q")
    metrics.late_reply_dropped()
    assert value("message_hub_retries_total", service="fates-service", queue="q") == 2
    assert value("message_hub_dead_lettered_total", service="fates-service", queue="q") == 1
    assert value("message_hub_duplicates_total", service="fates-service", queue="q") == 1
    assert value("message_hub_late_replies_total", service="fates-service") == 1


def test_the_metrics_work_as_the_guide_uses_them() -> None:
    MESSAGE_COUNTER.labels(service="your-service", type="custom_event", status="success").inc()
    with MESSAGE_LATENCY.labels(service="your-service", type="operation").time():
        pass
    labels = {"service": "your-service", "type": "custom_event", "status": "success"}
    assert REGISTRY.get_sample_value("message_hub_messages_total", labels) == 1
    assert value("message_hub_message_latency_seconds_count", service="your-service", type="operation") == 1


def test_each_family_is_exposed_once() -> None:
    run(OURS, "ServiceMetrics('ours').count('send', True, 1); check_once()")


@pytest.mark.skipif(
    not hasattr(REGISTRY, "_collectors_without_names"),
    reason="this prometheus_client asks only collectors that claim names",
)
def test_a_scrape_restricted_to_a_name_finds_ours() -> None:
    ServiceMetrics("restricted-service")
    text = generate_latest(REGISTRY.restricted_registry(["message_hub_messages_total"])).decode()
    assert 'service="restricted-service"' in text
    assert "message_hub_message_latency" not in text


def test_somebody_may_register_ours_by_hand() -> None:
    own = CollectorRegistry()
    own.register(MESSAGE_COUNTER)
    assert b"message_hub_messages_total" in generate_latest(own)
    run(OURS, "REGISTRY.register(MESSAGE_COUNTER); MESSAGE_COUNTER.labels('a', 'b', 'c').inc(); check_once()")


# --- beside the async library ------------------------------------------------------------------------

ORDERS = pytest.mark.parametrize("imports", [(THEIRS, OURS), (OURS, THEIRS)], ids=["theirs first", "ours first"])


@ORDERS
def test_samples_of_both_libraries_are_summed_and_united(imports: tuple[str, str]) -> None:
    run(
        *imports,
        """
        ours = ServiceMetrics("shared")
        ours.count("send", True, 0.0005)
        ours.count("send", True, 2)
        theirs.labels("shared", "send", "success").inc(40)
        latency.labels("shared", "send").observe(2)
        theirs.labels("async-only", "send", "success").inc(7)
        messages = "message_hub_messages_total"
        assert value(messages, service="shared", type="send", status="success") == 42, "at the first scrape"
        for _ in range(2):
            check_once()
            assert value(messages, service="shared", type="send", status="success") == 42
            assert value(messages, service="async-only", type="send", status="success") == 7
            assert value(messages, service="shared", type="receive", status="error") == 0
            seconds = "message_hub_message_latency_seconds"
            assert value(f"{seconds}_count", service="shared", type="send") == 3
            assert abs(value(f"{seconds}_sum", service="shared", type="send") - 4.0005) < 1e-9
            assert value(f"{seconds}_bucket", service="shared", type="send", le="0.001") == 1
            assert value(f"{seconds}_bucket", service="shared", type="send", le="1.0") == 1
            assert value(f"{seconds}_bucket", service="shared", type="send", le="2.5") == 3
        """,
    )


@ORDERS
def test_ours_stay_when_the_other_library_takes_its_own_away(imports: tuple[str, str]) -> None:
    run(
        *imports,
        """
        ServiceMetrics("shared").count("send", True, 1)
        check_once()
        REGISTRY.unregister(theirs)
        check_once()
        assert value("message_hub_messages_total", service="shared", type="send", status="success") == 1
        """,
    )


@ORDERS
def test_a_family_of_another_type_keeps_the_exposition_sound(imports: tuple[str, str]) -> None:
    gauge = 'from prometheus_client import Gauge\nGauge("message_hub_retries", "Theirs").set(5)\n'
    imports = (gauge, OURS) if imports[0] is THEIRS else (OURS, gauge)
    run(*imports, "ServiceMetrics('s').retried('q'); check_once(); assert value('message_hub_retries') == 5")


@ORDERS
def test_of_two_gauges_of_one_circuit_the_worse_state_shows(imports: tuple[str, str]) -> None:
    gauge = """
from prometheus_client import Gauge
g = Gauge("message_hub_circuit_breaker_state", "Theirs", ["service", "destination"])
"""
    imports = (gauge, OURS) if imports[0] is THEIRS else (OURS, gauge)
    run(
        *imports,
        """
        ServiceMetrics("s").circuit_state("d", "half-open")
        g.labels("s", "d").set(2)
        ServiceMetrics("s").circuit_state("e", "open")
        g.labels("s", "e").set(0)
        check_once()
        assert value("message_hub_circuit_breaker_state", service="s", destination="d") == 2
        assert value("message_hub_circuit_breaker_state", service="s", destination="e") == 2
        """,
    )


@ORDERS
def test_multiprocess_mode_sums_processes_and_libraries(imports: tuple[str, str], tmp_path: Path) -> None:
    run(
        *imports,
        """
        ours = ServiceMetrics("shared")
        theirs.labels("shared", "send", "success").inc(10)
        ours.count("send", True, 2)
        latency.labels("shared", "send").observe(2)
        theirs.labels("shared", "send", "success").inc(10)
        child = os.fork()
        ours.count("send", True, 2)
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        from prometheus_client.multiprocess import MultiProcessCollector
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        check_once(registry)
        labels = {"service": "shared", "type": "send"}
        total = registry.get_sample_value("message_hub_messages_total", {**labels, "status": "success"})
        assert total == 23, total
        count = registry.get_sample_value("message_hub_message_latency_seconds_count", labels)
        assert count == 4, count
        """,
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )


# --- loaded again, forked, broken ------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        "import message_hub_sync.metrics; importlib.reload(message_hub_sync.metrics)",
        "del sys.modules['message_hub_sync.metrics']; import message_hub_sync.metrics",
        "[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('message_hub_sync')]; import message_hub_sync",
    ],
)
@pytest.mark.parametrize("joined", ["", THEIRS])
def test_a_module_that_is_loaded_again_exposes_each_family_once_and_counts_on(again: str, joined: str) -> None:
    run(
        joined,
        OURS,
        f"""
        import importlib, sys
        first = ServiceMetrics("s")
        first.count("send", True, 1)
        for _ in range(2):
            {again}
            check_once()
        from message_hub_sync.metrics import ServiceMetrics
        ServiceMetrics("s").count("send", True, 1)
        first.count("send", True, 1)
        check_once()
        text = generate_latest(REGISTRY).decode()
        assert 'message_hub_messages_total{{service="s",status="success",type="send"}} 3.0' in text, text
        assert 'message_hub_retries_total' in text
        """,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_forked_while_threads_count_in_multiprocess_mode_counts_too(tmp_path: Path) -> None:
    run(
        OURS,
        """
        import threading
        metrics = ServiceMetrics("s")
        metrics.circuit_state("d", "open")
        stop = threading.Event()
        def count():
            while not stop.is_set():
                metrics.count("send", True, 0.01)
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        # One fork surely with the lock held, many by chance.
        cell = next(
            cell
            for function in vars(type(MESSAGE_COUNTER.labels("s", "send", "success")._value)).values()
            for name, cell in zip(
                getattr(getattr(function, "__code__", None), "co_freevars", ()),
                getattr(function, "__closure__", None) or (),
            )
            if name == "lock"
        )
        def child_exits():
            child = os.fork()
            if not child:
                import faulthandler
                faulthandler.dump_traceback_later(20, exit=True)
                metrics.count("send", True, 0.01)
                metrics.circuit_state("d", "half-open")
                ServiceMetrics("other").count("send", True, 0.01)
                os._exit(0)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with cell.cell_contents:
            assert child_exits() == 0
        for _ in range(20):
            assert child_exits() == 0
        stop.set()
        """,
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )


@pytest.mark.parametrize("multiprocess", [False, True])
def test_user_code_that_interrupts_a_use_of_a_metric_may_count_on_the_same_thread(
    multiprocess: bool, tmp_path: Path
) -> None:
    run(
        OURS,
        """
        import faulthandler
        from message_hub_sync import metrics as module
        from message_hub_sync.errors import MessageHubReentryError
        from message_hub_sync.runtime.locks import refuse_where_it_cannot_wait
        faulthandler.dump_traceback_later(40, exit=True)
        metrics = ServiceMetrics("s")
        metrics.circuit_state("d", "open")
        metrics.retried("q")

        def use_all():
            metrics.count("send", True, 0.01)
            metrics.circuit_made("e")
            metrics.circuit_state("d", "closed")
            metrics.retried("q")
            ServiceMetrics("other")

        # As a scrape of the same thread does, into which a signal handler or __del__ comes.
        for metric in module._exposition._own.values():
            children = list(metric._metrics.values())
            with metric._lock:
                use_all()
            for child in children:
                for value in (getattr(child, "_value", None), getattr(child, "_sum", None)):
                    if hasattr(value, "_lock"):
                        with value._lock:
                            use_all()
                    elif value is not None:
                        cells = (cell.cell_contents for cell in type(value).inc.__closure__)
                        with next(found for found in cells if hasattr(found, "acquire")):
                            use_all()

        # Inside of counting itself, a call of the client is refused before it counts.
        def nested():
            try:
                refuse_where_it_cannot_wait()
            except MessageHubReentryError:
                return "refused"
        assert module._counting.run(nested) == "refused"
        """,
        **({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if multiprocess else {}),
    )


def test_counts_of_many_threads_are_all_kept() -> None:
    run(
        OURS,
        """
        import sys, threading
        sys.setswitchinterval(0.00001)
        metrics = ServiceMetrics("s")
        def count():
            for _ in range(3000):
                metrics.count("send", True, 0.01)
        threads = [threading.Thread(target=count) for _ in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert value("message_hub_messages_total", service="s", type="send", status="success") == 18000
        assert value("message_hub_message_latency_seconds_count", service="s", type="send") == 18000
        """,
    )


def test_metrics_that_raise_do_not_take_the_place_of_a_result_or_keep_a_message(tmp_path: Path) -> None:
    run(
        OURS,
        """
        import logging, queue, shutil
        import prometheus_client.values
        from message_hub_sync import MessageHubClient, MessageHubDeliveryError
        logged = []
        class Keep(logging.Handler):
            def emit(self, record):
                logged.append(record.getMessage())
        logging.getLogger("message_hub_sync.metrics").addHandler(Keep())
        handled, failures = queue.SimpleQueue(), [RuntimeError("not yet")]
        def attempt(message):
            if message.payload["n"] == 2 and failures:
                raise failures.pop()
            handled.put(message.payload["n"])
        with MessageHubClient("early", "memory://hub") as early:
            early.connect()
            early.subscribe_messages(attempt, prefetch=1)
            # What exists can no longer be written, and nothing new can be made.
            if hasattr(prometheus_client.values, "close_all_multiprocess_files"):  # from 0.22 on
                prometheus_client.values.close_all_multiprocess_files()
            shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
            with MessageHubClient("late", "memory://hub") as late:
                for client in (early, late):
                    for n in range(3):
                        client.send_message("early", {"n": n})
                    client.publish_event("quest.started", {"n": 1})
                    try:
                        client.send_message("nobody", {})
                    except MessageHubDeliveryError:
                        pass
                    else:
                        raise AssertionError
                # With prefetch=1 each is delivered only when the one before is settled.
                assert sorted(handled.get(timeout=30) for _ in range(6)) == [0, 0, 1, 1, 2, 2]
                assert late.get_health_status()["status"] == "ok", late.get_health_status()
        assert [line for line in logged] == [
            "a metric was not updated; the metrics of this process may be incomplete from now on"
        ], logged
        """,
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
