"""A script for cron: handle what has gathered in this service's inbox since the last run, tell about it, and end.

Notes wait in the durable queue digest-service.messages between the runs. (The first run makes it.)
Whatever the hub refuses ends in one line and exit code 1; what was not settled is there at the next run.

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
    """The notes of a day are gathered"""

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
        # The inbox keeps its order: when this arrives, all that was there before has been handled.
        client.send_message(SERVICE, {"action": "end_of_day"})
        if not at_end.wait(timeout=60):
            raise SystemExit("the inbox was not emptied within a minute")
        inbox.cancel()  # what comes from now on waits for the next run

        print(f"digest of {len(notes)} notes")
        for note in notes:
            print(f"- {note}")
        client.publish_event(DigestCompleted(notes=notes))


if __name__ == "__main__":
    try:
        main()
    except MessageHubError as error:
        raise SystemExit(str(error)) from None
