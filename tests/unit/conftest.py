"""Hypothesis without deadlines, and with fewer examples for ``make quick``: ``pytest --hypothesis-profile=quick``."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline for an example, and no complaint that examples are made slowly: both depend on the load of the machine.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _PATIENT)
settings.register_profile("quick", _PATIENT, max_examples=10)
settings.load_profile("default")
