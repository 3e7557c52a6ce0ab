"""A transport whose answers a test scripts, attempt by attempt: for faults that no hub can produce on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from message_hub_sync.transport.base import (
    ConnectionStatus,
    Delivery,
    DeliverySink,
    Outgoing,
    PublishResult,
    QueueStats,
    Receipt,
)
from message_hub_sync.transport.topology import ExchangeSpec, QueueSpec, Topology

#: The outcome of one attempt: a result (or result, reason and code), ``None`` for no answer, or an error to raise.
Step = PublishResult | tuple[PublishResult, str, int] | BaseException | None


class ScriptedTransport:
    """Answers each publish with the next step; after the last one it confirms. ``log`` records all calls."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.log: list[tuple[str, Any]] = []
        self.published: list[Outgoing] = []
        self.receipts: list[Receipt] = []

    def _take(self, outgoing: Outgoing, deadline: float) -> Receipt:
        self.published.append(outgoing)
        step: Step = self.steps.pop(0) if self.steps else PublishResult.CONFIRMED
        if isinstance(step, BaseException):
            raise step
        receipt = Receipt()
        self.receipts.append(receipt)
        if isinstance(step, tuple):
            receipt.resolve(*step)
        elif step is not None:
            receipt.resolve(step)
        return receipt

    def connect(self, deadline: float) -> None:
        self.log.append(("connect", deadline))

    def publish(
        self, outgoing: Outgoing, deadline: float, *, own_channel: bool = False, together: bool = False
    ) -> Receipt:
        self.log.append(("own channel" if own_channel else "publish", deadline - time.monotonic()))
        return self._take(outgoing, deadline)

    def publish_many(self, batch: Sequence[Outgoing], deadline: float) -> list[Receipt]:
        self.log.append(("many", len(batch)))
        return [self._take(outgoing, deadline) for outgoing in batch]

    def declare(self, topology: Topology, deadline: float) -> None:
        self.log.append(("declare", topology.exchange.name if topology.exchange else None))

    def declare_exchange(self, exchange: ExchangeSpec, deadline: float) -> None:
        self.log.append(("declare_exchange", exchange.name))

    def declare_queue(self, queue: QueueSpec, deadline: float) -> None:
        self.log.append(("declare_queue", queue.name))

    def consume(self, topology: Topology, *, prefetch: int, deadline: float) -> ScriptedConsumer:
        return ScriptedConsumer(topology.queue.name)

    def consume_many(
        self, wanted: Sequence[tuple[Topology, int]], deadline: float, sinks: Sequence[DeliverySink] = ()
    ) -> list[Any]:
        consumers = []
        for (topology, prefetch), sink in zip(wanted, sinks, strict=True):
            consumers.append(self.consume(topology, prefetch=prefetch, deadline=deadline))
            consumers[-1].sink = sink
        return consumers

    def queue_stats(self, names: Sequence[str], deadline: float) -> Mapping[str, QueueStats | None]:
        return dict.fromkeys(names)

    def delivery_limit(self, queue: str, deadline: float) -> int | None:
        return None

    def delete(self, topology: Topology, queue: str, deadline: float) -> None:
        self.log.append(("delete", queue))

    def delete_many(self, queues: Sequence[str], deadline: float) -> None:
        self.log.extend(("delete", queue) for queue in queues)

    def status(self) -> Sequence[ConnectionStatus]:
        return []

    def on_connected(self, listener: Callable[[], None]) -> None:
        self.log.append(("on_connected", listener))

    def interrupt(self) -> None:
        self.log.append(("interrupt", None))

    def close(self, deadline: float) -> None:
        self.log.append(("close", deadline))

    def after_fork_in_child(self) -> None:
        self.log.append(("after_fork_in_child", None))

    def asked(self) -> list[str]:
        """The names of the calls, in order."""
        return [name for name, _ in self.log]


class ScriptedConsumer:
    """A consumer whose deliveries the test puts into its queue. ``settled`` records the acknowledged delivery tags.

    ``lost``: delivery tags of a channel that is closed.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self.sink: DeliverySink = self._deliveries
        self.settled: list[int] = []
        self.closed = False
        self.given_back = False
        self.lost: set[int] = set()

    @property
    def deliveries(self) -> SimpleQueue[Delivery | None]:
        return self._deliveries

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def active(self) -> bool:
        return not self.closed

    @property
    def error(self) -> str | None:
        return None

    @property
    def other_limit(self) -> bool:
        return False

    def ack(self, delivery: Delivery) -> None:
        self.settled.append(delivery.delivery_tag)

    def ack_all(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.ack(delivery)

    def requeue(self, delivery: Delivery) -> None: ...

    def holds(self, delivery: Delivery) -> bool:
        return delivery.delivery_tag not in self.lost

    def waited(self, delivery: Delivery) -> float | None: ...

    def flush(self) -> None: ...

    def cancel(self, deadline: float) -> None: ...

    def give_back(self) -> None:
        self.given_back = True

    def close(self, deadline: float) -> None:
        self.closed = True
