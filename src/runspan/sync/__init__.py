"""The sync use case: fetch runs from the platform, export them, and record in a state file what was acknowledged."""

from __future__ import annotations

from runspan.sync.checkpoint import Binding, Checkpoint
from runspan.sync.context import ListFilter, SyncConfig
from runspan.sync.engine import SyncEngine
from runspan.sync.report import SyncProgress, SyncReport, sync_samples

__all__ = [
    "Binding",
    "Checkpoint",
    "ListFilter",
    "SyncConfig",
    "SyncEngine",
    "SyncProgress",
    "SyncReport",
    "sync_samples",
]
