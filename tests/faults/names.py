"""Names that no other test uses, so that all share one broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from message_hub_sync import MessageHubClient

__all__ = ["Names", "NewClient"]

#: Makes a client: ``new_client(service, url=None, **settings)``. Closed at the test's end.
NewClient = Callable[..., MessageHubClient]


@dataclass(frozen=True)
class Names:
    """A service and an event of one test alone."""

    service: str
    event: str

    @property
    def event_queue(self) -> str:
        """Where the service receives the event."""
        return f"{self.service}.{self.event}"

    @property
    def inbox(self) -> str:
        """Where the service receives messages."""
        return f"{self.service}.messages"
