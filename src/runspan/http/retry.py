"""How long a server asks to wait: ``Retry-After`` in seconds or as a date, bounded; no I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_WAIT: Final = 3600.0
"""Seconds. Who asks for more, or for a thousand years, is asked again after that."""


def parse_retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds from 0 to ``LONGEST_WAIT``, None when the answer names none.

    headers: looked up by lower-case names. A date counts from the answer's own date, so the two clocks may differ; now:
    seconds since 1970, for an answer without one; None: the clock's.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    until, since = _seconds(text), _seconds(headers.get("date", ""))
    if until is None:
        return None
    if since is None:
        since = time.time() if now is None else now
    return min(max(0.0, until - since), LONGEST_WAIT)


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
