"""One of three services that speak to each other in the guide's patterns, in a process of its own.

``python three_services.py URL SERVICE OTHER…`` does what standard input says, one line each (``ask``, ``broadcast``,
``change VERSION``), and writes what came of it.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from message_hub_sync import Message, MessageHubClient

CALLERS = 4
EACH = 25


def say(text: str) -> None:
    # In one piece: several threads write.
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(url: str, service: str, *others: str) -> None:
    client = MessageHubClient(service_name=service, rabbitmq_url=url)
    local_state: dict[str, int] = {}

    # As in the guide, word for word but for 'async' and 'await'.
    def handle_message(message: Any) -> None:
        correlation_id = message["correlation_id"]
        client.send_message(
            destination=message["source"],
            payload={"data": "response data", "of": service, "id": message["payload"]["id"]},
            correlation_id=correlation_id,
        )

    def handle_status(event: str) -> None:
        status = json.loads(event)
        say(f"{service} heard {status['status']} of {status['by']}")

    def handle_state_event(event: str) -> None:
        state = json.loads(event)
        # Three services publish: what is older than what is known is no news.
        local_state[state["resource_id"]] = max(state["version"], local_state.get(state["resource_id"], 0))
        say(f"{service} knows {json.dumps(local_state, sort_keys=True)}")

    def ask(other: str) -> None:
        def one(number: int) -> bool:
            identity = f"{service}-{number}"
            reply: Message = client.request(other, {"action": "get_data", "id": identity}, timeout=30)
            return reply.payload == {"data": "response data", "of": other, "id": identity}

        with ThreadPoolExecutor(CALLERS) as callers:
            own = sum(callers.map(one, range(CALLERS * EACH)))
        say(f"{service} got {own} replies of its own from {other}")

    client.subscribe_messages(handle_message)
    client.subscribe(event_types=["system.status.changed"], callback=handle_status)
    client.subscribe(event_types=["resource.state.changed"], callback=handle_state_event)
    say(f"{service} is ready")
    for line in sys.stdin:
        order, *arguments = line.split()
        if order == "ask":
            for other in others:
                ask(other)
        elif order == "broadcast":
            client.publish_event("system.status.changed", {"status": "maintenance", "by": service, "duration": 3600})
        elif order == "change":
            client.publish_event(
                "resource.state.changed", {"resource_id": service, "state": "new_state", "version": int(arguments[0])}
            )
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
