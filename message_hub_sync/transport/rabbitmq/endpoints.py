"""In which order the IP addresses of all hosts are tried, and how much time each of them gets."""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from message_hub_sync.config import BrokerAddress
from message_hub_sync.runtime.real_time import time

__all__ = ["Endpoint", "Endpoints", "in_turn"]


@dataclass(frozen=True)
class Endpoint:
    """One IP address of one host."""

    address: BrokerAddress
    family: int
    kind: int
    protocol: int
    target: Any
    """The socket address, in the form of ``family``."""


def in_turn(addresses: Sequence[BrokerAddress], given_order: bool) -> tuple[BrokerAddress, ...]:
    """The hosts in the order in which one connection tries them: as given, or random."""
    # Random for each connection: after the restart of a node its clients spread over all others, and not all take the
    # one that follows it in the URL. From the operating system: a seed of the application must not give all processes
    # the same order.
    return tuple(addresses) if given_order else tuple(random.SystemRandom().sample(addresses, len(addresses)))


class Endpoints:
    """All endpoints, in turn. A round has each of them once. It keeps its place when a call gives up, so the next call
    continues where the last one ended.

    I/O thread only.

    :param addresses: the hosts, in the order in which they are tried.
    :param connect_timeout: the seconds that all attempts of a round share.
    """

    def __init__(self, addresses: Sequence[BrokerAddress], connect_timeout: float) -> None:
        self._addresses = addresses
        self._connect_timeout = connect_timeout
        self._next_host = 0
        self._hosts_left = len(addresses)  # hosts of this round that are not looked up yet
        self._found: deque[Endpoint] = deque()  # endpoints of the latest host that are not tried yet
        self._tried = 0  # endpoints tried in this round
        self._round_ends = 0.0  # monotonic seconds
        self._timed_out = False  # whether an attempt of this round had too little time
        self._slow_rounds = 0  # rounds in a row in which an attempt had too little time

    @property
    def host(self) -> BrokerAddress:
        """The host of the next endpoint."""
        return self._found[0].address if self._found else self._addresses[self._next_host]

    @property
    def round_over(self) -> bool:
        """Whether each endpoint was tried in this round."""
        return not self._found and not self._hosts_left

    def next(self) -> Endpoint:
        """The next endpoint. Looks its host up if no address of it is left, for as long as the resolver takes.

        :raises OSError: the host cannot be looked up. It counts as tried.
        """
        if self.round_over:
            self._hosts_left, self._tried = len(self._addresses), 0
        if not self._tried:
            self._round_ends = time.monotonic() + self._connect_timeout
        self._tried += 1
        if not self._found:
            address = self.host
            self._next_host = (self._next_host + 1) % len(self._addresses)
            self._hosts_left -= 1
            # getaddrinfo has no timeout. So it runs on the I/O thread, while callers wait with their own deadlines.
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            # Without those that the resolver names twice.
            for family, kind, protocol, _, target in dict.fromkeys(found):
                self._found.append(Endpoint(address, family, kind, protocol, target))
            if not self._found:
                raise OSError("the host has no address")
        return self._found.popleft()

    def deadline(self) -> float:
        """The deadline of an attempt that starts now, in monotonic seconds."""
        # The rest of the round is shared among the endpoints that are left. But a slow lookup takes no time away from
        # an attempt: each gets its equal share, and double of it after each round in which the share was too short.
        now = time.monotonic()
        left = 1 + len(self._found) + self._hosts_left
        equal = self._connect_timeout / (self._tried - 1 + left)
        seconds = max(equal * 2.0 ** min(self._slow_rounds, 30), (self._round_ends - now) / left)
        return now + min(self._connect_timeout, seconds)

    def failed(self, timed_out: bool) -> None:
        """The attempt failed.

        :param timed_out: it had too little time.
        """
        self._timed_out = self._timed_out or timed_out
        if self.round_over:
            self._slow_rounds = self._slow_rounds + 1 if self._timed_out else 0
            self._timed_out = False

    def forget(self) -> None:
        """Begin a new round at the next host, after a connection that was stable: what was looked up may be old."""
        self._found.clear()
        self._hosts_left = 0
        self._timed_out = False
        self._slow_rounds = 0
