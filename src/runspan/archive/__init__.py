"""The archive use case: write finished runs to files that are verified before anything may be deleted."""

from __future__ import annotations

from runspan.archive.create import (
    AgeRange,
    ArchiveCallbacks,
    ArchiveRequest,
    ArchiveResult,
    create_archive,
    purge,
)
from runspan.archive.select import CollectedRun, RetryingReader, SkippedRun
from runspan.archive.targets import unfinished

__all__ = [
    "AgeRange",
    "ArchiveCallbacks",
    "ArchiveRequest",
    "ArchiveResult",
    "CollectedRun",
    "RetryingReader",
    "SkippedRun",
    "create_archive",
    "purge",
    "unfinished",
]
