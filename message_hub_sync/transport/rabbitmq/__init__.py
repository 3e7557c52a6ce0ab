"""RabbitMQ behind the seam. The only room where pika is known."""

from __future__ import annotations

import logging

from message_hub_sync.transport.rabbitmq.transport import RabbitMQTransport
from message_hub_sync.transport.threads import on_io_thread

__all__ = ["RabbitMQTransport"]


def _not_ours(_record: logging.LogRecord) -> bool:
    """What pika logs on our I/O threads is dropped; what matters is reported by us.

    It logs while the connection's lock is held, and a logging handler is a user's code: one that publishes
    would wait for that lock for ever. It also warns of each channel that the broker closes, which ours expect.
    """
    return not on_io_thread()


for _name in ("callback", "channel", "connection", "credentials", "data", "frame", "heartbeat"):
    # On each, because the filters of a parent are not asked about its children's records.
    logging.getLogger(f"pika.{_name}").addFilter(_not_ours)
