"""Lists of runs out of Jaeger's searches: windows of time, newest first, each searched completely.

A search takes a range of time and a depth, and returns traces in no dependable order. When it returns fewer traces than
the depth, these are all that have a span starting in the range; otherwise the range is split and its newer part is
searched first. The revision span of a run starts at the run's sort time, so the range with the sort time finds the run.
A run that another span or an older revision matched is dropped there, and found in the range with its own sort time.

Attributes are searched by API v3, or by the legacy API where v3 ignores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median_high
from typing import Final, Protocol

import msgspec

from runspan.backends.jaeger.response_cache import ResourceSpanCache, RevisionCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_legacy_traces, read_error
from runspan.backends.remote.client import RemoteClient
from runspan.codec.decode import RunSummary
from runspan.contracts import RunQuery
from runspan.errors import BackendError
from runspan.http.client import Response, ResponseTooLarge
from runspan.model.timestamps import MAX_NS

END: Final = MAX_NS // 1000 + 1
"""Microseconds since 1970: after the last that a span can have."""
WRONG_PATH: Final = "is this the address of Jaeger's query API, with its base path?"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# One search.


class DepthRefused(Exception):
    """The store does not search that deep: the memory storage refuses more than ``max_traces``."""


class SearchApi(Protocol):
    """One of the two search APIs."""

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        """Return the spans of at most ``depth`` complete traces.

        All traces that have a span of the service with these attributes which starts in ``lo <= microsecond < hi``
        match; and some others, since no store matches exactly that. Raise DepthRefused when the depth is too high.
        """
        ...


class V3Search:
    """Search by API v3, which compares attributes since Jaeger 2.19."""

    def __init__(self, http: RemoteClient, cache: ResourceSpanCache) -> None:
        self._http = http
        self._cache = cache

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        parameters: dict[str, str | int] = {
            "query.service_name": service,
            "query.start_time_min": _timestamp(lo),
            # Both ends are inclusive. One microsecond more than needed also finds what Badger omits from the last one:
            # trace ids that begin with ff.
            "query.start_time_max": _timestamp(hi),
            "query.search_depth": depth,
            # Without this Jaeger adjusts the traces, and its memory storage keeps the change.
            "query.raw_traces": "true",
        }
        if attributes:
            parameters["query.attributes"] = msgspec.json.encode(attributes).decode()
        response = self._http.get("/api/v3/traces", parameters, accept_statuses=(404, 500))
        if response.status == 404 and read_error(response.content) is not None:
            return []
        return _decode(self._http, response, self._cache.find)


class LegacySearch:
    """Search by the legacy API, which has microseconds only and was removed after Jaeger 2.20."""

    def __init__(self, http: RemoteClient) -> None:
        self._http = http

    def __call__(self, service: str, attributes: Mapping[str, str], lo: int, hi: int, depth: int) -> list[FoundSpan]:
        parameters: dict[str, str | int] = {
            "service": service,
            "start": lo,
            "end": min(hi, END - 1),
            "limit": depth,
            "raw": "true",
        }
        if attributes:
            parameters["tags"] = msgspec.json.encode(attributes).decode()
        response = self._http.get("/api/traces", parameters, accept_statuses=(500,))
        return _decode(self._http, response, find_legacy_traces)


def detect_search_api(http: RemoteClient, cache: ResourceSpanCache) -> SearchApi:
    """Return the search API of this Jaeger. cache: decodes the responses of API v3.

    Trace summaries and attributes in a search came with the same release; an API v3 without attributes would ignore
    them silently. A Jaeger with summaries refuses a request without times in JSON, and changes nothing in the store.
    """
    response = http.get("/api/v3/trace-summaries", accept_statuses=(400, 404))
    if response.status == 400 and read_error(response.content) is not None:
        return V3Search(http, cache)
    if response.status == 400:
        raise http.refused(response, WRONG_PATH)
    return LegacySearch(http)


def _decode(http: RemoteClient, response: Response, decode: Callable[[bytes], list[FoundSpan]]) -> list[FoundSpan]:
    if response.status == 500:
        raise _search_error(http, response)
    if response.status != 404:
        try:
            return decode(response.content)
        except MalformedResponse:
            pass
    raise http.refused(response, WRONG_PATH)


def _search_error(http: RemoteClient, response: Response) -> DepthRefused | BackendError:
    message = read_error(response.content)
    if message is not None and "search depth" in message:
        return DepthRefused(message)
    return http.refused(response, "Jaeger's log says why its storage failed")


def _timestamp(us: int) -> str:
    if us >= END:
        return "2262-04-11T23:47:16.854775807Z"
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# A list.

_FIRST_WIDTH: Final = 3_600_000_000
"""Microseconds of the first window without a hint: an hour. Later windows follow from what was found."""
_MIN_DEPTH: Final = 32
_MAX_GROWTH: Final = 64

Traces = Mapping[str, Sequence[FoundSpan]]
"""Spans by trace id."""
SearchRange = Callable[[int, int, int], Sequence[Traces]]
"""Search ``lo <= start < hi`` in microseconds with a depth; return the traces of each service."""


@dataclass(frozen=True, slots=True)
class DensityHint:
    """Where the runs of earlier lists like this one lie. It affects speed alone."""

    newest: int
    """The start of the newest run, microseconds since 1970."""
    gap: int | None = None
    """The average time between two runs, microseconds."""


class WindowedSearch:
    """The searches of one list. ``rows`` may be abandoned at any row.

    hint: where the runs likely are.
    max_depth: the deepest search that the store is known to accept, 0 when unknown.
    revisions: reads the revision spans.
    """

    def __init__(
        self,
        search_range: SearchRange,
        query: RunQuery,
        hint: DensityHint,
        max_depth: int = 0,
        revisions: RevisionCache | None = None,
    ) -> None:
        self._search_range = search_range
        self._revisions = revisions or RevisionCache()
        self._query = query
        self._hint = hint
        self.max_depth = max_depth
        depth = max(_MIN_DEPTH, 2 * (query.limit + 1))
        self._depth = min(depth, max_depth) if max_depth else depth

    def rows(self) -> Iterator[RunSummary]:
        """Yield the runs that meet the query, in its order, from its cursor on."""
        query, newest = self._query, self._hint.newest
        hi = END if query.cursor is None else min(query.cursor.time // 1000 + 1, END)
        lowest = 0 if query.since is None else max(query.since, 0) // 1000
        wanted = query.limit + 1
        width = _FIRST_WIDTH if self._hint.gap is None else self._hint.gap * (wanted + 1)
        while hi > lowest:
            top = max(min(hi, newest + 1), lowest + 1)
            stack = [(max(lowest, top - max(width, 1)), hi, 0)]
            while stack:
                lo, hi, level = stack.pop()
                traces, is_complete = self._search_window(lo, hi)
                if not is_complete:
                    middle = _split_point(lo, hi, level, traces)
                    stack += [(lo, middle, level + 1), (middle, hi, level + 1)]
                    continue
                rows = self._rows(traces, lo, hi)
                yield from rows
                wanted -= len(rows)
                width = int((min(hi, max(newest, lo + 1)) - lo) * self._growth(len(traces), len(rows), wanted))
            hi = lo

    def _growth(self, traces: int, rows: int, wanted: int) -> float:
        """Return how much wider the next window is, so that it likely holds the wanted rows below the depth."""
        growth = 0.6 * self._depth / max(traces, 0.01)
        if wanted > 0:
            growth = min(growth, (1.2 * wanted + 2) / max(rows, 0.01))
        return min(max(growth, 1 / _MAX_GROWTH), _MAX_GROWTH)

    def _search_window(self, lo: int, hi: int) -> tuple[Traces, bool]:
        """Return traces of a range, and whether they are all. A range of one microsecond is always complete."""
        while True:
            try:
                traces, is_complete = self._search(lo, hi, self._depth)
            except DepthRefused:
                if self._depth == 1:
                    raise
                self._depth = self.max_depth = self._depth // 2
                continue
            except ResponseTooLarge:
                if self._depth == 1:
                    raise
                self._depth //= 2
                continue
            if not is_complete and hi - lo == 1:
                return self._search_deeper(lo, hi), True
            return traces, is_complete

    def _search_deeper(self, lo: int, hi: int) -> Traces:
        """Return all traces of a range that cannot be split.

        The memory storage refuses a depth above the number of traces that it can hold. When it returns even that many,
        they are all that it holds.
        """
        accepted, refused = self._depth, 0
        while True:
            depth = (accepted + refused) // 2 if refused else 2 * accepted
            try:
                traces, is_complete = self._search(lo, hi, depth)
            except DepthRefused:
                refused = depth
                if refused - accepted == 1:
                    return self._search(lo, hi, accepted)[0]
                continue
            if is_complete or (refused and refused - depth == 1):
                return traces
            accepted = depth

    def _search(self, lo: int, hi: int, depth: int) -> tuple[Traces, bool]:
        results = self._search_range(lo, hi, depth)
        traces: dict[str, Sequence[FoundSpan]] = {}
        for result in results:
            traces.update(result)
        return traces, all(len(result) < depth for result in results)

    def _rows(self, traces: Traces, lo: int, hi: int) -> list[RunSummary]:
        rows = [row for spans in traces.values() if (row := self._row(spans, lo, hi)) is not None]
        return sorted(rows, key=lambda row: (row.time, row.run_id), reverse=True)

    def _row(self, spans: Sequence[FoundSpan], lo: int, hi: int) -> RunSummary | None:
        """Return the run of a trace when it belongs to the list and to this window."""
        query = self._query
        run = self._revisions.newest(spans)
        if run is None:
            return None
        time = run.time
        if not lo <= time // 1000 < hi or run.tenant != query.tenant:
            return None
        if not query.matches(run.workflow_id, run.status, run.revision, run.time):
            return None
        if query.since is not None and time < query.since:
            return None
        if query.cursor is not None and (time, run.run_id) >= (query.cursor.time, query.cursor.run_id):
            return None
        return run


def _split_point(lo: int, hi: int, level: int, traces: Traces) -> int:
    """Split at the median start of the revision spans found, which isolates dense regions.

    Every third level bisects the range, so that the recursion terminates.
    """
    starts = [
        found.start
        for spans in traces.values()
        for found in spans
        if found.may_be_revision_span and lo < found.start < hi
    ]
    if starts and level % 3 < 2:
        return median_high(starts)
    return lo + (hi - lo) // 2
