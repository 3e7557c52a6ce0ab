"""Request and response: send a request to a service, and wait for its reply or its error.

MESSAGE_HUB_URL=amqp://localhost:5672 python examples/request_response.py
"""

import os
from typing import Any

from message_hub_sync import HandlerGroup, MessageHubClient, MessageHubRejectError, MessageHubRemoteError

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")
SHEETS = {"123": {"name": "Mira", "level": 3}}

handlers = HandlerGroup()


@handlers.on_message
def handle_message(payload: dict[str, Any]) -> dict[str, Any]:
    if payload["id"] not in SHEETS:
        # The caller gets this text. Of any other error it gets only the class: its text may contain a secret.
        raise MessageHubRejectError(f"there is no sheet {payload['id']}")
    return SHEETS[payload["id"]]  # the reply


def main() -> None:
    with MessageHubClient("service-a", URL) as service_a, MessageHubClient("service-b", URL) as service_b:
        service_b.include(handlers)

        reply = service_a.request("service-b", {"action": "get_data", "id": "123"}, timeout=5)
        print(f"service-a: {reply.source} answered {reply.payload}")

        try:
            service_a.request("service-b", {"action": "get_data", "id": "999"}, timeout=5)
        except MessageHubRemoteError as error:
            print(f"service-a: no answer but an error, {error.error_type}: {error.error_message}")


if __name__ == "__main__":
    main()
