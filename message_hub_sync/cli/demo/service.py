"""One service of the demo. It has a client and a thread, and notes everything that it sends and handles."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ClassVar

from message_hub_sync.catalogue import ActionPayload, Payload, catalogue
from message_hub_sync.cli.demo.ledger import Ledger
from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.consuming.subscription import Subscription
from message_hub_sync.envelope.correlation import bound_correlation
from message_hub_sync.envelope.values import Event, Message
from message_hub_sync.errors import MessageHubError
from message_hub_sync.transport.topology import event_queue_name, inbox_name

__all__ = ["Service"]

Reaction = Callable[[dict[str, Any]], object]


class Service:
    """Subscribes to its events of the catalogue, reacts to them, and runs its scenes in its own thread.

    Its client uses ``strict_catalogue``: publishing an event of another service is an error.

    :param url: the hub.
    :param ledger: where it notes what it sends and handles.
    :param timeout: seconds for each call of the client; values above 5 mean 5.
    """

    name: ClassVar[str]

    def __init__(self, url: str, ledger: Ledger, timeout: float) -> None:
        seconds = min(timeout, 5.0)
        self.client = MessageHubClient(
            self.name, url, connect_timeout=seconds, delivery_timeout=seconds, strict_catalogue=True
        )
        self._seconds = seconds
        self._ledger = ledger
        self._cues: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"message-hub-{self.name}-demo", daemon=True)

    # --- overridden by the four services

    def on_events(self) -> Mapping[str, Reaction]:
        """Its reactions to events, by event type. Other events are only noted."""
        return {}

    def on_actions(self) -> Mapping[str, Reaction]:
        """Its reactions to messages, by action. The return value is the reply to a request."""
        return {}

    # --- start and stop

    @classmethod
    def event_types(cls) -> list[str]:
        """The event types to which it subscribes."""
        return [event_type.name for event_type in catalogue if cls.name in event_type.subscribers]

    @classmethod
    def queues(cls) -> list[str]:
        """The names of the queues that it consumes."""
        return [inbox_name(cls.name), *(event_queue_name(cls.name, name) for name in cls.event_types())]

    def start(self) -> Future[None]:
        """Start its thread. The future is done when it has subscribed; it holds the error if that failed."""
        self._thread.start()
        return self._ready

    def play(self, scene: Callable[[], None]) -> None:
        """Let its thread run a scene."""
        self._cues.put(scene)

    def leave(self) -> None:
        """Let its thread end. It deletes its queues and closes its client."""
        self._cues.put(None)

    def join(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end of its thread. Returns whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        subscriptions: list[Subscription] = []
        try:
            subscriptions.append(self.client.subscribe_messages(self._on_message))
            subscriptions.append(self.client.subscribe(self.event_types(), self._on_event))
            self._ready.set_result(None)
            for scene in iter(self._cues.get, None):
                self._play(scene)
        except BaseException as error:
            self._ready.set_exception(error)
        finally:
            self._clean_up(subscriptions)

    def _play(self, scene: Callable[[], None]) -> None:
        try:
            # Errors are in the ledger and the report. The demo continues with the next scene.
            with contextlib.suppress(MessageHubError), bound_correlation():
                scene()
        finally:
            self._ledger.scene_ended()

    def _clean_up(self, subscriptions: list[Subscription]) -> None:
        try:
            if subscriptions:
                shared = [name for name, stats in self.client.get_queue_stats().items() if stats["consumers"] > 1]
                if shared:
                    self._ledger.note_error(
                        f"{', '.join(shared)}: not deleted, because other clients consume from there now"
                    )
                else:
                    for subscription in subscriptions:
                        subscription.delete()
        except MessageHubError as error:
            self._ledger.note_error(f"the queues of {self.name} may still exist: {error}")
        finally:
            self.client.close()

    # --- sending

    def publish(self, payload: Payload) -> None:
        """Publish the event of the payload's type."""
        event_type = catalogue.event_type_of(payload)
        with self._ledger.sending("event", event_type.name, self.name, event_type.subscribers) as sent:
            self.client.publish_event(event_type, payload, sent.correlation_id, message_id=sent.id)

    def send(self, destination: str, action: str, **data: Any) -> None:
        """Send a message that requests an action."""
        with self._ledger.sending("message", action, self.name, (destination,)) as sent:
            payload = ActionPayload(action=action, data=data)
            self.client.send_message(destination, payload, sent.correlation_id, message_id=sent.id)

    def ask(self, destination: str, action: str, **data: Any) -> dict[str, Any]:
        """Send a request and wait for the reply; returns its payload."""
        with self._ledger.sending("request", action, self.name, (destination, self.name)) as sent:
            payload = ActionPayload(action=action, data=data)
            reply = self.client.request(
                destination, payload, self._seconds, correlation_id=sent.correlation_id, message_id=sent.id
            )
        with self._ledger.handling(sent.id, self.name, reply.correlation_id):
            answer: dict[str, Any] = reply.payload
        return answer

    # --- receiving

    def _on_event(self, event: Event) -> None:
        if not self._ledger.knows(event.id):
            return  # an old message in a queue that --force reused
        with self._ledger.handling(event.id, self.name, event.correlation_id):
            reaction = self.on_events().get(event.event_type)
            if reaction is not None:
                reaction(event.payload)

    def _on_message(self, message: Message) -> object:
        if not self._ledger.knows(message.id):
            return None
        with self._ledger.handling(message.id, self.name, message.correlation_id):
            action = ActionPayload.model_validate(message.payload)
            return self.on_actions()[action.action](action.data)
