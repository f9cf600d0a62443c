"""Lists of runs out of Jaeger's searches: windows of time, newest first, each searched completely.

A search takes a range of time and a depth, and returns traces in no dependable order. When it returns fewer traces than
the depth, these are all that have a span starting in the range; otherwise only its newer part is searched, and so on.
The revision span of a run starts at the run's sort time, so the range with the sort time finds the run. A run that
another span or an older revision matched is dropped there, and found in the range with its own sort time. An item of
the list is verified by its own digest, without the steps, unless the list depends on steps or payloads: the response
has them.

Jaeger compares attributes with whole values only. A list by anything else reads all runs of its time, and ends early
when that takes long: its cursor is where it came to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import Final

from runspan.backends.jaeger.responses import FoundSpan
from runspan.backends.jaeger.search_api import DAY, ELASTIC_START, END, DepthRefused, StoreLimits
from runspan.backends.remote.config import LOOKBACK_DAYS
from runspan.backends.remote.filters import match_trace, needs_document
from runspan.codec.decode import RunSummary
from runspan.codec.fields import DIGEST, REVISION, RUN_ID, TENANT
from runspan.codec.full_text import Match
from runspan.contracts import RunQuery, conflict_note, damaged_note, older_revision_note
from runspan.errors import BackendRefused, TraceIncomplete
from runspan.http.client import ResponseTooLarge

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
ReadTraces = Callable[[Sequence[str]], Iterable[Sequence[FoundSpan]]]
"""Return the spans of each of several traces; none for a trace that is not found."""
LONG_RUN: Final = 3_600_000_000
"""Microseconds. Of the runs in a list by the time of the end, those that started so long before that time are at least
so long. Jaeger finds them by the length of the run span, whenever they started."""
_OUTSIDE_NOTE: Final = (
    "runs that started outside max_span_age of Jaeger's storage are listed as they were near their start: "
    "later revisions may be missing"
)
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
class _Row:
    """What the spans of a trace say of a list."""

    run: RunSummary | None = None
    """The run, if it is in the list."""
    match: Match | None = None
    notes: dict[tuple[int, str], None] = field(default_factory=dict)
    """As those of ``WindowedSearch``."""

    def note(self, time: int, text: str) -> None:
        self.notes[time, text] = None


class WindowedSearch:
    """The searches of one list. ``rows`` may be abandoned at any row.

    hint: where the runs likely are.
    limits: what the store accepts; updated.
    now: microseconds since 1970, from which a store that refuses wide ranges is searched back.
    is_late: whether the list is to end with what was found; None for a list of what the searches find.
    search_long_runs: searches for runs of the length ``LONG_RUN`` or longer, and runs that changed after their end.
    read_traces: reads traces by their ids, in hex, if a search does not return whole traces: the newest revision of a
    run may lie far from the one that was found.
    lookback_days: how far a store that refuses wide ranges is searched back.
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
        read_traces: ReadTraces | None = None,
        lookback_days: int = LOOKBACK_DAYS,
    ) -> None:
        self._search_range = search_range
        self._search_long_runs = search_long_runs or search_range
        self._read_traces = read_traces
        self._lookback_days = lookback_days
        self._query = query
        self._before = query.before
        self._hint = hint
        self._limits = limits
        self._now = now
        self._is_late = is_late or (lambda: False)
        self.ended_at: int | None = None
        """Where a list that ended early came to: it has all runs from then on, nanoseconds since 1970."""
        self.matches: dict[str, Match] = {}
        """Where runs contain the text of the query, by their id; of more runs than were asked for."""
        self.notes: dict[tuple[int, str], None] = {}
        """What was found and cannot be listed as it is, once each: time in nanoseconds since 1970, and text."""
        self._wanted = query.limit + 1
        self._is_sample = hint.gap is None
        depth = max(_MIN_DEPTH, 2 * (query.limit + 1)) if is_late is None else _SCAN_DEPTH
        self._depth = min(depth, limits.max_depth) if limits.max_depth else depth

    def rows(self) -> Iterator[RunSummary]:
        """Yield the runs that meet the query, in its order, from its cursor on."""
        query = self._query
        hi = END if self._before is None else min(self._before[0] // 1000 + 1, END)
        since = 0 if query.since is None else max(query.since, 0) // 1000
        latest, earliest, limit = END, 0, ""
        if self._limits.is_elastic:
            earliest, limit = ELASTIC_START, "before 1971"
        if self._limits.max_width is not None:
            latest, earliest = self._now + DAY, self._now - self._lookback_days * DAY
            limit = f"more than {self._lookback_days} days ago"
        if since >= latest:
            self._note(END * 1000, "runs that start later than a day from now were not searched")
        yield from self._rows_of(max(since, earliest), min(hi, latest))
        if since < earliest and self.ended_at is None:
            self._note(0, f"runs that started {limit} were not searched")

    def _rows_of(self, lowest: int, hi: int) -> Iterator[RunSummary]:
        """Yield the runs of a range, newest first, until the page is full or the list is late."""
        newest = self._hint.newest
        width = _FIRST_WIDTH if self._hint.gap is None else self._hint.gap * (self._wanted + 1)
        long_runs = None if self._query.ended_since is None else self._query.ended_since // 1000 - LONG_RUN
        while hi > lowest:
            if long_runs is not None and hi <= long_runs:
                self._search_range, self._is_sample = self._search_long_runs, False
                width, long_runs = _LONG_RUN_WIDTH, None
            top = max(min(hi, newest + 1), lowest + 1)
            lo = max(lowest, top - max(width, 1), long_runs or 0)
            traces, lo = self._newest_part(lo, hi, self._wanted)
            rows = self._rows(traces, lo, hi)
            yield from rows
            self._wanted -= len(rows)
            # An empty stretch above the newest row says nothing about the density below it.
            top = rows[0].time // 1000 + 1 if rows else max(newest, lo + 1)
            width = int((min(hi, top) - lo) * self._growth(len(traces), len(rows), self._wanted))
            hi = lo
            # Each page must end before the one that it follows. Time without runs is searched in a few windows.
            is_further = self._before is None or hi * 1000 < self._before[0]
            if traces and hi > lowest and is_further and self._is_late():
                self.ended_at = hi * 1000
                return

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
        """Return the runs of these traces that belong to the list and to this window, newest first."""
        rows = {trace_id: self._read_row(spans, lo, hi) for trace_id, spans in traces.items()}
        if self._read_traces is not None:
            doubtful = [trace_id for trace_id, row in rows.items() if row.run is not None or row.notes]
            for trace_id, whole in zip(doubtful, self._read_traces(doubtful), strict=True):
                rows[trace_id] = self._read_row(self._joined(whole, traces[trace_id]), lo, hi)
        for row in rows.values():
            self.notes |= row.notes
        self.matches |= {row.run.run_id: row.match for row in rows.values() if row.run is not None and row.match}
        runs = [row.run for row in rows.values() if row.run is not None]
        return sorted(runs, key=lambda run: (run.time, run.run_id), reverse=True)

    def _joined(self, whole: Sequence[FoundSpan], found: Sequence[FoundSpan]) -> list[FoundSpan]:
        """Return the spans of a trace as it was read by its id, and those that only the search found."""
        by_id = {span.span_id for span in whole}
        others = [span for span in found if span.span_id not in by_id]
        if others:
            self._note(0, _OUTSIDE_NOTE)
        return [*whole, *others]

    def _read_row(self, spans: Sequence[FoundSpan], lo: int, hi: int) -> _Row:
        """Return the run as these spans show it."""
        row = _Row()
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
                    row.note(found.start * 1000, damaged_note(str(run_id)))
            return row
        if not (lo <= run.time // 1000 < hi and self._belongs(run)):
            return row
        if needs_document(self._query, run):
            match = match_trace(self._query, run, [found.span() for found in spans])
            if match.unproved:
                row.note(run.time, match.unproved)
            if not match.is_match:
                return row
            row.match = match.text
        for found, missing in damaged:
            attributes = found.span().attributes()
            revision, digest = attributes.get(REVISION), attributes.get(DIGEST)
            if type(revision) is int and (revision, str(digest)) > _rank(run):
                row.note(run.time, older_revision_note(run.run_id, missing))
        others = {item.digest for item in items if item.revision == run.revision} - {run.digest}
        if others:
            row.note(run.time, conflict_note(run.run_id, sorted(others)))
        row.run = run
        return row

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
