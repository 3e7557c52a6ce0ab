"""A Django service in one file: its views send and publish, and its handlers run in threads of the client.

MESSAGE_HUB_URL=amqp://localhost:5672 python examples/django_service.py runserver
curl localhost:8000/characters --json '{"character_id": "42", "name": "Mira"}'
curl localhost:8000/journal
"""

import json
import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from message_hub_sync import Event, HandlerGroup, Message, MessageHubClient, MessageHubError, MessageValidationError
from message_hub_sync.catalogue import CharacterCreated

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")

settings.configure(DEBUG=True, SECRET_KEY=os.environ.get("SECRET_KEY", "for development"), ROOT_URLCONF=__name__)

# For production: the settings under "Web services" in docs/operating.md.
hub = MessageHubClient("character-service", URL)
handlers = HandlerGroup()
journal: list[str] = []


@handlers.on_event("character.created")
def on_created(event: Event[CharacterCreated]) -> None:
    journal.append(f"created {event.payload.name or event.payload.character_id}")


@handlers.on_message
def on_message(message: Message) -> None:
    journal.append(f"{message.source} says {message.payload['action']}")


# runserver loads this file in two processes. The client connects only in the one that serves.
hub.include(handlers)


def create(request: HttpRequest) -> JsonResponse:
    try:
        event_id = hub.publish_event("character.created", json.loads(request.body))
        message_id = hub.send_message("character-service", {"action": "welcome"})
    except MessageHubError as error:
        return JsonResponse({"error": str(error)}, status=400 if isinstance(error, MessageValidationError) else 503)
    return JsonResponse({"event_id": str(event_id), "message_id": str(message_id)}, status=202)


def read(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"entries": journal})


def health(request: HttpRequest) -> JsonResponse:
    return JsonResponse(hub.get_health_status())


urlpatterns = [path("characters", create), path("journal", read), path("health", health)]
application = get_wsgi_application()  # for gunicorn and the like

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
