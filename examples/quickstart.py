"""Quickstart: an event, a message and a request between two services.

python examples/quickstart.py
MESSAGE_HUB_URL=amqp://localhost:5672 python examples/quickstart.py
"""

import os
from queue import SimpleQueue

from message_hub_sync import Event, Message, MessageHubClient

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")


def main() -> None:
    welcomed: SimpleQueue[Message] = SimpleQueue()

    with (
        MessageHubClient("character-service", URL) as characters,
        MessageHubClient("campaign-service", URL) as campaigns,
    ):

        @campaigns.on_event("character.created")
        def welcome(event: Event) -> None:
            print(f"campaign-service: {event.source} created {event.payload['name']}")
            campaigns.send_message("character-service", {"action": "welcome", "name": event.payload["name"]})

        @campaigns.on_message
        def answer(message: Message) -> dict[str, int]:  # the return value is the reply
            return {"players": 5}

        characters.subscribe_messages(welcomed.put)

        characters.publish_event("character.created", {"character_id": "42", "name": "Mira"})
        message = welcomed.get(timeout=10)
        print(f"character-service: {message.source} says {message.payload['action']} to {message.payload['name']}")

        reply = characters.request("campaign-service", {"action": "count_players"}, timeout=5)
        print(f"character-service: the campaign has {reply.payload['players']} players")


if __name__ == "__main__":
    main()
