"""Free TCP ports for servers that tests start."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

_lock = threading.RLock()
_given: set[int] = set()  # guarded by _lock


def free_port() -> int:
    """A port of 127.0.0.1 on which no server listens. Thread-safe.

    :returns: a port that this process has not returned before.
    :raises OSError: 1,000 attempts found none.
    """
    with _lock:
        # Below the kernel's range for outgoing connections: if a client reconnects repeatedly to a dead server's port
        # inside that range, the kernel may choose the same port for the client's end: the client connects to itself.
        for _ in range(1000):
            port = random.randrange(10_000, _first_ephemeral_port())
            if port not in _given and _is_free(port):
                _given.add(port)
                return port
    raise OSError("1,000 attempts found no free port on 127.0.0.1")


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
