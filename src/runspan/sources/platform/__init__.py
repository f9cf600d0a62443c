"""The platform's REST API as a source of runs: lists and documents, asked for at a bounded rate and asked again."""

from __future__ import annotations

from runspan.sources.platform.answers import AnswerTooLong, Listed, Listing, fingerprint, fingerprint_of_summary
from runspan.sources.platform.client import Patience, Platform, base_url
from runspan.sources.platform.pace import Pace

__all__ = [
    "AnswerTooLong",
    "Listed",
    "Listing",
    "Pace",
    "Patience",
    "Platform",
    "base_url",
    "fingerprint",
    "fingerprint_of_summary",
]
