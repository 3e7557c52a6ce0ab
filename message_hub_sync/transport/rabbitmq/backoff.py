"""When to try again to connect. Pure, but for the dice."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: After a refusal (password, vhost, certificate) nothing heals by itself: ask rarely, brokers lock accounts.
_FIRST_REFUSED_PAUSE, _LONGEST_REFUSED_PAUSE = 1.0, 30.0
#: While somebody waits, a pause is no longer than this: a deadline of a few seconds must profit from a broker
#: that comes back, and two attempts a second hurt nobody.
_AWAITED_PAUSE = 0.5
#: A connection that lived this long was a sound one; losing it is not one more failure in a row.
_SOUND_SECONDS = 1.0


class Backoff:
    """Counts failures in a row. Belongs to one I/O thread.

    :param hosts: how many there are; each is tried once before any pause.
    """

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._failures = 0
        self._refusals = 0

    @property
    def first(self) -> bool:
        """Whether the latest failure is the first in a row: worth a line in the log."""
        return self._failures <= 1

    @property
    def all_hosts_refused(self) -> bool:
        """Whether every host refused, so that nothing but a change of the settings will help."""
        return self._refusals >= self._hosts

    def failed(self, final: bool) -> None:
        """An attempt to connect failed; ``final``: the broker refused."""
        self._failures += 1
        self._refusals = self._refusals + 1 if final else 0

    def lost(self, lived: float) -> None:
        """A connection that was open for ``lived`` seconds is gone."""
        self._refusals = 0
        self._failures = 0 if lived > _SOUND_SECONDS else self._failures + 1

    def pauses(self) -> tuple[float, float]:
        """Seconds to wait before the next attempt: when nobody waits for it, and when somebody does."""
        rounds, hosts_tried = divmod(self._failures, self._hosts)
        if hosts_tried or not rounds:
            return 0.0, 0.0
        jitter = random.uniform(0.5, 1.0)
        if self.all_hosts_refused:
            pause = min(_LONGEST_REFUSED_PAUSE, _FIRST_REFUSED_PAUSE * 2.0 ** min(rounds - 1, 10)) * jitter
            return pause, pause
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(rounds - 1, 10)) * jitter
        return pause, min(pause, _AWAITED_PAUSE * jitter)
