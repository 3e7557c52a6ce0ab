"""The RabbitMQ transport. No other package of this library imports pika."""

from __future__ import annotations

import logging

from message_hub_sync.transport.rabbitmq.transport import RabbitMQTransport
from message_hub_sync.transport.threads import on_io_thread

__all__ = ["RabbitMQTransport"]


def _not_ours(_record: logging.LogRecord) -> bool:
    """A logging filter: drop what pika logs on an I/O thread of this package."""
    # 1: pika logs while the connection's lock is held. A logging handler is a user's code: if it publishes, it waits
    #    for that lock for ever.
    # 2: pika warns of each channel that the broker closes, which this package expects and reports itself.
    return not on_io_thread()


for _name in ("callback", "channel", "connection", "credentials", "data", "frame", "heartbeat"):
    # On each logger: the filters of a parent logger do not apply to the records of its children.
    logging.getLogger(f"pika.{_name}").addFilter(_not_ours)
