"""The result of the demo: which deliveries were expected, and which happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from message_hub_sync.catalogue import catalogue
from message_hub_sync.cli.demo.ledger import Sent

__all__ = ["Report", "ServiceReport", "report_on"]


@dataclass(frozen=True)
class ServiceReport:
    """The numbers of one service. Times are milliseconds from sending to the start of the handler."""

    name: str
    published: int
    sent: int
    expected: int
    handled: int
    median_ms: float | None
    slowest_ms: float | None


@dataclass(frozen=True)
class Report:
    """The result of the whole demo."""

    hub: str
    seconds: float
    sent: tuple[Sent, ...]
    services: tuple[ServiceReport, ...]
    unpublished: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def missing(self) -> list[tuple[Sent, str]]:
        """What was not handled, each with the service that did not handle it."""
        return [(sent, service) for sent in self.sent for service in sent.missing]

    @property
    def ok(self) -> bool:
        """Whether every expected delivery happened, every event was published, and no error occurred."""
        return not (self.missing or self.unpublished or self.errors)

    @property
    def complaints(self) -> list[str]:
        """One line for each missing delivery or event, and for each error."""
        return [
            *(f"missing: {sent.name} of {sent.source} was not handled by {service}" for sent, service in self.missing),
            *(f"missing: {name} was never published" for name in self.unpublished),
            *(f"error: {error}" for error in self.errors),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "ok": self.ok,
            "hub": self.hub,
            "seconds": round(self.seconds, 3),
            "sent": [_sent_as_dict(sent) for sent in self.sent],
            "services": {service.name: _service_as_dict(service) for service in self.services},
            "missing": [
                {"id": str(sent.id), "name": sent.name, "source": sent.source, "service": service}
                for sent, service in self.missing
            ],
            "unpublished": list(self.unpublished),
            "errors": list(self.errors),
        }


def report_on(hub: str, seconds: float, sent: Sequence[Sent], names: Sequence[str], errors: Sequence[str]) -> Report:
    """Compare what was sent with the catalogue."""
    published = {one.name for one in sent if one.kind == "event"}
    due = [event_type.name for event_type in catalogue if event_type.publisher in names]
    return Report(
        hub=hub,
        seconds=seconds,
        sent=tuple(sent),
        services=tuple(_of_service(name, sent) for name in names),
        unpublished=tuple(name for name in due if name not in published),
        errors=tuple(errors),
    )


def _of_service(name: str, sent: Sequence[Sent]) -> ServiceReport:
    own = [one for one in sent if one.source == name]
    due = [one for one in sent if name in one.expected]
    times = [one.handled[name].milliseconds for one in due if name in one.handled]
    return ServiceReport(
        name=name,
        published=sum(one.kind == "event" for one in own),
        sent=sum(one.kind != "event" for one in own),
        expected=len(due),
        handled=sum(name not in one.missing for one in due),
        median_ms=median(times) if times else None,
        slowest_ms=max(times, default=None),
    )


def _sent_as_dict(sent: Sent) -> dict[str, Any]:
    return {
        "id": str(sent.id),
        "kind": sent.kind,
        "name": sent.name,
        "source": sent.source,
        "correlation_id": sent.correlation_id,
        "scene": sent.scene,
        "expected": list(sent.expected),
        "handled": {
            service: {"ms": round(receipt.milliseconds, 3), "correlation_id": receipt.correlation_id}
            for service, receipt in sent.handled.items()
        },
    }


def _service_as_dict(service: ServiceReport) -> dict[str, Any]:
    return {
        "published": service.published,
        "sent": service.sent,
        "expected": service.expected,
        "handled": service.handled,
        "median_ms": None if service.median_ms is None else round(service.median_ms, 3),
        "slowest_ms": None if service.slowest_ms is None else round(service.slowest_ms, 3),
    }
