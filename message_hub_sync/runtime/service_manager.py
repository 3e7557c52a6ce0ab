"""Tells systemd what this process does (``Type=notify``). Does nothing if no service manager asks for it."""

from __future__ import annotations

import os
import socket

from message_hub_sync.runtime.log import SafeLogger

__all__ = ["notify"]

logger = SafeLogger("message_hub_sync.client")


def notify(state: str) -> None:
    """Send a state to the service manager, as ``sd_notify(3)`` does. Raises nothing.

    :param state: for example ``READY=1`` or ``STOPPING=1``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(1.0)  # a service manager that does not read must not hold the service up
            # The name of an abstract socket begins with a NUL byte, which an environment variable cannot have.
            datagrams.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            datagrams.sendall(state.encode())
    except OSError as error:
        logger.warning("the service manager was not told %s: %s", state, type(error).__name__)
