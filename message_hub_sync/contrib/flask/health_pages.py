"""Pages for probes and Prometheus: ``/health/live``, ``/health/ready`` and ``/metrics``."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app

from message_hub_sync.metrics import exposition

__all__ = ["health_blueprint"]

#: Register it in an app that has the extension: ``app.register_blueprint(health_blueprint)``.
health_blueprint = Blueprint("message_hub_health", __name__)


@health_blueprint.get("/health/live")
def live() -> tuple[dict[str, Any], int]:
    """Whether this process answers. The state of the broker does not matter: a restart would not repair it."""
    return {"status": "alive"}, 200


@health_blueprint.get("/health/ready")
def ready() -> tuple[dict[str, Any], int]:
    """Whether the client can work now: 200, or 503 with the status."""
    is_ready, answer = current_app.extensions["message_hub"]._readiness()
    return answer, 200 if is_ready else 503


@health_blueprint.get("/metrics")
def metrics() -> Response:
    """The metrics of this process, or of all worker processes in prometheus_client's multiprocess mode."""
    body, content_type = exposition()
    return Response(body, content_type=content_type)


@health_blueprint.after_request
def _not_stored(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
