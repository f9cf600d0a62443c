"""Lists out of a simulated store that returns traces in the worst order: windows, splits and depth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.harness import MS, SECOND, T0, make_run, running
from runspan import encode
from runspan.backends.jaeger.responses import FoundSpan
from runspan.backends.jaeger.search import (
    DensityHint,
    SearchRange,
    WindowedSearch,
)
from runspan.backends.jaeger.search_api import DAY, END, LIMITED_WIDTH, DepthRefused, StoreLimits
from runspan.backends.remote.config import LOOKBACK_DAYS
from runspan.codec.fields import DIGEST
from runspan.contracts import Cursor, RunQuery
from runspan.errors import BackendRefused
from runspan.model.document import Run
from runspan.model.span import Span

Traces = dict[str, list[FoundSpan]]


@dataclass(frozen=True)
class DecodedSource:
    """A span that is decoded already."""

    span: Span

    def to_span(self) -> Span:
        return self.span


def found(span: Span) -> FoundSpan:
    is_revision_span = DIGEST in span.attributes()
    source = DecodedSource(span)
    return FoundSpan(span.trace_id.hex(), span.span_id.hex(), span.start // 1000, is_revision_span, source)


def windowed(
    store: SearchRange, query: RunQuery, hint: DensityHint, limits: StoreLimits | None = None
) -> WindowedSearch:
    """Return the searches of a list at ``T0``."""
    return WindowedSearch(store, query, hint, limits or StoreLimits(), T0 // 1000)


class Store:
    """Complete traces by the start of any span, at most ``depth``, chosen by ``order``; refuses above ``max_depth``."""

    def __init__(self, runs: Sequence[Run], order: Callable[[list[str]], None], max_depth: int = 10_000) -> None:
        self.traces: Traces = {}
        for run in runs:
            for span in encode(run, observed_at=T0):
                self.traces.setdefault(span.trace_id.hex(), []).append(found(span))
        self.order = order
        self.max_depth = max_depth
        self.searches = 0

    def __call__(self, lo: int, hi: int, depth: int) -> list[Traces]:
        self.searches += 1
        if depth > self.max_depth:
            raise DepthRefused
        within = [name for name, spans in self.traces.items() if any(lo <= span.start <= hi for span in spans)]
        self.order(within)
        return [{name: self.traces[name] for name in within[:depth]}]


def listed(store: Store, query: RunQuery, hint: DensityHint) -> list[str]:
    """Return the run ids of all pages."""
    ids: list[str] = []
    while True:
        rows = list(islice(windowed(store, query, hint).rows(), query.limit + 1))
        ids += [row.run_id for row in rows[: query.limit]]
        if len(rows) <= query.limit:
            return ids
        last = rows[query.limit - 1]
        query = RunQuery(limit=query.limit, since=query.since, cursor=Cursor(last.time, last.run_id))


def newest_first(runs: Sequence[tuple[int, str]]) -> list[str]:
    return [run_id for _, run_id in sorted(runs, reverse=True)]


ORDERS: dict[str, Callable[[list[str]], None]] = {
    "as sent": lambda names: None,
    "last sent first": lambda names: names.reverse(),
    "shuffled": lambda names: random.Random(len(names)).shuffle(names),
}
_SPREADS = st.sampled_from([1, 1000, MS, SECOND, 3600 * SECOND, 24 * 3600 * SECOND])


@given(
    starts=st.lists(st.tuples(st.integers(0, 12), _SPREADS), max_size=90),
    order=st.sampled_from(sorted(ORDERS)),
    limit=st.sampled_from([1, 3, 20]),
    hint=st.builds(DensityHint, st.integers(0, 2 * T0 // 1000), st.none() | st.integers(0, 10**12)),
    max_depth=st.sampled_from([95, 10_000]),
)
def test_any_store_is_listed_completely_and_in_order(
    starts: list[tuple[int, int]], order: str, limit: int, hint: DensityHint, max_depth: int
) -> None:
    """Pages hold every run once, newest first, wherever the runs lie and whichever traces the store returns."""
    placed = [(T0 + steps * spread // 1000 * 1000 // MS * MS, f"r{n}") for n, (steps, spread) in enumerate(starts)]
    store = Store([make_run(run_id, at) for at, run_id in placed], ORDERS[order], max_depth)
    assert listed(store, RunQuery(limit=limit), hint) == newest_first(placed)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("max_depth", [299, 300, 301, 10_000])
def test_hundreds_of_runs_in_one_microsecond(order: str, max_depth: int) -> None:
    """A range that cannot be split is searched deeper, up to what the store can hold and so to all that it has."""
    placed = [(T0, f"r{number:03}") for number in range(min(300, max_depth))]
    store = Store([make_run(run_id, at) for at, run_id in placed], ORDERS[order], max_depth)
    assert listed(store, RunQuery(limit=100), DensityHint(T0 // 1000)) == newest_first(placed)


def test_a_store_that_holds_few_traces_is_searched_within_its_depth() -> None:
    """A depth that is refused is halved, and the next list does not try it again."""
    placed = [(T0 + number * SECOND, f"r{number}") for number in range(10)]
    store = Store([make_run(run_id, at) for at, run_id in placed], ORDERS["shuffled"], max_depth=10)
    limits = StoreLimits()
    windows = windowed(store, RunQuery(), DensityHint(T0 // 1000), limits)
    assert [row.run_id for row in windows.rows()] == newest_first(placed)
    assert 0 < limits.max_depth <= 10


def test_a_store_that_refuses_every_depth() -> None:
    """When not even one trace may be searched for, the list is an error instead of empty."""
    with pytest.raises(DepthRefused):
        list(windowed(Store([], ORDERS["as sent"], max_depth=0), RunQuery(), DensityHint(0)).rows())


def test_a_newer_revision_span_that_is_cut_leaves_the_older_revision() -> None:
    """A run whose newest revision span cannot be read is listed as its older revision proves it."""
    store = Store([running("r")], ORDERS["as sent"])
    spans = next(iter(store.traces.values()))
    newer = encode(make_run("r"))[-1]
    cut = Span(
        **{name: getattr(newer, name) for name in Span.__struct_fields__ if name not in {"shared", "own"}},
        shared=(),
        own=[pair for pair in newer.pairs() if not pair[0].startswith("runspan.run.")],
    )
    spans.append(found(cut))
    windows = windowed(store, RunQuery(), DensityHint(T0 // 1000))
    assert [row.summary for row in windows.rows()] == [running("r").summary()]
    ((_, note),) = windows.notes
    assert note.startswith("run r is listed as of an older revision: attribute runspan.revision")


@pytest.mark.parametrize("order", ORDERS)
def test_a_page_of_many_runs_takes_few_searches(order: str) -> None:
    """A page out of two thousand runs over weeks costs some splits and not a search for all of them."""
    placed = [(T0 + number * 1800 * SECOND, f"r{number:04}") for number in range(2000)]
    store = Store([make_run(run_id, at, steps=[]) for at, run_id in placed], ORDERS[order])
    rows = list(islice(windowed(store, RunQuery(), DensityHint(T0 // 1000 + 10**14)).rows(), 50))
    assert [row.run_id for row in rows] == newest_first(placed)[:50]
    assert store.searches < 40


class LimitedStore(Store):
    """A store with an index for each day, which refuses a range of more than ``width`` microseconds."""

    def __init__(self, runs: Sequence[Run], width: int) -> None:
        super().__init__(runs, ORDERS["shuffled"])
        self.width = width

    def __call__(self, lo: int, hi: int, depth: int) -> list[Traces]:
        if hi - lo > self.width or hi > T0 // 1000 + DAY:
            raise BackendRefused("too_long_http_line_exception")
        within = {name: spans for name, spans in self.traces.items() if any(lo <= span.start <= hi for span in spans)}
        return super().__call__(lo, hi, depth) if within else [{}]


@pytest.mark.parametrize("width", [LIMITED_WIDTH, 30 * DAY, DAY])
def test_a_store_that_refuses_wide_ranges(width: int) -> None:
    """It is searched in parts, no further than a day into the future, and the list says how far back it reaches."""
    day = 86_400 * SECOND
    placed = [(T0 - number * 40 * day // MS * MS, f"r{number:02}") for number in range(15)]
    store = LimitedStore([make_run(run_id, at, steps=[]) for at, run_id in placed], width)
    limits = StoreLimits(max_width=LIMITED_WIDTH)
    windows = windowed(store, RunQuery(), DensityHint(T0 // 1000), limits)
    assert [row.run_id for row in windows.rows()] == [f"r{number:02}" for number in range(LOOKBACK_DAYS // 40 + 1)]
    assert [text for _, text in windows.notes] == [
        f"runs that started more than {LOOKBACK_DAYS} days ago were not searched"
    ]
    assert limits.max_width is not None
    assert limits.max_width <= width
    recent = windowed(store, RunQuery(since=T0 - 100 * day), DensityHint(T0 // 1000), limits)
    assert [row.run_id for row in recent.rows()] == ["r00", "r01", "r02"]
    assert not recent.notes


def test_a_store_that_fails_is_not_searched_in_ever_smaller_parts() -> None:
    """A day is searched as one, so a failure there is an error."""
    store = LimitedStore([], 0)
    with pytest.raises(BackendRefused):
        list(windowed(store, RunQuery(), DensityHint(0), StoreLimits(max_width=LIMITED_WIDTH)).rows())


def test_a_run_in_the_far_future_is_found() -> None:
    """A store that accepts every range is searched up to the last time that a span can have."""
    last = END * 1000 - 10 * SECOND
    store = Store([make_run("late", last // MS * MS, steps=[]), make_run("now")], ORDERS["as sent"])
    assert listed(store, RunQuery(), DensityHint(T0 // 1000)) == ["late", "now"]
