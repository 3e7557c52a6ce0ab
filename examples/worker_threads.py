"""Worker threads: all of them share one client, and its handlers run in threads of their own.

MESSAGE_HUB_URL=amqp://localhost:5672 python examples/worker_threads.py
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from message_hub_sync import Event, HandlerGroup, Message, MessageHubClient

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")
WORKERS = 4
ITEMS = 100


handled: SimpleQueue[str] = SimpleQueue()
handlers = HandlerGroup()


@handlers.on_message
def count_message(message: Message) -> None:
    handled.put("messages")


@handlers.on_event("image.item_generated")
def count_event(event: Event) -> None:
    handled.put("events")


def main() -> None:
    with MessageHubClient("image-service", URL) as client:
        client.include(handlers)

        def paint(item: int) -> None:
            client.send_message("image-service", {"action": "catalogue", "item": item})
            client.publish_event("image.item_generated", {"image_id": f"item-{item}"})

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="painter") as workers:
            list(workers.map(paint, range(ITEMS)))  # list() raises the exception of a worker, if any

        counted = Counter(handled.get(timeout=10) for _ in range(2 * ITEMS))
    print(f"{WORKERS} threads sent {ITEMS} messages and {ITEMS} events")
    print(f"handled: {counted['messages']} messages and {counted['events']} events")


if __name__ == "__main__":
    main()
