"""Conversion between timestamps of run documents and nanoseconds of spans; no I/O, no clock.

The platform writes ``2024-01-15T09:00:01.200Z``. That form is *canonical*: it can be rebuilt from the nanoseconds, so
a span's start and end carry it. Any other RFC 3339 text is converted to nanoseconds too, and carried as text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MICROSECOND = 1_000
UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
"""Nanoseconds by the unit of a duration such as ``30s`` or ``7d``."""
MAX_NS = (1 << 63) - 4
"""The latest start of a span: stores keep signed integers, and Tempo loses every run of a block in which a time reaches
2**63 - 2, so that the end of a span without length, one nanosecond later, stays below that."""
LATEST_END_NS = MAX_NS + 1
"""The latest end of a span."""

_SUFFIXES = [f"{second:02}" for second in range(60)]
_ENDINGS = [f".{ms:03}Z" for ms in range(1000)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400 * SECOND
_LAST_DAY = MAX_NS // _DAY * _DAY
"""The day of ``MAX_NS``, which a span cannot hold to its end."""
_DAY_FORM = re.compile(r"\d{4}-\d\d-\d\dT", re.ASCII)
_CACHE_SIZE = 10_000
_MINUTE_TEXTS = [f"{minute // 60:02}:{minute % 60:02}:" for minute in range(24 * 60)]
_MINUTES_OF_DAY = {text: minute * 60 * SECOND for minute, text in enumerate(_MINUTE_TEXTS)}

_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?(?:([Zz])|([+-])(\d{2}):(\d{2}))", re.ASCII
)


class _Days(dict[str, int]):
    """Nanoseconds by day, ``2024-01-15T``. KeyError for another form and for days that a span cannot hold."""

    def __missing__(self, prefix: str) -> int:
        if not _DAY_FORM.fullmatch(prefix):
            raise KeyError(prefix)
        try:
            moment = datetime.fromisoformat(prefix + "00:00:00+00:00")
        except ValueError:
            raise KeyError(prefix) from None
        ns = (moment - _EPOCH) // timedelta(seconds=1) * SECOND
        if not 0 <= ns < _LAST_DAY:
            raise KeyError(prefix)
        if len(self) >= _CACHE_SIZE:
            self.clear()
        self[prefix] = ns
        return ns


_DAYS = _Days()


class _Minutes(dict[str, int]):
    """Nanoseconds by minute, ``2024-01-15T09:00:``. KeyError for another form and for days that a span cannot hold."""

    def __missing__(self, prefix: str) -> int:
        ns = _DAYS[prefix[:11]] + _MINUTES_OF_DAY[prefix[11:]]
        if len(self) >= _CACHE_SIZE:
            self.clear()
        self[prefix] = ns
        return ns


MINUTES = _Minutes()
SECONDS = {f"{second:02}": second * SECOND for second in range(60)}
FRACTIONS = {f".{ms:03}Z": ms * MILLISECOND for ms in range(1000)}
"""Nanoseconds of the three parts of a canonical timestamp, which is split at characters 17 and 19."""


@lru_cache(maxsize=8192)
def _day_text(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%dT")


def _minute_text(minute: int) -> str:
    day, minute = divmod(minute, 24 * 60)
    return _day_text(day) + _MINUTE_TEXTS[minute]


def canonical_ns(text: str) -> int | None:
    """Return the nanoseconds since 1970 of a canonical timestamp, or None for any other text."""
    try:
        return MINUTES[text[:17]] + SECONDS[text[17:19]] + FRACTIONS[text[19:]]
    except KeyError:
        return None


def canonical_text(ns: int) -> str | None:
    """Return the canonical timestamp of these nanoseconds, or None if they are not a multiple of a millisecond."""
    if ns % MILLISECOND or not 0 <= ns <= MAX_NS:
        return None
    second, rest = divmod(ns, SECOND)
    return _minute_text(second // 60) + _SUFFIXES[second % 60] + _ENDINGS[rest // MILLISECOND]


def rfc3339(ns: int) -> str:
    """Return the RFC 3339 timestamp of these nanoseconds since 1970, with as many digits as it needs."""
    canonical = canonical_text(ns)
    if canonical is not None:
        return canonical
    second, rest = divmod(min(max(ns, 0), MAX_NS), SECOND)
    return f"{_minute_text(second // 60)}{_SUFFIXES[second % 60]}.{rest:09}Z"


def parse_ns(text: str) -> int | None:
    """Return the nanoseconds since 1970 of any RFC 3339 timestamp, or None for text that is none or out of range.

    Digits past the nanosecond are truncated. A leap second counts as the last nanosecond before it.
    """
    ns = canonical_ns(text)
    if ns is not None:
        return ns
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    date, clock, fraction, zulu, sign, hours, minutes = match.groups()
    if clock.endswith(":60"):
        clock, fraction = clock[:-2] + "59", "999999999"
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}+00:00")
    except ValueError:
        return None
    ns = (moment - _EPOCH) // timedelta(seconds=1) * SECOND + int((fraction or "")[:9].ljust(9, "0"))
    if not zulu:
        offset = (int(hours) * 3600 + int(minutes) * 60) * SECOND
        ns += offset if sign == "-" else -offset
    return ns if 0 < ns <= MAX_NS else None


_DURATION = r"[1-9][0-9]{0,5}[smhd]"
MOMENT_PATTERN = (
    rf"^({_DURATION}|"
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2}))?)$"
)
"""What ``parse_moment`` reads, as a regular expression of JSON Schema."""
MOMENT_FORMS = "a time such as 2026-11-27T09:00:00Z, a day such as 2026-11-27, or a duration such as 24h"
"""The same for people."""


def parse_moment(text: str, now: int) -> int | None:
    """Return the nanoseconds since 1970 of a duration before now, a day in UTC, or an RFC 3339 timestamp.

    These are ``24h``, ``2026-11-27`` and ``2026-11-27T09:00:00+01:00``; None for any other text.
    """
    if re.fullmatch(_DURATION, text):
        return max(0, now - int(text[:-1]) * UNITS[text[-1]])
    return parse_ns(f"{text}T00:00:00Z" if len(text) == 10 else text)
