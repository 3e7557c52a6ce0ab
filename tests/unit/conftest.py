"""Fewer examples per property for ``make quick``: ``pytest --hypothesis-profile=quick tests/unit``."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quick", max_examples=10)
