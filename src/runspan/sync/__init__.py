"""The sync use case: runs pulled from the platform's REST API, exported as traces, and remembered in a checkpoint."""

from __future__ import annotations

from runspan.sync.checkpoint import Binding, Checkpoint
from runspan.sync.context import SyncConfig
from runspan.sync.engine import SyncEngine
from runspan.sync.list_scan import ListFilter
from runspan.sync.monitor import sync_samples
from runspan.sync.policy import RefreshPolicy
from runspan.sync.report import SyncProgress, SyncReport

__all__ = [
    "Binding",
    "Checkpoint",
    "ListFilter",
    "RefreshPolicy",
    "SyncConfig",
    "SyncEngine",
    "SyncProgress",
    "SyncReport",
    "sync_samples",
]
