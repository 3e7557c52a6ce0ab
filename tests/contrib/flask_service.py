"""A small Flask service for the tests of servers: each handler publishes which process it ran in."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, current_app

from message_hub_sync.contrib.flask import MessageHub, health_blueprint

hub = MessageHub(service_name="quest-service")


@hub.on_event("quest.started")
def handle(event: dict[str, Any]) -> None:
    if event.get("slow"):
        hub.publish_event("quest.begun", {"pid": os.getpid()})
        hub.request("clock-service", {}, timeout=30)
    hub.publish_event("quest.handled", {"pid": os.getpid(), "app": current_app.name, "number": event["number"]})


def create_app() -> Flask:
    app = Flask("quests")
    hub.init_app(app)
    app.register_blueprint(health_blueprint)

    @app.post("/quests/<int:number>")
    def start(number: int) -> dict[str, Any]:
        return {"pid": os.getpid(), "id": str(hub.publish_event("quest.started", {"number": number}))}

    return app
