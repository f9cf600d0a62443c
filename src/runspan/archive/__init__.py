"""The archive use case: finished runs of a backend into files that are verified before anything may be deleted."""

from __future__ import annotations

from runspan.archive.create import AgeRange, ArchiveCallbacks, ArchiveRequest, ArchiveResult, create_archive
from runspan.archive.purge import PurgeReport, purge
from runspan.archive.select import CollectedRun, RetryingReader, SkippedRuns
from runspan.archive.targets import unfinished

__all__ = [
    "AgeRange",
    "ArchiveCallbacks",
    "ArchiveRequest",
    "ArchiveResult",
    "CollectedRun",
    "PurgeReport",
    "RetryingReader",
    "SkippedRuns",
    "create_archive",
    "purge",
    "unfinished",
]
