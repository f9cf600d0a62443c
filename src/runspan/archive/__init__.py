"""The archive use case: finished runs of a backend into files that are verified before anything may be deleted."""

from __future__ import annotations

from runspan.archive.create import Archived, Asked, Request, Telling, archive
from runspan.archive.purge import PurgeReport, purge
from runspan.archive.select import Found, Reading, Skipped
from runspan.archive.targets import unfinished

__all__ = [
    "Archived",
    "Asked",
    "Found",
    "PurgeReport",
    "Reading",
    "Request",
    "Skipped",
    "Telling",
    "archive",
    "purge",
    "unfinished",
]
