"""The platform's REST API as a source of runs: lists and documents, asked for at a bounded rate and asked again."""

from __future__ import annotations

from runspan.platform_api.client import PlatformClient, RateLimiter, RetryPolicy, base_url
from runspan.platform_api.schema import ResponseTooLong, RunListItem, RunListPage, fingerprint, fingerprint_of_summary

__all__ = [
    "PlatformClient",
    "RateLimiter",
    "ResponseTooLong",
    "RetryPolicy",
    "RunListItem",
    "RunListPage",
    "base_url",
    "fingerprint",
    "fingerprint_of_summary",
]
