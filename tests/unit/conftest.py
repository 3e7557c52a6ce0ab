"""Hypothesis without deadlines, and with fewer examples for ``make quick``: ``pytest --hypothesis-profile=quick``."""

from __future__ import annotations

from hypothesis import settings

# No deadline for an example: how long one takes depends on the load of the machine.
settings.register_profile("default", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=10)
settings.load_profile("default")
