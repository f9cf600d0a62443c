"""The platform's REST dialect over HTTP: its responses, a client, and a client with a rate limit and retries."""

from __future__ import annotations

from runspan.platform_api.client import ApiClient, PlatformClient, parse_api_url, run_path
from runspan.platform_api.schema import RunListItem, RunListPage, fingerprint, fingerprint_of_summary

__all__ = [
    "ApiClient",
    "PlatformClient",
    "RunListItem",
    "RunListPage",
    "fingerprint",
    "fingerprint_of_summary",
    "parse_api_url",
    "run_path",
]
