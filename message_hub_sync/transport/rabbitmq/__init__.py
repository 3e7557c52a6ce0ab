"""RabbitMQ behind the seam. The only room where pika is known."""

from __future__ import annotations

import logging

from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.transport import RabbitMQTransport

__all__ = ["RabbitMQTransport"]


def _not_ours(record: logging.LogRecord) -> bool:
    """pika warns of every channel the broker closes; ours are questions that expect it, or are reported by us."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(isinstance(getattr(each, "connection", None), ThreadedConnection) for each in arguments)


logging.getLogger("pika.channel").addFilter(_not_ours)
