"""A Flask service: its views send and publish, and its handlers run in threads of the client.

The handlers are declared in a group, so that importing this module consumes nothing. The app includes the group in its
client.

MESSAGE_HUB_URL=amqp://localhost:5672 flask --app examples/flask_service run
curl localhost:5000/characters --json '{"character_id": "42", "name": "Mira"}'
curl localhost:5000/journal
"""

import os
from typing import Any

from flask import Flask, request

from message_hub_sync import (
    Event,
    HandlerGroup,
    HealthStatus,
    Message,
    MessageHubClient,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.catalogue import CharacterCreated

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")

handlers = HandlerGroup()
journal: list[str] = []


@handlers.on_event("character.created")
def on_created(event: Event[CharacterCreated]) -> None:
    journal.append(f"created {event.payload.name or event.payload.character_id}")


@handlers.on_message
def on_message(message: Message) -> None:
    journal.append(f"{message.source} says {message.payload['action']}")


def create_app() -> Flask:
    app = Flask(__name__)
    # With the reloader, Flask runs this in two processes. The client connects only in the one that serves.
    # For production: the settings under "Web services" in docs/operating.md.
    hub = MessageHubClient("character-service", URL)
    hub.include(handlers)

    @app.post("/characters")
    def create() -> tuple[dict[str, Any], int]:
        character = request.get_json()
        event_id = hub.publish_event("character.created", character)
        message_id = hub.send_message("character-service", {"action": "welcome"})
        return {"event_id": str(event_id), "message_id": str(message_id)}, 202

    @app.get("/journal")
    def read() -> dict[str, Any]:
        return {"entries": journal}

    @app.get("/health")
    def health() -> HealthStatus:
        return hub.get_health_status()

    @app.errorhandler(MessageHubError)
    def failed(error: MessageHubError) -> tuple[dict[str, Any], int]:
        return {"error": str(error)}, 400 if isinstance(error, MessageValidationError) else 503

    return app
