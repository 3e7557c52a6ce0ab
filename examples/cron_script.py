"""A script for cron: handle the messages in this service's inbox, publish an event about them, and end.

Between the runs, notes wait in the durable queue digest-service.messages. The first run creates it.
On an error of the hub the script prints one line and ends with exit code 1. The next run gets the messages that were
not acknowledged.

    MESSAGE_HUB_URL=amqp://localhost:5672 python examples/cron_script.py
"""

import os
import threading

from pydantic import BaseModel

from message_hub_sync import Message, MessageHubClient, MessageHubError
from message_hub_sync.catalogue import catalogue

URL = os.environ.get("MESSAGE_HUB_URL", "amqp://localhost:5672")
SERVICE = "digest-service"


@catalogue.register("digest.completed", publisher=SERVICE)
class DigestCompleted(BaseModel):
    """The notes of a day are complete"""

    notes: list[str]


def main() -> None:
    notes: list[str] = []
    at_end = threading.Event()

    def take(message: Message) -> None:
        if message.payload["action"] == "end_of_day":
            at_end.set()
        else:
            notes.append(f"{message.source}: {message.payload['note']}")

    with MessageHubClient(SERVICE, URL) as client:
        inbox = client.subscribe_messages(take)
        # The inbox keeps its order: when this message arrives, all messages before it have been handled.
        client.send_message(SERVICE, {"action": "end_of_day"})
        if not at_end.wait(timeout=60):
            raise SystemExit("the inbox was not emptied within a minute")
        inbox.cancel()  # later messages wait in the queue for the next run

        print(f"digest of {len(notes)} notes")
        for note in notes:
            print(f"- {note}")
        client.publish_event(DigestCompleted(notes=notes))


if __name__ == "__main__":
    try:
        main()
    except MessageHubError as error:
        raise SystemExit(str(error)) from None
