"""The sync use case: runs pulled from the platform's REST API, exported as traces, and remembered in a checkpoint."""

from __future__ import annotations

from runspan.sync.checkpoint import Binding, Checkpoint
from runspan.sync.desk import Settings
from runspan.sync.following import Sync
from runspan.sync.numbers import numbers
from runspan.sync.plan import Rhythm
from runspan.sync.report import Progress, SyncReport
from runspan.sync.sweep import Filter

__all__ = ["Binding", "Checkpoint", "Filter", "Progress", "Rhythm", "Settings", "Sync", "SyncReport", "numbers"]
