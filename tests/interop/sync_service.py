"""A service of ours in a process of its own.

``python sync_service.py URL SERVICE`` does what it is told on standard input, one JSON object a line, and writes
what it did (``done``) and what it got (``got``).
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from message_hub_sync import Event, Message, MessageHubClient, MessageHubError

_lock = threading.Lock()  # whole lines


def write(kind: str, value: Any) -> None:
    with _lock:
        sys.stdout.write(json.dumps({kind: value}, default=str) + "\n")
        sys.stdout.flush()


class SyncService:
    def __init__(self, client: MessageHubClient) -> None:
        self.client = client

    def inbox(self, prefetch: int = 64) -> list[str]:
        return list(self.client.subscribe_messages(self.on_message, prefetch=prefetch).queues)

    def subscribe(self, event_types: list[str], prefetch: int = 64) -> list[str]:
        return list(self.client.subscribe(event_types, self.on_event, prefetch=prefetch).queues)

    def send(self, destination: str, payload: Any) -> str:
        return str(self.client.send_message(destination, payload))

    def publish(self, event_type: str, payload: Any) -> str:
        return str(self.client.publish_event(event_type, payload))

    def publish_many(self, event_type: str, count: int) -> list[str]:
        events = [(event_type, {"character_id": str(number)}) for number in range(count)]
        return [str(event_id) for event_id in self.client.publish_events(events)]

    def send_many(self, destination: str, count: int) -> list[str]:
        messages = [(destination, {"number": number}) for number in range(count)]
        return [str(message_id) for message_id in self.client.send_messages(messages)]

    def request(self, destination: str, payload: Any) -> dict[str, Any]:
        return self.client.request(destination, payload, timeout=10).model_dump(mode="json")

    def on_event(self, event: Event) -> None:
        write("got", event.model_dump(mode="json"))

    def on_message(self, message: Message) -> dict[str, Any]:
        write("got", message.model_dump(mode="json"))
        return {"answer_to": message.payload}


def main(url: str, service: str) -> None:
    with MessageHubClient(service, url) as client:
        ours = SyncService(client)
        write("done", "connected")
        for line in sys.stdin:
            order = json.loads(line)
            try:
                write("done", getattr(ours, order.pop("do"))(**order))
            except MessageHubError as error:
                write("failed", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
