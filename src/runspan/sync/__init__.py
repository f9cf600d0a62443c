"""The sync use case: runs pulled from the platform's REST API, exported as traces, and remembered in a checkpoint."""

from __future__ import annotations

from runspan.sync.checkpoint import Binding, Checkpoint
from runspan.sync.context import Settings
from runspan.sync.engine import Sync
from runspan.sync.list_scan import Filter
from runspan.sync.monitor import numbers
from runspan.sync.policy import Rhythm
from runspan.sync.report import Progress, SyncReport

__all__ = ["Binding", "Checkpoint", "Filter", "Progress", "Rhythm", "Settings", "Sync", "SyncReport", "numbers"]
