"""Check that each mock service receives everything that is addressed to it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID

from message_hub_sync.envelope.encode import event_properties, message_properties
from message_hub_sync.envelope.values import Event
from message_hub_sync.testing.expectations import described
from message_hub_sync.testing.framework_state import SERVICE_NAME
from message_hub_sync.testing.mock_service import PROBE_HEADER, MockService
from message_hub_sync.transport.base import Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE

__all__ = ["cross_talk"]


def cross_talk(transport: Transport, mocks: Sequence[MockService], deadline: float) -> list[str]:
    """Send a probe through each queue of the mock services, and check consumers and received messages.

    :param deadline: monotonic seconds, for all probes together.
    :returns: one line for each problem; an empty list if there is none.
    """
    findings = [finding for mock in mocks for finding in _consumers(transport, mock, deadline)]
    probes = [
        (mock, queue, _send_probe(transport, mock, queue, pattern, deadline))
        for mock in mocks
        for one in mock._subscriptions
        if one.active
        for queue, pattern in zip(one.queues, (source.event_type for source in one._consumed_queues), strict=True)
    ]
    for mock, queue, probe in probes:
        if probe is None:
            findings.append(f"the queue {queue} of {mock.name} does not accept messages")
        elif mock._script.probes.find(lambda found: found == probe, deadline) is None:  # noqa: B023
            findings.append(f"a probe in the queue {queue} did not reach {mock.name}")
    findings += [finding for mock in mocks for finding in _misdirected(mock)]
    return findings


def _queues(mock: MockService) -> list[str]:
    return [queue for one in mock._subscriptions if one.active for queue in one.queues]


def _consumers(transport: Transport, mock: MockService, deadline: float) -> Iterator[str]:
    """Queues that do not have exactly one consumer.

    Only durable queues are checked: a queue that is not durable is exclusive to one client.
    """
    durable = {
        source.topology.queue.name for one in mock._subscriptions for source in one._consumed_queues if source.key[1]
    }
    queues = [queue for queue in _queues(mock) if queue in durable]
    for queue, stats in transport.queue_stats(queues, deadline).items():
        if stats is None or stats.consumers != 1:
            found = "no" if stats is None else stats.consumers
            yield f"the queue {queue} of {mock.name} has {found} consumers, not one: they share its messages"


def _send_probe(
    transport: Transport, mock: MockService, queue: str, pattern: str | None, deadline: float
) -> UUID | None:
    """Publish a probe to a queue. Returns its message id, or ``None`` if the hub did not confirm it.

    :param pattern: the event type or pattern that binds the queue; ``None`` for the inbox.
    """
    if pattern is None:
        properties = message_properties(source=SERVICE_NAME, destination=mock.name)
    else:
        properties = event_properties(source=SERVICE_NAME, event_type=_event_type(pattern))
    properties.headers[PROBE_HEADER] = True
    outgoing = Outgoing(DEFAULT_EXCHANGE, queue, b"{}", properties, mandatory=True)
    if transport.publish(outgoing, deadline).wait(deadline) is not PublishResult.CONFIRMED:
        return None
    return UUID(properties.message_id)


def _event_type(pattern: str) -> str:
    """An event type that matches ``pattern``."""
    return ".".join("probe" if word in ("*", "#") else word for word in pattern.split("."))


def _misdirected(mock: MockService) -> Iterator[str]:
    script = mock._script
    received = [*script.messages.all(), *script.events.all(), *(envelope for envelope, _ in script.failed.all())]
    for envelope in received:
        if isinstance(envelope, Event):
            meant = mock._is_subscribed(envelope.event_type)
        else:
            meant = envelope.destination == mock.name
        if not meant:
            yield f"{mock.name} received what is not addressed to it: {described(envelope)}"
