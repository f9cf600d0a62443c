"""The embedded store: one SQLite file, one row a run, durable before a write returns."""

from runspan.backends.sqlite.counts import Stats
from runspan.backends.sqlite.retention import PurgeReport
from runspan.backends.sqlite.store import SqliteStore
from runspan.backends.sqlite.waiting import Limits

__all__ = ["Limits", "PurgeReport", "SqliteStore", "Stats"]
