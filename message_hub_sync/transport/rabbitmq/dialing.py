"""From an address to a connected, non-blocking socket, plain or TLS, under one deadline."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable

from message_hub_sync.config import BrokerAddress

__all__ = ["dial"]

#: Milliseconds after which the kernel gives up on data the peer never acknowledged.
_TCP_USER_TIMEOUT_MS = 10_000


def dial(
    address: BrokerAddress, deadline: float, await_socket: Callable[[socket.socket, bool, float], bool]
) -> socket.socket:
    """Connect to the first of the host's IP addresses that answers.

    ``getaddrinfo`` cannot be timed out, which is why this runs on the I/O thread while callers wait
    with their own deadlines.

    :param deadline: monotonic seconds.
    :param await_socket: waits until a socket is readable (``False``) or writable (``True``) or the deadline
        passes; returns whether it is; may raise to give up.
    :raises OSError: including ``TimeoutError``, ``socket.gaierror`` and ``ssl.SSLError``.
    """
    last: OSError | None = None
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for position, (family, kind, protocol, _, target) in enumerate(found):
        # An address that swallows everything (IPv6 without a route) leaves time for those after it.
        now = time.monotonic()
        until = now + (deadline - now) / (len(found) - position)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            _tune(connection)
            _connect(connection, target, until, await_socket)
            if address.tls:
                assert address.ssl_context is not None
                return _handshake(connection, address, address.ssl_context, until, await_socket)
        except OSError as error:
            connection.close()
            last = error
            if time.monotonic() >= deadline:
                break
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise last or OSError("the host has no address")


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        with contextlib.suppress(OSError):  # sandboxes without it still have heartbeats
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
    context: ssl.SSLContext,
    deadline: float,
    await_socket: Callable[[socket.socket, bool, float], bool],
) -> ssl.SSLSocket:
    wrapped = context.wrap_socket(
        connection, server_hostname=address.server_hostname or address.host, do_handshake_on_connect=False
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
