"""The order of the embedded hub's locks: each is taken only inside those before it (see ``runtime/locks.py``)."""

from __future__ import annotations

__all__ = ["CLOCK", "CONSUMER", "HUB", "REGISTRY", "TRANSPORT"]

CONSUMER, TRANSPORT, REGISTRY, HUB, CLOCK = 1, 2, 3, 4, 5
