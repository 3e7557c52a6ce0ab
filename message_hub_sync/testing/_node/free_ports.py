"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

_given: set[int] = set()
_lock = threading.Lock()  # guards _given


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, never given twice by this process. Thread-safe.

    It is taken from below the kernel's range for outgoing connections: from inside it, a client that connects
    again and again to a dead server's port could be given that very port as its own, and talk to itself.

    Raises:
        OSError: A thousand tries found none.
    """
    with _lock:
        for _ in range(1000):
            port = random.randrange(10_000, _first_ephemeral_port())
            if port not in _given and _is_free(port):
                _given.add(port)
                return port
    raise OSError("no free port found on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    return first if first > 12_000 else 32_768
