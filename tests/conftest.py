"""Fixtures that more than one test file uses, and the number of examples of a property."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = ["support.servers.fixtures", "support.sync_fixtures"]

# `make test` tries each property with a few new examples every time, `make campaign` with many.
for name, examples in (("suite", 50), ("campaign", 300)):
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
