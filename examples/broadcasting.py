"""Broadcasting: every service that subscribes to an event gets it.

MESSAGE_HUB_URL=amqp://localhost:5672 python examples/broadcasting.py
"""

import os
from contextlib import ExitStack
from queue import SimpleQueue

from message_hub_sync import Event, HandlerGroup, MessageHubClient

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")
SUBSCRIBERS = ("character-service", "image-service", "llm-service")


def main() -> None:
    heard: SimpleQueue[str] = SimpleQueue()

    def listen(name: str) -> HandlerGroup:
        handlers = HandlerGroup()

        @handlers.on_event("campaign.theme_changed")
        def follow(event: Event) -> None:
            heard.put(f"{name}: the theme is {event.payload['theme']}, says {event.source}")

        return handlers

    with ExitStack() as stack:
        for name in SUBSCRIBERS:
            stack.enter_context(MessageHubClient(name, URL)).include(listen(name))
        campaigns = stack.enter_context(MessageHubClient("campaign-service", URL))

        campaigns.publish_event("campaign.theme_changed", {"campaign_id": "7", "theme": "winter siege"})
        for line in sorted(heard.get(timeout=10) for _ in SUBSCRIBERS):
            print(line)


if __name__ == "__main__":
    main()
