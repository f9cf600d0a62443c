"""The platform's REST API as a source of runs: lists and documents, asked for at a bounded rate and asked again."""

from __future__ import annotations

from runspan.platform_api.client import Pace, Patience, Platform, base_url
from runspan.platform_api.schema import AnswerTooLong, Listed, Listing, fingerprint, fingerprint_of_summary

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
