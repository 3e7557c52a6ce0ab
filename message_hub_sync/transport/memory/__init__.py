"""The embedded hub: a broker inside this process, with the behaviour of RabbitMQ that the client uses."""

from __future__ import annotations

from message_hub_sync.transport.memory.clock import Clock, SystemClock, VirtualClock
from message_hub_sync.transport.memory.registry import drop_hub, open_hub
from message_hub_sync.transport.memory.transport import MemoryTransport

__all__ = ["Clock", "MemoryTransport", "SystemClock", "VirtualClock", "drop_hub", "open_hub"]
