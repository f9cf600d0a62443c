"""A list out of searches that return traces in no dependable order: windows of time, newest first, each read whole.

A search takes a range of time and a depth. When it returns fewer traces than the depth, it returned all that have a
span starting in the range; when it returns as many, the range is split and its newer part asked first. The head span
of a run starts at the run's sort time, so the range that holds the sort time finds the run. Whoever is found by another
span, or by an older revision, is dropped there and found in its own place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Final

from runspan.backends.jaeger.queries import END, DepthRefused
from runspan.backends.jaeger.response_cache import RevisionCache
from runspan.backends.jaeger.responses import FoundSpan
from runspan.contracts import RunQuery
from runspan.http.client import ResponseTooLarge

_FIRST_WIDTH: Final = 3_600_000_000
"""Microseconds of the first window when nothing is known: an hour. Later windows follow from what was found."""
_MIN_DEPTH: Final = 32
_GROWTH: Final = 64

Traces = Mapping[str, Sequence[FoundSpan]]
Ask = Callable[[int, int, int], Sequence[Traces]]
"""Traces by id for ``lo <= start < hi`` in microseconds and a depth, one mapping for each service that was asked."""


@dataclass(frozen=True, slots=True)
class DensityHint:
    """What earlier lists like this one learnt about where their runs lie, in microseconds; it is about speed alone.

    newest: the start of the newest run. gap: the average time between two.
    """

    newest: int
    gap: int | None = None


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A run that belongs to a list."""

    time: int
    run_id: str
    summary: bytes

    @property
    def place(self) -> tuple[int, str]:
        return self.time, self.run_id


class WindowedSearch:
    """One list being walked. ``rows`` may be left at any row.

    hint: where the runs likely are. max_depth: 0, or the deepest search that the store is known to take. headings:
    reads the runs' heads, and knows those of earlier lists.
    """

    def __init__(
        self, ask: Ask, query: RunQuery, hint: DensityHint, max_depth: int = 0, headings: RevisionCache | None = None
    ) -> None:
        self._ask = ask
        self._headings = headings or RevisionCache()
        self._query = query
        self._hint = hint
        self.max_depth = max_depth
        depth = max(_MIN_DEPTH, 2 * (query.limit + 1))
        self._depth = min(depth, max_depth) if max_depth else depth

    def rows(self) -> Iterator[TraceRow]:
        """The runs that meet the query, in its order, from its cursor on."""
        query, newest = self._query, self._hint.newest
        hi = END if query.cursor is None else min(query.cursor.time // 1000 + 1, END)
        last = 0 if query.since is None else max(query.since, 0) // 1000
        wanted = query.limit + 1
        width = _FIRST_WIDTH if self._hint.gap is None else self._hint.gap * (wanted + 1)
        while hi > last:
            top = max(min(hi, newest + 1), last + 1)
            stack = [(max(last, top - max(width, 1)), hi, 0)]
            while stack:
                lo, hi, level = stack.pop()
                traces, whole = self._window(lo, hi)
                if not whole:
                    middle = _middle(lo, hi, level, traces)
                    stack += [(lo, middle, level + 1), (middle, hi, level + 1)]
                    continue
                rows = self._rows(traces, lo, hi)
                yield from rows
                wanted -= len(rows)
                width = int((min(hi, max(newest, lo + 1)) - lo) * self._growth(len(traces), len(rows), wanted))
            hi = lo

    def _growth(self, traces: int, rows: int, wanted: int) -> float:
        """How much wider the next window is, so that it likely holds what is wanted and does not reach the depth."""
        growth = 0.6 * self._depth / max(traces, 0.01)
        if wanted > 0:
            growth = min(growth, (1.2 * wanted + 2) / max(rows, 0.01))
        return min(max(growth, 1 / _GROWTH), _GROWTH)

    def _window(self, lo: int, hi: int) -> tuple[Traces, bool]:
        """The traces of a range, and whether these are all. One microsecond is always read whole."""
        while True:
            try:
                traces, whole = self._search(lo, hi, self._depth)
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
            if not whole and hi - lo == 1:
                return self._deeper(lo, hi), True
            return traces, whole

    def _deeper(self, lo: int, hi: int) -> Traces:
        """All traces of a range that cannot be split.

        A memory store refuses a depth above the number of traces that it can hold. When even that many are found, they
        are all that it has.
        """
        reached, refused = self._depth, 0
        while True:
            depth = (reached + refused) // 2 if refused else 2 * reached
            try:
                traces, whole = self._search(lo, hi, depth)
            except DepthRefused:
                refused = depth
                if refused - reached == 1:
                    return self._search(lo, hi, reached)[0]
                continue
            if whole or (refused and refused - depth == 1):
                return traces
            reached = depth

    def _search(self, lo: int, hi: int, depth: int) -> tuple[Traces, bool]:
        answers = self._ask(lo, hi, depth)
        found: dict[str, Sequence[FoundSpan]] = {}
        for answer in answers:
            found.update(answer)
        return found, all(len(answer) < depth for answer in answers)

    def _rows(self, traces: Traces, lo: int, hi: int) -> list[TraceRow]:
        rows = [row for spans in traces.values() if (row := self._row(spans, lo, hi)) is not None]
        return sorted(rows, key=lambda row: row.place, reverse=True)

    def _row(self, spans: Sequence[FoundSpan], lo: int, hi: int) -> TraceRow | None:
        """The run of a trace when it belongs to the list and to this window."""
        query = self._query
        run = self._headings.get(spans)
        if run is None:
            return None
        time = run.time
        if not lo <= time // 1000 < hi or run.tenant != query.tenant:
            return None
        if not query.admits(run.workflow_id, run.status, run.revision):
            return None
        if query.since is not None and time < query.since:
            return None
        if query.cursor is not None and (time, run.run_id) >= (query.cursor.time, query.cursor.run_id):
            return None
        return TraceRow(time, run.run_id, run.summary)


def _middle(lo: int, hi: int, level: int, traces: Traces) -> int:
    """Where to split a range: mostly at the middle of the runs found, which finds crowds at once, and every third time
    at the middle of the range, which comes to an end whatever was found."""
    starts = [found.start for spans in traces.values() for found in spans if found.is_head and lo < found.start < hi]
    if starts and level % 3 < 2:
        return median_high(starts)
    return lo + (hi - lo) // 2
