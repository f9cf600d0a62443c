"""The archive use case: finished runs of a backend into files that are verified before anything may be deleted."""

from __future__ import annotations

from runspan.archive.collecting import Found, Reading, Skipped
from runspan.archive.making import Archived, Asked, Request, Telling, archive
from runspan.archive.places import unfinished
from runspan.archive.purging import PurgeReport, purge

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
