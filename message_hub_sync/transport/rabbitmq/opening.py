"""From an address to an open AMQP connection, on the I/O thread, under one deadline."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable

import pika

from message_hub_sync.config import BrokerAddress, ClientConfig
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.dialing import dial
from message_hub_sync.transport.rabbitmq.translation import ConnectionEnded
from message_hub_sync.transport.rabbitmq.waker import Waker, new_selector

__all__ = ["GivenUp", "Opening"]


class GivenUp(Exception):
    """The client is closed while it connects."""


class Opening:
    """Opens the connections of one I/O thread, one after the other.

    Mutable: ``_dialing``, the socket of the attempt under way; the I/O thread's own, and a forked child's.

    :param closing: whether to give up, asked after each wake.
    """

    def __init__(self, config: ClientConfig, role: str, waker: Waker, closing: Callable[[], bool]) -> None:
        self._config = config
        self._role = role
        self._waker = waker
        self._closing = closing
        self._dialing: socket.socket | None = None

    def open(
        self, address: BrokerAddress, deadline: float, begun: Callable[[ThreadedConnection], None]
    ) -> ThreadedConnection:
        """Connect to one host.

        :param begun: given the connection as soon as there is one, so that it can be told to end.
        :raises GivenUp: the client is being closed.
        :raises Exception: whatever keeps the connection from being open, for ``connect_failure`` to explain.
        """
        connected = dial(address, deadline, self._await_socket)
        try:
            connection = ThreadedConnection(self._parameters(address), connected, self._waker)
        except BaseException:
            connected.close()
            raise
        begun(connection)
        self._dialing = None
        try:
            connection.begin()
            while not connection.is_open and not connection.ended:
                if self._closing():
                    raise GivenUp
                if time.monotonic() >= deadline:
                    raise TimeoutError
                connection.step(deadline)
        finally:
            if not connection.is_open:
                connection.end("it was not opened")
        if not connection.is_open:
            raise connection.end_reason or ConnectionEnded()
        return connection

    def abandon(self) -> None:
        """In a forked child: close our copy of the socket without a word on it."""
        if self._dialing is not None:
            descriptor = self._dialing.detach()
            if descriptor >= 0:
                socket.close(descriptor)

    def _await_socket(self, waiting: socket.socket, writable: bool, deadline: float) -> bool:
        self._dialing = waiting
        with new_selector() as selector:
            selector.register(waiting, selectors.EVENT_WRITE if writable else selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            while not self._closing():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                for key, _ in selector.select(remaining):
                    if key.fileobj is waiting:
                        return True
                    self._waker.clear()
        raise GivenUp

    def _parameters(self, address: BrokerAddress) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host=address.host,
            port=address.port,
            virtual_host=address.virtual_host,
            credentials=pika.PlainCredentials(address.username, address.password),
            heartbeat=self._config.heartbeat,
            client_properties={
                "product": "message_hub_sync",
                "connection_name": f"{self._config.service_name}/{self._role}/{os.getpid()}",
            },
        )
