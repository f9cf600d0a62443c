"""The archive use case: write finished runs to files that are verified before anything may be deleted."""

from __future__ import annotations

from runspan.archive.create import (
    AgeRange,
    ArchiveRequest,
    ArchiveResult,
    PurgeReport,
    create_archive,
    purge,
)
from runspan.archive.select import CollectedRun, RetryingReader, SkippedRun
from runspan.archive.targets import unfinished

__all__ = [
    "AgeRange",
    "ArchiveRequest",
    "ArchiveResult",
    "CollectedRun",
    "PurgeReport",
    "RetryingReader",
    "SkippedRun",
    "create_archive",
    "purge",
    "unfinished",
]
