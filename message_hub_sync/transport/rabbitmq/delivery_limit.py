"""Finds out whether a queue drops messages that return too often: a quorum queue with a delivery limit.

AMQP cannot ask for the arguments of a queue. But a declaration with other arguments is answered with the text of the
difference (406), which has the current value. The declaration here can never create a queue: no type of queue accepts
its arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.io_tasks import Steps
from message_hub_sync.transport.rabbitmq.rpc_channel import RpcChannel
from message_hub_sync.transport.rabbitmq.translation import ChannelClosed
from message_hub_sync.transport.topology import DELIVERY_LIMIT

__all__ = ["LIMIT", "Difference", "delivery_limit", "first_difference"]

#: The limit of RabbitMQ 4 for a quorum queue that has no other one. Earlier versions have none.
_DEFAULT_LIMIT, _FIRST_VERSION_WITH_DEFAULT = 20, 4
#: A queue has fewer other arguments that the broker compares before the limit. It tells one difference at a time.
_MOST_ARGUMENTS = 20
#: The argument with the limit.
LIMIT = "x-delivery-limit"
_TYPE, _PRIORITIES = "x-queue-type", "x-max-priority"
_INEQUIVALENT = re.compile(r"inequivalent arg '([^']{1,255})' for ")
# RabbitMQ 3 has "but current is the value 'quorum' of type 'longstr'", RabbitMQ 4 has "but current is 'quorum'".
_CURRENT = re.compile(r" but current is (?:the value )?(none|'[^']{0,255}')")


@dataclass(frozen=True)
class Difference:
    """The first difference between a declaration and the existing queue.

    :param name: the argument.
    :param told: whether the text has its current value. The broker cuts its text to 255 bytes.
    :param current: that value; ``None`` if the queue does not have the argument.
    """

    name: str
    told: bool
    current: int | str | None = None


def delivery_limit(connection: ThreadedConnection, queue: str) -> Steps[int | None]:
    """See :meth:`Transport.delivery_limit`."""
    # A quorum queue has no priorities, so a declaration with them creates nothing if the queue has been deleted. If it
    # exists, the broker does not compare them.
    arguments: dict[str, Any] = {_TYPE: "quorum", LIMIT: "unknown", _PRIORITIES: "unknown"}
    for _ in range(_MOST_ARGUMENTS):
        found = first_difference((yield from _declared(connection, queue, arguments)))
        if found is None:
            return 0  # no permission, or a text of another form
        if found.name in (_TYPE, _PRIORITIES):
            return None  # it is no quorum queue
        if found.name == LIMIT:
            known = found.current if found.told else (yield from _guessed(connection, queue, arguments))
            return _limit(known, connection.broker_version)
        if found.name in ("durable", "auto_delete", "exclusive") or found.name in arguments or not found.told:
            return 0
        arguments[found.name] = found.current  # equal from now on: the next answer tells the next difference
    return 0


def _guessed(connection: ThreadedConnection, queue: str, arguments: dict[str, Any]) -> Steps[int | str | None]:
    """The limit of a queue whose name is so long that the broker's text does not have it."""
    if not (yield from _declared(connection, queue, {**arguments, LIMIT: DELIVERY_LIMIT})):
        return DELIVERY_LIMIT
    without = {name: value for name, value in arguments.items() if name != LIMIT}
    return "unknown" if (yield from _declared(connection, queue, without)) else None


def _declared(connection: ThreadedConnection, queue: str, arguments: dict[str, Any]) -> Steps[str]:
    """Declare a queue that exists; the broker's text if it refuses, or an empty text."""
    channel = RpcChannel(connection)
    try:
        yield from channel.call(
            lambda pika, done: pika.queue_declare(queue, durable=True, arguments=arguments, callback=done)
        )
    except ChannelClosed as closed:
        return closed.text or str(closed.code)
    except Exception:
        channel.close()
        raise
    channel.close()
    return ""


def first_difference(text: str) -> Difference | None:
    """Read the broker's text of a 406; ``None`` if the text has another form."""
    name, current = _INEQUIVALENT.search(text), _CURRENT.search(text)
    if name is None:
        return None
    if current is None:
        return Difference(name[1], told=False)
    if current[1] == "none":
        return Difference(name[1], told=True)
    value = current[1][1:-1]
    return Difference(name[1], told=True, current=int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else value)


def _limit(value: int | str | None, version: tuple[int, ...]) -> int | None:
    new = not version or version[0] >= _FIRST_VERSION_WITH_DEFAULT
    if value is None:
        return _DEFAULT_LIMIT if new else None
    if not isinstance(value, int):
        return 0
    # Below 0: RabbitMQ 4 has no limit then; earlier versions drop a message at its first return.
    return value if value >= 0 else None if new else 0
