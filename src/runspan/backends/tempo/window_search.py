"""Searching one stretch of time so that nothing in it can be missing.

Tempo cuts a search at its limit, and which traces it keeps is only ordered by their fragments' starts. So an answer
counts only when it holds fewer traces than were asked for; any other is asked for again over less time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from runspan.backends.remote.client import RemoteClient
from runspan.backends.tempo.responses import Candidate, SearchResult, read_search
from runspan.errors import BackendRefused, QueryUnsupported
from runspan.http.client import Response

SECOND: Final = 1_000_000_000
EARLIEST: Final = 1
LATEST: Final = 2**32 - 1
"""The first and last second that a search can name. Zero would mean: no range."""

_MAX_LIMIT: Final = 262_144
_RANGE_REFUSED = re.compile(r"range specified by start and end exceeds (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_MAX_SPANS: Final = 20
"""Of a trace in an answer: the steps of usual runs. A run of more is read once, which takes Tempo less time."""
_MAX_ANSWERED: Final = 10_000
"""Spans of an answer, of about 600 bytes each."""
_SPANS_REFUSED = re.compile(r"spans per span set exceeds (\d+)")
_LIMIT_REFUSED = re.compile(r"limit \d+ exceeds max limit (\d+)")


@dataclass(frozen=True, slots=True)
class SearchWindow:
    """Everything found in the seconds from ``low`` to ``high``.

    missing: parts of the data that were not looked at. limit: the one that sufficed.
    """

    low: int
    high: int
    candidates: list[Candidate]
    missing: int
    limit: int


class WindowSearcher:
    """Asks one Tempo, and remembers which ranges, limits and numbers of spans it refuses."""

    def __init__(self, http: RemoteClient) -> None:
        self._http = http
        self._max_range: int | None = None
        self._max_limit = _MAX_LIMIT
        self._max_spans = _MAX_SPANS

    @property
    def limited(self) -> bool:
        """Whether the server is known to refuse wide ranges."""
        return self._max_range is not None

    def window(self, text: str, low: int, high: int, limit: int, enough: int) -> SearchWindow | None:
        """The newest part of a range that could be searched whole: it ends at ``high`` and begins at ``low`` or later.

        None when it turned out just now that the server is ``limited``. limit: how many traces to ask for at first.
        enough: how many newest ones will do.
        """
        while True:
            known = self._max_range
            if known is not None:
                low = max(low, high - known)
            limit = min(limit, self._max_limit)
            found = self._search(text, low, high, limit)
            if found is None:
                if known != self._max_range:
                    return None
                continue
            if found.traces < limit:
                return SearchWindow(low, high, found.candidates, found.missing, limit)
            kept = found.starts[min(enough, len(found.starts) - 1)] // SECOND
            if low < kept < high:
                low = kept
            elif limit >= self._max_limit:
                # So many start at the lowest second, or before it and reach into it.
                if high - low <= 1:
                    raise self._crowded(limit)
                low = (low + high) // 2
            limit *= 4

    def _crowded(self, limit: int) -> QueryUnsupported:
        return QueryUnsupported(
            where=self._http.name,
            expected=f"fewer than {limit} runs within one second",
            got="more",
            hint="name a workflow or a status, or raise query_frontend.search.max_result_limit",
        )

    def at_once(self, text: str, low: int, high: int, limit: int) -> SearchWindow | None:
        """All of a range when one search can tell it, with fewer traces than the limit; else None."""
        limit = min(limit, self._max_limit)
        if self._max_range is not None and high - low > self._max_range:
            return None
        found = self._search(text, low, high, limit)
        if found is None or found.traces >= limit:
            return None
        return SearchWindow(low, high, found.candidates, found.missing, limit)

    def _search(self, text: str, low: int, high: int, limit: int) -> SearchResult | None:
        """None when the server refused the range or limit, which is remembered."""
        parameters: dict[str, str | int] = {
            "q": text,
            "start": low,
            "end": max(high, low + 1),
            "limit": limit,
            "spss": self._spans_each(limit),
        }
        answer = self._http.get("/api/search", parameters, accept_statuses=(400, 422))
        if answer.status != 200:
            self._learn(answer)
            return None
        try:
            return read_search(answer.content)
        except (ValueError, RecursionError) as error:
            raise BackendRefused(
                where=self._http.name, expected="Tempo's search answer", got=str(error), hint="is this a Tempo?"
            ) from None

    def _spans_each(self, limit: int) -> int:
        """How many spans of a trace the answer may hold: the steps of usual runs, but no answer without end."""
        return max(1, min(self._max_spans, _MAX_ANSWERED // limit))

    def _learn(self, answer: Response) -> None:
        text = answer.text()
        refused = _RANGE_REFUSED.search(text)
        if refused is not None:
            hours, minutes, seconds = (int(part or 0) for part in refused.groups())
            allowed = hours * 3600 + minutes * 60 + seconds
            allowed -= min(3600, allowed // 10)
            if allowed > 1 and (self._max_range is None or allowed < self._max_range):
                self._max_range = allowed
                return
        refused = _LIMIT_REFUSED.search(text)
        if refused is not None and 1 < int(refused[1]) < self._max_limit:
            self._max_limit = int(refused[1])
            return
        refused = _SPANS_REFUSED.search(text)
        if refused is not None and 0 < int(refused[1]) < self._max_spans:
            self._max_spans = int(refused[1])
            return
        raise self._http.refused(answer)
