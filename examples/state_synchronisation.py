"""State synchronisation: one service owns a state, and another keeps a copy of it from its events.

An event may arrive more than once, and after a retry it may arrive late. The copy ignores versions that it has already.

    MESSAGE_HUB_URL=amqp://localhost:5672 python examples/state_synchronisation.py
"""

import os
import threading

from pydantic import BaseModel

from message_hub_sync import Event, MessageHubClient
from message_hub_sync.catalogue import catalogue

URL = os.environ.get("MESSAGE_HUB_URL", "memory://")


@catalogue.register("resource.state.changed", publisher="owner-service", subscribers=["tracking-service"])
class StateChanged(BaseModel):
    """A resource has a new state"""

    resource_id: str
    state: str
    version: int


class Copy:
    """The tracking service's copy. Only the one worker thread of its queue writes to it."""

    def __init__(self) -> None:
        self.state = "unknown"
        self.version = 0
        self.complete = threading.Event()

    def update(self, event: Event[StateChanged]) -> None:
        version, state = event.payload.version, event.payload.state
        if version <= self.version:
            print(f"tracker: version {version} is old, kept {self.version}")
        else:
            self.version, self.state = version, state
            print(f"tracker: version {version} is {state}")
        if version == 3:
            self.complete.set()


def main() -> None:
    copy = Copy()
    with MessageHubClient("owner-service", URL) as owner, MessageHubClient("tracking-service", URL) as tracker:
        tracker.subscribe(["resource.state.changed"], copy.update)

        for version, state in [(1, "created"), (2, "painted"), (1, "created"), (3, "framed")]:
            owner.publish_event(StateChanged(resource_id="portrait-1", state=state, version=version))

        if not copy.complete.wait(timeout=10):
            raise SystemExit("the last version did not arrive")
    print(f"in the end: {copy.state}")


if __name__ == "__main__":
    main()
