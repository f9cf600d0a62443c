"""A page of runs, newest first: windows of time are searched from the newest back until the page is full.

A revision span has the data of a list item. It does not prove that all steps of the run are stored, nor always that no
newer revision span lies in a fragment that the search did not see. Where the search response does not prove both, the
trace is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock
from typing import Final

from runspan.backends.tempo.search_api import (
    CHANGED_AFTER_END,
    EARLIEST,
    LATEST,
    SECOND,
    SPAN_ID_DIGITS,
    WITHOUT_START,
    Candidate,
    SearchWindow,
    WindowSearcher,
    may_have_ended,
    search_text,
)
from runspan.codec.decode import RunSummary, VerifiedRun, read_summary
from runspan.codec.fields import DIGEST, MANIFEST, MAX_ATTRIBUTE_BYTES, ROOT_REVISION, STEP_COUNT
from runspan.contracts import Cursor, Page, RunQuery
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import sort_time, str_or_none
from runspan.model.span import Span, run_ids

SortKey = tuple[int, str]
"""The position of a run in a list: sort time and run id, both descending."""


# Verifying candidates.

TRUSTED_BYTES: Final = 200
"""The server may have cut a longer text of a search response, so such a text counts only with its digest."""
_REPLACEMENT: Final = "\ufffd"
"""What JSON has in place of a character that was cut."""
_MAX_VERIFIED: Final = 100_000


@dataclass(frozen=True, slots=True)
class ListItem:
    """One run of the list."""

    key: SortKey
    summary: bytes
    note: str = ""
    """What is missing of the run, "" when it is complete."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A trace that is not in the list."""

    note: str = ""
    """Why that may be wrong, "" when it is certain."""


Decision = ListItem | Excluded


class VerifiedCache:
    """Revisions that were read completely once, and so stay proved. The oldest entries are evicted."""

    def __init__(self) -> None:
        self._keys: OrderedDict[tuple[bytes, int, str], None] = OrderedDict()
        self._lock = Lock()

    def add(self, trace_id: bytes, revision: int, digest: str) -> None:
        """Add a revision of a trace, with the digest of its document in hex."""
        key = (trace_id, revision, digest)
        with self._lock:
            self._keys[key] = None
            self._keys.move_to_end(key)
            if len(self._keys) > _MAX_VERIFIED:
                self._keys.popitem(last=False)

    def __contains__(self, key: tuple[bytes, int, str]) -> bool:
        return key in self._keys


class CandidateVerifier:
    """Decides whether the candidates of one query are items of the list.

    read: returns the run of a trace as ``codec.decode.verify_run`` proves it.
    """

    def __init__(
        self, query: RunQuery, read: Callable[[bytes], VerifiedRun], verified: VerifiedCache, pool: ThreadPoolExecutor
    ) -> None:
        self._query = query
        self._read = read
        self._verified = verified
        self._pool = pool
        self._filtered = query.workflow_id is not None or bool(query.statuses)

    def from_search(
        self, candidate: Candidate, *, all_matched: bool, newest_searched: bool
    ) -> tuple[SortKey, Decision | None]:
        """Return the position of a candidate, and the decision when the search response alone proves one.

        - all_matched: whether every revision span of a run that may be in the list, or a newer one of that run, meets
          the conditions of the search.
        - newest_searched: whether the search reached up to the latest time.
        """
        newest = candidate.newest
        try:
            summary = read_summary(newest)
        except TraceIncomplete:
            summary = None
        if summary is None or _may_have_more_pieces(newest) or not _has_own_trace_id(summary, candidate.trace_id):
            return (newest.start, ""), None
        key = (summary.time, summary.run_id)
        if summary.tenant != self._query.tenant:
            return key, Excluded()
        is_newest = all_matched and (summary.revision >= ROOT_REVISION or (newest_searched and not self._filtered))
        if is_newest and not self._query.matches(summary.workflow_id, summary.status, summary.revision):
            return key, Excluded() if _is_trusted(newest) else None
        if is_newest and _is_trusted(newest) and self._is_verified(candidate, summary):
            return key, ListItem(key, summary.summary)
        return key, None

    def read_all(self, candidates: Sequence[Candidate]) -> list[Decision]:
        """Read the traces, several at a time, and return the decisions."""
        if len(candidates) < 2:
            return [self._read_one(candidate) for candidate in candidates]
        return list(self._pool.map(self._read_one, candidates))

    def _read_one(self, candidate: Candidate) -> Decision:
        try:
            verified = self._read(candidate.trace_id)
        except NotFound:
            return Excluded()
        except TraceIncomplete as error:
            return Excluded(f"trace {candidate.trace_id.hex()} is not listed: {'; '.join(error.missing[:3]) or error}")
        run = verified.run
        envelope = run.envelope
        self._verified.add(candidate.trace_id, verified.revision, sha256(run.text).hexdigest())
        workflow, status = str_or_none(envelope.workflow_id), str_or_none(envelope.status)
        if verified.tenant != self._query.tenant or not self._query.matches(workflow, status, verified.revision):
            return Excluded()
        note = ""
        if verified.incomplete:
            note = f"run {run.id} is listed as of an older revision: {verified.incomplete[0]}"
        return ListItem((sort_time(envelope), run.id), run.summary(), note)

    def _is_verified(self, candidate: Candidate, summary: RunSummary) -> bool:
        digest = candidate.newest.attributes().get(DIGEST)
        if type(digest) is not str:
            return False
        key = (candidate.trace_id, summary.revision, digest)
        if key in self._verified:
            return True
        if len(candidate.revision_spans) == 1 and _required_step_ids(candidate.newest) <= candidate.step_ids:
            self._verified.add(*key)
            return True
        return False


_UNKNOWN: Final = frozenset({""})
"""An id that no step span has."""


def _required_step_ids(revision_span: Span) -> frozenset[str]:
    """Return the ids in the manifest, in hex: an id is a digest of the step, so its span proves this version of it.

    ``_UNKNOWN`` when the manifest has open steps, was cut, or continues in further attributes.
    """
    attributes = revision_span.attributes()
    manifest, count = attributes.get(MANIFEST, ""), attributes.get(STEP_COUNT, 0)
    if type(manifest) is not str or type(count) is not int or len(manifest) != count * SPAN_ID_DIGITS:
        return _UNKNOWN
    return frozenset(manifest[start : start + SPAN_ID_DIGITS] for start in range(0, len(manifest), SPAN_ID_DIGITS))


def _has_own_trace_id(summary: RunSummary, trace_id: bytes) -> bool:
    """Return whether run id and tenant are complete: the trace id follows from them."""
    try:
        return run_ids(summary.run_id, summary.tenant).trace_id == trace_id
    except UnicodeEncodeError:
        return False


def _is_trusted(revision_span: Span) -> bool:
    """Return whether the server can have cut none of the texts."""
    return all(len(text.encode()) <= TRUSTED_BYTES and _REPLACEMENT not in text for text in _texts(revision_span))


def _may_have_more_pieces(revision_span: Span) -> bool:
    """Return whether a text is so long that attributes which were not selected may hold further pieces of it."""
    return any(len(text) > MAX_ATTRIBUTE_BYTES // 4 - 4 for text in _texts(revision_span))


def _texts(revision_span: Span) -> list[str]:
    """Return the string attributes, except for the manifest."""
    attributes = revision_span.attributes().items()
    return [value for key, value in attributes if key != MANIFEST and type(value) is str]


# Searching.

LOOKBACK_DAYS: Final = 400
"""How far a list without ``since`` looks back on a server that refuses wide ranges."""
_FUTURE_SECONDS: Final = 3600
"""How far past now such a server is searched: clocks differ."""
_FIRST: Final[SortKey] = (1 << 64, "")
"""A position before all runs."""
_FEW: Final = 200
_MANY: Final = 2000
_MAX_FIRST_LIMIT: Final = 5000
"""The highest limit that a list begins with."""
_MAX_SIZES: Final = 1000
"""How many kinds of queries have a window size."""


@dataclass(frozen=True, slots=True)
class WindowSize:
    """How many seconds a full page of one kind of query reached back lately, and the limit that its search needed.

    The next search of this kind asks for little more than that. A wrong size costs a search, never a run.
    """

    seconds: int
    limit: int


@dataclass(slots=True)
class _Found:
    """What a list has found so far."""

    items: dict[bytes, ListItem] = field(default_factory=dict)
    """By trace id."""
    decided: set[bytes] = field(default_factory=set)
    """The ids of the traces with a final decision."""
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, candidate: Candidate, decision: Decision) -> None:
        self.decided.add(candidate.trace_id)
        if isinstance(decision, ListItem):
            self.items[candidate.trace_id] = decision
        if decision.note:
            self.notes[decision.note] = None


class RunSearch:
    """One call of ``TempoReader.search``.

    window_sizes: by kind of query; updated by the search.
    now: seconds since 1970.
    check_deadline: raises when the list takes too long.
    """

    def __init__(
        self,
        query: RunQuery,
        searcher: WindowSearcher,
        verifier: CandidateVerifier,
        window_sizes: dict[object, WindowSize],
        now: int,
        check_deadline: Callable[[], None],
    ) -> None:
        self._query = query
        self._searcher = searcher
        self._verifier = verifier
        self._window_sizes = window_sizes
        self._now = now
        self._check_deadline = check_deadline
        self._found = _Found()
        self._cursor: SortKey = _FIRST if query.cursor is None else (query.cursor.time, query.cursor.run_id)
        self._since = max(query.since or 0, 0)
        self._wanted = query.limit + 1
        self._windows = 0
        self._changed_above: set[bytes] | None = set()
        self._limit = _MANY if may_have_ended(query) else max(2 * self._wanted, 50)

    def page(self) -> Page:
        """Return the page. Raise UnicodeEncodeError when the query holds text that no run can have."""
        query = self._query
        statuses, stuck = query.statuses, query.stuck_before is not None
        kind = (query.tenant, query.workflow_id, statuses, stuck, query.limit, query.cursor is None)
        high = LATEST if query.cursor is None else min(max(query.cursor.time // SECOND, EARLIEST) + 1, LATEST)
        newest = min(high, self._now)
        size = self._window_sizes.get(kind)
        floor = min(max(self._since // SECOND, EARLIEST), high - 1)
        if query.cursor is not None:
            self._changed_above = self._find_changed_above(high)
        if size is not None:
            self._limit = max(self._limit, size.limit)
        if not self._find_unfinished(floor, high):
            low = floor if size is None else max(floor, newest - size.seconds)
            floor = self._search_back(search_text(query), high, floor, low)
        if not self._is_full(self._since) and self._since == 0 and (query.cursor is not None or self._windows > 1):
            self._find_without_start(floor)
        page = self._page()
        if page.cursor is not None:
            seconds = max((newest - page.cursor.time // SECOND) * 5 // 4, 2)
            if len(self._window_sizes) >= _MAX_SIZES:
                self._window_sizes.clear()
            self._window_sizes[kind] = WindowSize(seconds, min(self._limit, _MAX_FIRST_LIMIT))
        return page

    def _find_changed_above(self, low: int) -> set[bytes] | None:
        """Return the traces whose run changed after its end and now starts above this page.

        No window of the page may show such a change. A change that starts below is found by the later end of its span.
        None when there are too many.
        """
        text = search_text(RunQuery(self._query.tenant), CHANGED_AFTER_END)
        window = self._searcher.complete_window(text, low - 1, LATEST, _MANY)
        if window is None:
            return None
        self._note_missing(window)
        return {candidate.trace_id for candidate in window.candidates}

    def _note_missing(self, window: SearchWindow) -> None:
        if window.missing:
            self._found.notes[f"Tempo left out {window.missing} parts of its data"] = None

    def _find_unfinished(self, floor: int, high: int) -> bool:
        """Add the runs of a status that runs leave again, if there are few enough to read each; return whether so."""
        if not may_have_ended(self._query):
            return False
        window = self._searcher.complete_window(search_text(self._query, ended=False), floor, high, _FEW)
        if window is not None:
            self._add_window(window, 0)
        return window is not None

    def _find_without_start(self, floor: int) -> None:
        """Add runs without any start. They sort last, but their spans may lie in windows that were left already."""
        cursor = self._query.cursor
        low = floor if cursor is None else max(floor, min(cursor.time // SECOND, LATEST - 1))
        self._search_back(search_text(self._query, WITHOUT_START), LATEST, low, low, without_start=True)

    def _search_back(self, text: str, high: int, floor: int, low: int, *, without_start: bool = False) -> int:
        """Add windows from the newest back, until the page is full or the floor is reached; return the floor.

        - low: where the first window begins.
        - without_start: whether the text finds runs without a start only; then stop at the floor only.
        """
        is_cut_off = False
        while True:
            self._check_deadline()
            if self._searcher.limited:
                high, lowest = self._limited_range(high, floor)
                is_cut_off = is_cut_off or lowest > floor
                low, floor = max(low, lowest), lowest
            enough = self._wanted + self._wanted // 4
            if may_have_ended(self._query):  # most of the candidates have another status by now
                enough = self._limit // 2
            window = self._searcher.newest_window(text, min(low, high - 1), high, self._limit, enough)
            if window is None:
                continue
            self._limit = window.limit
            self._windows += 1
            before = len(self._found.items)
            at_floor = window.low <= floor
            # The lowest window has every run that is left, wherever it sorts.
            complete_from = 0 if at_floor or without_start else window.low * SECOND
            is_full = self._add_window(window, complete_from, without_start=without_start)
            if is_full and not without_start:
                return floor
            if at_floor:
                if is_cut_off:
                    note = f"runs that started more than {LOOKBACK_DAYS} days ago were not searched"
                    self._found.notes[note] = None
                return floor
            high = window.low
            found = len(self._found.items)
            low = floor if without_start or found == before else self._next_low(window, floor, found)

    def _limited_range(self, high: int, floor: int) -> tuple[int, int]:
        """Return the range for a server that refuses wide ones, where each week costs a search."""
        high = min(high, self._now + _FUTURE_SECONDS)
        lookback = self._now - LOOKBACK_DAYS * 86_400
        return high, min(max(floor, lookback), high - 1)

    def _next_low(self, window: SearchWindow, floor: int, found: int) -> int:
        """Return where the next window begins, so that it likely holds what is missing of the page."""
        if found * 8 < self._wanted:
            return floor
        return max(floor, window.low - (window.high - window.low) * max(4, 2 * self._wanted // found))

    def _add_window(self, window: SearchWindow, complete_from: int, *, without_start: bool = False) -> bool:
        """Verify what is new in a window, newest first, until the page is full; return whether it is.

        - complete_from: the sort time, in nanoseconds, from which on all runs of the list are in the windows so far.
        - without_start: whether the window has only revision spans without a start; a newer one of such a run may
          have a start.
        """
        self._note_missing(window)
        newest_searched = window.high >= min(LATEST, self._now + _FUTURE_SECONDS)
        pending: list[tuple[SortKey, Candidate, Decision | None]] = []
        unplaced: list[Candidate] = []
        for candidate in window.candidates:
            if candidate.trace_id in self._found.decided:
                continue
            changed = self._changed_above is None or candidate.trace_id in self._changed_above
            key, decision = self._verifier.from_search(
                candidate, all_matched=not without_start and not changed, newest_searched=newest_searched
            )
            if decision is None and not key[1]:
                unplaced.append(candidate)
            else:
                pending.append((key, candidate, decision))
        for candidate, decision in zip(unplaced, self._verifier.read_all(unplaced), strict=True):
            self._found.add(candidate, decision)
        pending.sort(key=lambda entry: entry[0], reverse=True)
        pending = [entry for entry in pending if complete_from <= entry[0][0] and entry[0] < self._cursor]
        for start in range(0, len(pending), self._wanted):
            self._check_deadline()
            part = pending[start : start + self._wanted]
            unproved = [candidate for _, candidate, decision in part if decision is None]
            read = dict(zip(map(id, unproved), self._verifier.read_all(unproved), strict=True))
            for _, candidate, decision in part:
                self._found.add(candidate, read[id(candidate)] if decision is None else decision)
            remaining = pending[start + self._wanted :]
            if remaining and self._is_full(complete_from, remaining[0][0]):
                return True
        return self._is_full(complete_from)

    def _is_full(self, complete_from: int, after: SortKey = (-1, "")) -> bool:
        """Return whether more items than the page holds are certain: no other run can sort before them."""
        certain = [
            item.key
            for item in self._found.items.values()
            if item.key[0] >= max(complete_from, self._since) and after < item.key < self._cursor
        ]
        return len(certain) >= self._wanted

    def _page(self) -> Page:
        items = sorted(
            (item for item in self._found.items.values() if item.key[0] >= self._since and item.key < self._cursor),
            key=lambda item: item.key,
            reverse=True,
        )
        shown = items[: self._query.limit]
        has_more = len(items) > len(shown) and shown
        cursor = Cursor(*shown[-1].key) if has_more else None
        return Page([item.summary for item in shown], cursor, tuple(self._found.notes))
