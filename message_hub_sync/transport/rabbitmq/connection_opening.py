"""Opening an AMQP connection to one IP address: TCP, TLS and login, on the I/O thread, with one deadline."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
from collections.abc import Callable

import pika
from pika.exceptions import StreamLostError

from message_hub_sync.config import BrokerAddress, ClientConfig
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.rabbitmq.connection import ThreadedConnection
from message_hub_sync.transport.rabbitmq.endpoints import Endpoint
from message_hub_sync.transport.rabbitmq.polling import Waker, new_selector
from message_hub_sync.transport.rabbitmq.translation import (
    FIRST_FRAMES_BYTES,
    ConnectionEnded,
    LoginTooLargeError,
    NoConfirmsError,
)

__all__ = ["GivenUp", "Opening", "dial"]

#: The kernel ends the connection if the peer acknowledges no sent data for this time, in milliseconds.
_TCP_USER_TIMEOUT_MS = 10_000


class GivenUp(Exception):
    """The client was closed while it connected."""


class Opening:
    """Opens the connections of one I/O thread, one after the other.

    :param role: ``publish`` or ``consume``; a part of the connection's name on the broker.
    :param waker: wakes the I/O thread while it connects.
    :param closing: whether to give up; called after each wake.
    """

    def __init__(self, config: ClientConfig, role: str, waker: Waker, closing: Callable[[], bool]) -> None:
        self._config = config
        self._role = role
        self._waker = waker
        self._closing = closing
        self._dialing: socket.socket | None = None  # I/O thread only, and after_fork_in_child

    def open(
        self, endpoint: Endpoint, deadline: float, begun: Callable[[ThreadedConnection], None]
    ) -> ThreadedConnection:
        """Connect to one IP address.

        :param deadline: monotonic seconds.
        :param begun: called with the connection before the AMQP handshake, so that another thread can end it.
        :raises GivenUp: the client is being closed.
        :raises Exception: the attempt failed; ``connect_failure`` translates the error.
        """
        connected = dial(endpoint, deadline, self._await_socket)
        try:
            connection = ThreadedConnection(self._parameters(endpoint.address), connected, self._waker)
        except BaseException:
            connected.close()
            raise
        connection.quiet = True  # what is wrong with a handshake is logged with the failed attempt
        begun(connection)
        self._dialing = None
        try:
            self._handshake(connection, deadline)
        except (TimeoutError, StreamLostError):
            # RabbitMQ neither reads nor answers a frame that is too large for it.
            if connection.unanswered_login > FIRST_FRAMES_BYTES:
                raise LoginTooLargeError(connection.unanswered_login) from None
            raise
        if not connection.offers_confirms:
            connection.end("the broker has no confirms")
            raise NoConfirmsError
        return connection

    def _handshake(self, connection: ThreadedConnection, deadline: float) -> None:
        try:
            connection.begin()
            while not connection.is_open and not connection.ended:
                if self._closing():
                    raise GivenUp
                if time.monotonic() >= deadline:
                    raise TimeoutError
                connection.step(deadline)
                # Up to RabbitMQ 4.0 the size is fixed, so it is not necessary to wait.
                login = connection.unanswered_login
                if login > FIRST_FRAMES_BYTES and () < connection.broker_version < (4, 1):
                    raise LoginTooLargeError(login)
        finally:
            if not connection.is_open:
                connection.end("the connection was not opened")
        if not connection.is_open:
            raise connection.end_reason or ConnectionEnded()

    def after_fork_in_child(self) -> None:
        """In a forked child: close the child's copy of the socket. Sends nothing and takes no lock."""
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
            credentials=pika.PlainCredentials(*address.login()),
            heartbeat=self._config.heartbeat,
            client_properties={
                "product": "message_hub_sync",
                "connection_name": f"{self._config.service_name}/{self._role}/{os.getpid()}",
            },
        )


def dial(
    endpoint: Endpoint, deadline: float, await_socket: Callable[[socket.socket, bool, float], bool]
) -> socket.socket:
    """Connect to one IP address.

    :param deadline: monotonic seconds.
    :param await_socket: called with a socket, ``True`` for writable or ``False`` for readable, and a deadline. Waits
        for the socket and returns whether it is ready; may raise to give up.
    :returns: the connected socket, non-blocking; with TLS, after the TLS handshake.
    :raises OSError: including ``TimeoutError`` and ``ssl.SSLError``.
    """
    address = endpoint.address
    connection = socket.socket(endpoint.family, endpoint.kind, endpoint.protocol)
    try:
        connection.setblocking(False)
        _tune(connection)
        _connect(connection, endpoint.target, deadline, await_socket)
        if address.tls:
            return _handshake(connection, address, await_socket, deadline)
    except BaseException:
        connection.close()
        raise
    return connection


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        with contextlib.suppress(OSError):  # some sandboxes lack it; heartbeats still find a silent peer
            connection.setsockopt(socket.IPPROTO_TCP, option, _TCP_USER_TIMEOUT_MS)


def _connect(
    connection: socket.socket,
    target: tuple[object, ...],
    deadline: float,
    await_socket: Callable[[socket.socket, bool, float], bool],
) -> None:
    try:
        connection.connect(target)
    except BlockingIOError:
        if not await_socket(connection, True, deadline):
            raise TimeoutError("connecting timed out") from None
        number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number)) from None


def _handshake(
    connection: socket.socket,
    address: BrokerAddress,
    await_socket: Callable[[socket.socket, bool, float], bool],
    deadline: float,
) -> ssl.SSLSocket:
    wrapped = address.tls_context().wrap_socket(
        connection, server_hostname=address.server_hostname, do_handshake_on_connect=False
    )
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                ready = await_socket(wrapped, False, deadline)
            except ssl.SSLWantWriteError:
                ready = await_socket(wrapped, True, deadline)
            else:
                return wrapped
            if not ready:
                raise TimeoutError("the TLS handshake timed out")
    except BaseException:
        wrapped.close()
        raise
