"""Lists of runs out of Jaeger's searches: windows of time, newest first, each searched completely.

A search takes a range of time and a depth, and returns traces in no dependable order. When it returns fewer traces than
the depth, these are all that have a span starting in the range; otherwise only its newer part is searched, and so on.
The revision span of a run starts at the run's sort time, so the range with the sort time finds the run. A run that
another span or an older revision matched is dropped there, and found in the range with its own sort time. An item of
the list is verified by its own digest, without the steps, unless the list depends on steps or payloads: the response
has them.

Jaeger compares attributes with whole values only. A list by anything else reads all runs of its time, and ends early
when that takes long: its cursor is where it came to.

Attributes are searched by API v3, or by the legacy API where v3 ignores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median_high
from typing import Final

import msgspec

from runspan.backends.jaeger.response_cache import ResourceSpanCache
from runspan.backends.jaeger.responses import FoundSpan, MalformedResponse, find_legacy_traces, read_error
from runspan.backends.remote.client import Parameters, RemoteClient
from runspan.backends.remote.filters import match_trace, needs_document
from runspan.codec.decode import RunSummary
from runspan.codec.fields import DIGEST, REVISION, RUN_ID, TENANT
from runspan.codec.full_text import Match
from runspan.contracts import RunQuery, conflict_note, damaged_note, older_revision_note
from runspan.errors import BackendRefused, QueryUnsupported, TraceIncomplete
from runspan.http.client import Response, ResponseTooLarge
from runspan.model.timestamps import MAX_NS

END: Final = MAX_NS // 1000 + 1
"""Microseconds since 1970: after the last that a span can have."""
WRONG_PATH: Final = "is this the address of Jaeger's query API, with its base path?"
STORAGE_FAILED: Final = "Jaeger's log says why its storage failed"
_PANICS: Final = 3
"""How many requests in a row may meet a panic of Jaeger."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# One search.


class DepthRefused(QueryUnsupported):
    """The store does not search that deep: the memory storage refuses more than ``max_traces``."""


SearchApi = Callable[[str, Mapping[str, str], int, int, int, int], list[FoundSpan]]
"""One of the two search APIs: called with service, attributes, shortest, lo, hi and depth.

It returns the spans of at most ``depth`` complete traces. All traces that have a span of the service with these
attributes, ``shortest`` microseconds long or longer, which starts in ``lo <= microsecond < hi`` match; and some others,
since no store matches exactly that. It raises DepthRefused when the depth is too high, and BackendRefused when the
store fails.
"""


def _search_v3(
    http: RemoteClient,
    cache: ResourceSpanCache,
    service: str,
    attributes: Mapping[str, str],
    shortest: int,
    lo: int,
    hi: int,
    depth: int,
) -> list[FoundSpan]:
    """Search by API v3, which compares attributes since Jaeger 2.19."""
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
    if shortest:
        parameters["query.duration_min"] = f"{shortest}us"
    if attributes:
        parameters["query.attributes"] = msgspec.json.encode(attributes).decode()
    response = get_stored(http, "/api/v3/traces", parameters)
    if response.status == 404 and read_error(response.content) is not None:
        return []
    return _decode(http, response, cache.find)


def _search_legacy(
    http: RemoteClient, service: str, attributes: Mapping[str, str], shortest: int, lo: int, hi: int, depth: int
) -> list[FoundSpan]:
    """Search by the legacy API, which has microseconds only and was removed after Jaeger 2.20."""
    parameters: dict[str, str | int] = {
        "service": service,
        "start": lo,
        "end": min(hi, END - 1),
        "limit": depth,
        "raw": "true",
    }
    if shortest:
        parameters["minDuration"] = f"{shortest}us"
    if attributes:
        parameters["tags"] = msgspec.json.encode(attributes).decode()
    response = get_stored(http, "/api/traces", parameters)
    return _decode(http, response, find_legacy_traces)


def get_stored(http: RemoteClient, path: str, parameters: Parameters) -> Response:
    """Return the response to a request for stored spans, also with HTTP 404 or 500.

    Jaeger's memory storage copies traces without its lock, and panics when one is written meanwhile: HTTP 500 with an
    empty body, which the next request need not meet.
    """
    for _ in range(_PANICS):
        response = http.get(path, parameters, accept_statuses=(404, 500))
        if response.status != 500 or response.content:
            break
    return response


def detect_search_api(http: RemoteClient, cache: ResourceSpanCache) -> SearchApi:
    """Return the search API of this Jaeger. cache: decodes the responses of API v3.

    Trace summaries and attributes in a search came with the same release; an API v3 without attributes would ignore
    them silently. A Jaeger with summaries refuses a request without times in JSON, and changes nothing in the store.
    """
    response = http.get("/api/v3/trace-summaries", accept_statuses=(400, 404))
    if response.status == 400 and read_error(response.content) is not None:
        return partial(_search_v3, http, cache)
    if response.status == 400:
        raise http.refused(response, WRONG_PATH)
    return partial(_search_legacy, http)


def _decode(http: RemoteClient, response: Response, decode: Callable[[bytes], list[FoundSpan]]) -> list[FoundSpan]:
    if response.status == 500:
        message = read_error(response.content)
        if message is not None and "search depth" in message:
            raise DepthRefused(
                where=http.name,
                expected="a store that searches for more than one trace",
                got=message,
                hint="raise max_traces of Jaeger's memory storage",
            )
        raise http.refused(response, STORAGE_FAILED)
    if response.status != 404:
        try:
            return decode(response.content)
        except MalformedResponse:
            pass
    raise http.refused(response, WRONG_PATH)


def _timestamp(us: int) -> str:
    if us >= END:
        return "2262-04-11T23:47:16.854775807Z"
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# A list.

DAY: Final = 86_400_000_000
"""Microseconds."""
LIMITED_WIDTH: Final = 100 * DAY
"""The widest range that is searched at once in a store that refuses wide ones. Elasticsearch and OpenSearch have an
index for each day, and refuse a URL with the names of more than about 170."""
LOOKBACK_DAYS: Final = 400
"""How far back a list reaches in such a store."""
_FIRST_WIDTH: Final = 3_600_000_000
"""Microseconds of the first window without a hint: an hour. Later windows follow from what was found."""
_SAMPLE_DEPTH: Final = 8
"""Traces of a search without a hint: where these lie shows how wide a window has the runs of a page."""
_MIN_DEPTH: Final = 32
_SCAN_DEPTH: Final = 1000
"""Traces of a search where most of them are not in the list."""
_MAX_GROWTH: Final = 64

Traces = Mapping[str, Sequence[FoundSpan]]
"""Spans by trace id."""
SearchRange = Callable[[int, int, int], Sequence[Traces]]
"""Search ``lo <= start < hi`` in microseconds with a depth; return the traces of each of several searches."""
LONG_RUN: Final = 3_600_000_000
"""Microseconds. Of the runs in a list by the time of the end, those that started so long before that time are at least
so long. Jaeger finds them by the length of the run span, whenever they started."""
_LONG_RUN_WIDTH: Final = 7 * DAY
"""Of the first window of such runs, of which there are few."""


@dataclass(frozen=True, slots=True)
class DensityHint:
    """Where the runs of earlier lists like this one lie. It affects speed alone."""

    newest: int
    """The start of the newest run, microseconds since 1970."""
    gap: int | None = None
    """The average time between two runs, microseconds."""


@dataclass(slots=True)
class StoreLimits:
    """Which searches a store accepts, as far as earlier ones showed it."""

    max_depth: int = 0
    """Traces; 0 when unknown."""
    max_width: int | None = None
    """Microseconds of a range; None when the store accepts every range, also one in the future."""


class WindowedSearch:
    """The searches of one list. ``rows`` may be abandoned at any row.

    hint: where the runs likely are.
    limits: what the store accepts; updated.
    now: microseconds since 1970, from which a store that refuses wide ranges is searched back.
    is_late: whether the list is to end with what was found; None for a list of what the searches find.
    search_long_runs: searches for runs of the length ``LONG_RUN`` or longer, and runs that changed after their end.
    """

    def __init__(
        self,
        search_range: SearchRange,
        query: RunQuery,
        hint: DensityHint,
        limits: StoreLimits,
        now: int,
        is_late: Callable[[], bool] | None = None,
        search_long_runs: SearchRange | None = None,
    ) -> None:
        self._search_range = search_range
        self._search_long_runs = search_long_runs or search_range
        self._query = query
        self._before = query.before
        self._hint = hint
        self._limits = limits
        self._now = now
        self._is_late = is_late or (lambda: False)
        self._needs_document = needs_document(query)
        self.ended_at: int | None = None
        """Where a list that ended early came to: it has all runs from then on, nanoseconds since 1970."""
        self.matches: dict[str, Match] = {}
        """Where runs contain the text of the query, by their id; of more runs than were asked for."""
        self.notes: dict[tuple[int, str], None] = {}
        """What was found and cannot be listed as it is, once each: time in nanoseconds since 1970, and text."""
        self._is_sample = hint.gap is None
        depth = max(_MIN_DEPTH, 2 * (query.limit + 1)) if is_late is None else _SCAN_DEPTH
        self._depth = min(depth, limits.max_depth) if limits.max_depth else depth

    def rows(self) -> Iterator[RunSummary]:
        """Yield the runs that meet the query, in its order, from its cursor on."""
        query, newest = self._query, self._hint.newest
        hi = END if self._before is None else min(self._before[0] // 1000 + 1, END)
        since = lowest = 0 if query.since is None else max(query.since, 0) // 1000
        if self._limits.max_width is not None:
            hi, lowest = min(hi, self._now + DAY), max(since, self._now - LOOKBACK_DAYS * DAY)
        wanted = query.limit + 1
        width = _FIRST_WIDTH if self._hint.gap is None else self._hint.gap * (wanted + 1)
        long_runs = None if query.ended_since is None else query.ended_since // 1000 - LONG_RUN
        while hi > lowest:
            if long_runs is not None and hi <= long_runs:
                self._search_range, self._is_sample = self._search_long_runs, False
                width, long_runs = _LONG_RUN_WIDTH, None
            top = max(min(hi, newest + 1), lowest + 1)
            lo = max(lowest, top - max(width, 1), long_runs or 0)
            traces, lo = self._newest_part(lo, hi, wanted)
            rows = self._rows(traces, lo, hi)
            yield from rows
            wanted -= len(rows)
            # An empty stretch above the newest row says nothing about the density below it.
            top = rows[0].time // 1000 + 1 if rows else max(newest, lo + 1)
            width = int((min(hi, top) - lo) * self._growth(len(traces), len(rows), wanted))
            hi = lo
            # Each page must end before the one that it follows. Time without runs is searched in a few windows.
            is_further = self._before is None or hi * 1000 < self._before[0]
            if traces and hi > lowest and is_further and self._is_late():
                self.ended_at = hi * 1000
                return
        if lowest > since:
            self._note(0, f"runs that started more than {LOOKBACK_DAYS} days ago were not searched")

    def _newest_part(self, lo: int, hi: int, wanted: int) -> tuple[Traces, int]:
        """Return all traces of the newest part of a range, and where it begins."""
        level = 0
        while True:
            max_width = self._limits.max_width
            if max_width is not None:
                lo = max(lo, hi - max_width)
            try:
                traces, is_complete = self._search_window(lo, hi)
            except BackendRefused:
                if max_width is None or hi - lo <= DAY:
                    raise
                self._limits.max_width = (hi - lo) // 2  # the names of its indices are long
                continue
            if is_complete:
                return traces, lo
            middle = _page_start(lo, hi, traces, wanted) if self._is_sample else None
            self._is_sample = False
            lo = _split_point(lo, hi, level, traces) if middle is None else middle
            level += 1

    def _growth(self, traces: int, rows: int, wanted: int) -> float:
        """Return how much wider the next window is, so that it likely holds the wanted rows below the depth."""
        growth = 0.6 * self._depth / max(traces, 0.01)
        if wanted > 0:
            growth = min(growth, (1.2 * wanted + 2) / max(rows, 0.01))
        return min(max(growth, 1 / _MAX_GROWTH), _MAX_GROWTH)

    def _search_window(self, lo: int, hi: int) -> tuple[Traces, bool]:
        """Return traces of a range, and whether they are all. A range of one microsecond is always complete."""
        while True:
            depth = min(_SAMPLE_DEPTH, self._depth) if self._is_sample and hi - lo > 1 else self._depth
            try:
                traces, is_complete = self._search(lo, hi, depth)
            except (DepthRefused, ResponseTooLarge) as error:
                if self._depth == 1:
                    raise
                self._depth //= 2
                if isinstance(error, DepthRefused):
                    self._limits.max_depth = self._depth
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
        items: list[RunSummary] = []
        damaged: list[tuple[FoundSpan, tuple[str, ...]]] = []
        for found in spans:
            try:
                item = found.summary()
            except TraceIncomplete as error:
                damaged.append((found, error.missing))
                continue
            if item is not None:
                items.append(item)
        run = max(items, key=_rank, default=None)
        if run is None:
            for found, _ in damaged:
                attributes = found.span().attributes()
                if lo <= found.start < hi and attributes.get(TENANT, "") == self._query.tenant:
                    run_id = attributes.get(RUN_ID, f"of trace {found.trace_id}")
                    self._note(found.start * 1000, damaged_note(str(run_id)))
            return None
        if not (lo <= run.time // 1000 < hi and self._belongs(run)):
            return None
        if self._needs_document:
            match = match_trace(self._query, run, [found.span() for found in spans])
            if match.unproved:
                self._note(run.time, match.unproved)
            if not match.is_match:
                return None
            if match.text is not None:
                self.matches[run.run_id] = match.text
        for found, missing in damaged:
            attributes = found.span().attributes()
            revision, digest = attributes.get(REVISION), attributes.get(DIGEST)
            if type(revision) is int and (revision, str(digest)) > _rank(run):
                self._note(run.time, older_revision_note(run.run_id, missing))
        others = {item.digest for item in items if item.revision == run.revision} - {run.digest}
        if others:
            self._note(run.time, conflict_note(run.run_id, sorted(others)))
        return run

    def _belongs(self, run: RunSummary) -> bool:
        """Return whether a run meets the query and comes after its cursor."""
        query = self._query
        if run.tenant != query.tenant or not query.matches(run):
            return False
        if query.since is not None and run.time < query.since:
            return False
        return self._before is None or (run.time, run.run_id) < self._before

    def _note(self, time: int, text: str) -> None:
        self.notes[time, text] = None


def _rank(run: RunSummary) -> tuple[int, str]:
    """Return the order of the revisions of one run: that of ``verify_run``."""
    return run.revision, run.digest


def _starts(lo: int, hi: int, traces: Traces) -> list[int]:
    """Return the starts of the run and revision spans inside a range."""
    return [
        found.start
        for spans in traces.values()
        for found in spans
        if found.may_be_revision_span and lo < found.start < hi
    ]


def _page_start(lo: int, hi: int, traces: Traces, wanted: int) -> int | None:
    """Return where a window begins that likely has the wanted runs, by the density of a sample; None for too few."""
    starts = sorted({*_starts(lo, hi, traces)})
    if len(starts) < _SAMPLE_DEPTH // 2:
        return None
    gap = (starts[-1] - starts[0]) // (len(starts) - 1)
    return max(lo + 1, starts[-1] - gap * (wanted + wanted // 4 + 1))


def _split_point(lo: int, hi: int, level: int, traces: Traces) -> int:
    """Split at the median start of the revision spans found, which isolates dense regions.

    Every third level bisects the range, so that the recursion terminates.
    """
    starts = _starts(lo, hi, traces)
    if starts and level % 3 < 2:
        return median_high(starts)
    return lo + (hi - lo) // 2
