"""Fixtures that more than one test file uses."""

from __future__ import annotations

pytest_plugins = ["support.servers.fixtures", "support.sync_fixtures"]
