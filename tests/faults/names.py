"""Names that no other test uses, so that all tests can share one broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync import MessageHubClient

__all__ = ["Names", "NewClient"]

#: Creates a client: ``new_client(service, url=None, **settings)``. It is closed after the test.
NewClient = Callable[..., MessageHubClient]


@dataclass(frozen=True)
class Names:
    """A service name and an event type that only one test uses."""

    service: str
    event: str

    @property
    def event_queue(self) -> str:
        """The queue in which the service receives the event."""
        return f"{self.service}.{self.event}"

    @property
    def inbox(self) -> str:
        """The queue in which the service receives messages."""
        return f"{self.service}.messages"
