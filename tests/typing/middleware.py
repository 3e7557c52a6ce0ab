"""What a caller's type checker knows of middleware. Checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Literal
from uuid import UUID

from typing_extensions import assert_type

from message_hub_sync import Event, Message, MessageHubClient, Middleware, Received, Sending
from message_hub_sync.testing import RecordedDelivery, RecordedSending, RecordingMiddleware


class Tracing(Middleware):
    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        for sending in batch:
            assert_type(sending.kind, Literal["event", "message", "request", "reply"])
            assert_type(sending.message_id, UUID)
            assert_type(sending.body, bytes)
            assert_type(sending.headers, MutableMapping[str, Any])
            sending.headers["traceparent"] = "00-1"
        call_next()

    def arrived(self, received: Received) -> None:
        assert_type(received.headers, Mapping[str, Any])
        assert_type(received.attempt, int)

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        assert_type(received.envelope, Event[Any] | Message[Any])
        return call_next()


recording = RecordingMiddleware()
client = MessageHubClient("quest-service", "memory://", middleware=[Tracing(), recording])
assert_type(recording.sent, list[RecordedSending])
assert_type(recording.wait_for_handled(2, timeout=1), list[RecordedDelivery])
