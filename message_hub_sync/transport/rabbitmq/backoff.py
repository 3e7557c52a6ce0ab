"""How long to wait before the next attempt to connect. No I/O; only the random jitter is not deterministic."""

from __future__ import annotations

import random

__all__ = ["ASK_AGAIN_SECONDS", "Backoff"]

#: Seconds; the pause doubles from the first to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: The same two pauses, after all hosts refused (password, vhost, certificate). A retry alone does not help, and
#: brokers may lock an account after many failed logins.
_FIRST_REFUSED_PAUSE, _LONGEST_REFUSED_PAUSE = 1.0, 30.0
#: Seconds after all hosts refused in which callers get that refusal. Afterwards a caller has the hosts tried again: the
#: password may be right again.
ASK_AGAIN_SECONDS = 1.0
#: The longest pause in seconds while a caller waits. Its deadline is a few seconds, so it needs to find a broker that
#: is back soon. Two attempts a second are no load.
_AWAITED_PAUSE = 0.5
#: If a connection was open for longer (seconds), its loss is not counted as a failure.
_STABLE_SECONDS = 1.0


class Backoff:
    """Counts failures in a row. A round has every IP address of every host once. I/O thread only."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._failures = 0
        self._rounds = 0
        self._round_over = False  # whether the latest failure was the last one of its round
        self._all_refused = True  # whether every attempt of this round was refused so far
        #: Whether every host refused in the latest round. Only a change of the settings can help then.
        self.all_hosts_refused = False

    @property
    def first(self) -> bool:
        """Whether there was no failure since the last stable connection. Only the first one in a row is logged."""
        return self._failures == 0

    def failed(self, final: bool, round_over: bool) -> None:
        """Count a failed attempt to connect.

        :param final: whether another attempt can only succeed after a setting was changed.
        :param round_over: whether every IP address of every host was tried since the latest pause.
        """
        self._failures += 1
        self._round_over = round_over
        self._all_refused = self._all_refused and final
        self.all_hosts_refused = self.all_hosts_refused and final
        if round_over:
            self._rounds += 1
            self.all_hosts_refused = self._all_refused
            self._all_refused = True

    def lost(self, lived: float, round_over: bool) -> bool:
        """Count the loss of a connection that was open for ``lived`` seconds.

        :returns: whether it was stable. If it was not, its loss counts as a failure.
        """
        if lived > _STABLE_SECONDS:
            self._reset()
            return True
        self.failed(False, round_over)
        return False

    def pauses(self) -> tuple[float, float]:
        """The seconds to wait before the next attempt: first if no caller waits, second if one waits."""
        if not self._round_over:
            return 0.0, 0.0
        jitter = random.uniform(0.5, 1.0)
        doubled = 2.0 ** min(self._rounds - 1, 10)
        if self.all_hosts_refused:
            pause = min(_LONGEST_REFUSED_PAUSE, _FIRST_REFUSED_PAUSE * doubled) * jitter
            return pause, min(pause, ASK_AGAIN_SECONDS)
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * doubled) * jitter
        return pause, min(pause, _AWAITED_PAUSE * jitter)
