"""How long to wait before the next attempt to connect. No I/O; only the random jitter is not deterministic."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

#: Seconds; the pause doubles from the first to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: The same two pauses, after all hosts refused (password, vhost, certificate). A retry alone does not help, and
#: brokers may lock an account after many failed logins.
_FIRST_REFUSED_PAUSE, _LONGEST_REFUSED_PAUSE = 1.0, 30.0
#: The longest pause in seconds while a caller waits. Its deadline is a few seconds, so it needs to find a broker that
#: is back soon. Two attempts a second are no load.
_AWAITED_PAUSE = 0.5
#: If a connection was open for longer (seconds), its loss is not counted as a failure.
_STABLE_SECONDS = 1.0


class Backoff:
    """Counts failures in a row. I/O thread only.

    :param hosts: the number of hosts. Each is tried once before a pause.
    """

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._failures = 0
        self._refusals = 0

    @property
    def first(self) -> bool:
        """Whether the latest failure is the first in a row. Only this one is logged as a warning."""
        return self._failures <= 1

    @property
    def all_hosts_refused(self) -> bool:
        """Whether every host refused the latest attempt. Only a change of the settings can help then."""
        return self._refusals >= self._hosts

    def failed(self, final: bool) -> None:
        """Count a failed attempt to connect.

        :param final: whether another attempt can only succeed after a setting was changed.
        """
        self._failures += 1
        self._refusals = self._refusals + 1 if final else 0

    def lost(self, lived: float) -> None:
        """Count the loss of a connection that was open for ``lived`` seconds."""
        self._refusals = 0
        self._failures = 0 if lived > _STABLE_SECONDS else self._failures + 1

    def pauses(self) -> tuple[float, float]:
        """The seconds to wait before the next attempt: first if no caller waits, second if one waits."""
        rounds, hosts_tried = divmod(self._failures, self._hosts)
        if hosts_tried or not rounds:
            return 0.0, 0.0
        jitter = random.uniform(0.5, 1.0)
        if self.all_hosts_refused:
            pause = min(_LONGEST_REFUSED_PAUSE, _FIRST_REFUSED_PAUSE * 2.0 ** min(rounds - 1, 10)) * jitter
            return pause, pause
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(rounds - 1, 10)) * jitter
        return pause, min(pause, _AWAITED_PAUSE * jitter)
