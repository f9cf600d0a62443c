"""A page of runs, newest first: windows of time are searched from the newest back until the page is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from runspan.backends.tempo.responses import Candidate
from runspan.backends.tempo.traceql import OVERTAKING, TIMELESS, may_have_ended, search_text
from runspan.backends.tempo.verify_candidates import CandidateVerifier, Decision, Key, ListItem
from runspan.backends.tempo.window_search import EARLIEST, LATEST, SECOND, SearchWindow, WindowSearcher
from runspan.contracts import Cursor, Page, RunQuery

LOOKBACK_DAYS: Final = 400
"""How far a list without ``since`` looks back on a server that refuses wide ranges."""
_AHEAD: Final = 3600
"""Seconds past now that are searched on such a server: clocks differ."""
_NEWEST: Final[Key] = (1 << 64, "")
_FEW: Final = 200
_MANY: Final = 2000
_MAX_START: Final = 5000
"""The highest limit that a list begins with."""
_MAX_PACES: Final = 1000


@dataclass(frozen=True, slots=True)
class WindowSize:
    """How many seconds a full page of a kind of query lately reached back, and the limit that its search needed."""

    seconds: int
    limit: int


class WindowSizes:
    """The paces by kind of query, so that the next search asks for little more than it needs.

    A wrong guess costs a search, never a run.
    """

    def __init__(self) -> None:
        self._known: dict[object, WindowSize] = {}
        self._lock = Lock()

    def get(self, kind: object) -> WindowSize | None:
        return self._known.get(kind)

    def put(self, kind: object, pace: WindowSize) -> None:
        with self._lock:
            if len(self._known) >= _MAX_PACES:
                self._known.clear()
            self._known[kind] = pace


@dataclass(slots=True)
class _State:
    """What a list has found so far. items: by trace. settled: traces that were judged for good."""

    items: dict[bytes, ListItem] = field(default_factory=dict)
    settled: set[bytes] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)

    def take(self, candidate: Candidate, verdict: Decision) -> None:
        self.settled.add(candidate.trace_id)
        if isinstance(verdict, ListItem):
            self.items[candidate.trace_id] = verdict
        if verdict.note:
            self.notes[verdict.note] = None


class RunSearch:
    """One call of ``search``. now: seconds since 1970. go_on: raises when the list takes too long."""

    def __init__(
        self,
        query: RunQuery,
        searcher: WindowSearcher,
        judge: CandidateVerifier,
        paces: WindowSizes,
        now: int,
        go_on: Callable[[], None],
    ) -> None:
        self._query = query
        self._searcher = searcher
        self._judge = judge
        self._paces = paces
        self._now = now
        self._go_on = go_on
        self._state = _State()
        self._cursor: Key = _NEWEST if query.cursor is None else (query.cursor.time, query.cursor.run_id)
        self._since = max(query.since or 0, 0)
        self._wanted = query.limit + 1
        self._windows = 0
        self._changed_above: set[bytes] | None = set()
        self._limit = _MANY if may_have_ended(query) else max(2 * self._wanted, 50)

    def page(self) -> Page:
        """The page. UnicodeEncodeError when the query holds text that no run can have."""
        query = self._query
        statuses, stuck = query.statuses, query.stuck_before is not None
        kind = (query.tenant, query.workflow_id, statuses, stuck, query.limit, query.cursor is None)
        high = LATEST if query.cursor is None else min(max(query.cursor.time // SECOND, EARLIEST) + 1, LATEST)
        newest = min(high, self._now)
        pace = self._paces.get(kind)
        floor = min(max(self._since // SECOND, EARLIEST), high - 1)
        if query.cursor is not None:
            self._changed_above = self._find_changed_above(high)
        if pace is not None:
            self._limit = max(self._limit, pace.limit)
        if not self._take_unfinished(floor, high):
            floor = self._walk(
                search_text(query), high, floor, floor if pace is None else max(floor, newest - pace.seconds)
            )
        if not self._full(self._since) and self._since == 0 and (query.cursor is not None or self._windows > 1):
            self._take_timeless(floor)
        page = self._cut()
        if page.cursor is not None:
            reach = max((newest - page.cursor.time // SECOND) * 5 // 4, 2)
            self._paces.put(kind, WindowSize(reach, min(self._limit, _MAX_START)))
        return page

    def _find_changed_above(self, low: int) -> set[bytes] | None:
        """The traces whose run changed after its end and now starts above this page, so that no window of the page may
        show it; a change that starts below is found by its span's later end. None when they are too many to know."""
        text = search_text(RunQuery(self._query.tenant), OVERTAKING)
        window = self._searcher.at_once(text, low - 1, LATEST, _MANY)
        if window is None:
            return None
        self._note_missing(window)
        return {candidate.trace_id for candidate in window.candidates}

    def _note_missing(self, window: SearchWindow) -> None:
        if window.missing:
            self._state.notes[f"Tempo left out {window.missing} parts of its data"] = None

    def _take_unfinished(self, floor: int, high: int) -> bool:
        """Takes the heads of a status that runs leave again, where they are few enough to look each up."""
        if not may_have_ended(self._query):
            return False
        window = self._searcher.at_once(search_text(self._query, ended=False), floor, high, _FEW)
        if window is not None:
            self._take(window, 0)
        return window is not None

    def _walk(self, text: str, high: int, floor: int, low: int, *, all_of_it: bool = False) -> int:
        """Takes windows from the newest back, until the page is full or the floor is reached, which is returned.

        low: where the first window is to begin. all_of_it: stop at the floor only.
        """
        is_short = False
        while True:
            self._go_on()
            if self._searcher.limited:
                high, lowest = self._bounded(high, floor)
                is_short = is_short or lowest > floor
                low, floor = max(low, lowest), lowest
            enough = self._wanted + self._wanted // 4
            if may_have_ended(self._query):  # most of what comes is not what is looked for
                enough = self._limit // 2
            window = self._searcher.window(text, min(low, high - 1), high, self._limit, enough)
            if window is None:
                continue
            self._limit = window.limit
            self._windows += 1
            before = len(self._state.items)
            at_floor = window.low <= floor
            # The lowest window has every run that is left, wherever it sorts.
            full = self._take(window, 0 if at_floor or all_of_it else window.low * SECOND, timeless=all_of_it)
            if full and not all_of_it:
                return floor
            if at_floor:
                if is_short:
                    note = f"runs that started more than {LOOKBACK_DAYS} days ago were not looked for"
                    self._state.notes[note] = None
                return floor
            high = window.low
            found = len(self._state.items)
            low = floor if all_of_it or found == before else self._further(window, floor, found)

    def _bounded(self, high: int, floor: int) -> tuple[int, int]:
        """The range on a server that refuses wide ones, where each week costs a search."""
        high = min(high, self._now + _AHEAD)
        lookback = self._now - LOOKBACK_DAYS * 86_400
        return high, min(max(floor, lookback), high - 1)

    def _further(self, window: SearchWindow, floor: int, found: int) -> int:
        """Where the next window begins: far enough back for what is missing, judged by what was found so far."""
        if found * 8 < self._wanted:
            return floor
        return max(floor, window.low - (window.high - window.low) * max(4, 2 * self._wanted // found))

    def _take(self, window: SearchWindow, complete_from: int, *, timeless: bool = False) -> bool:
        """Judges what is new in a window, newest first, until the page is full; whether it is.

        timeless: whether only heads without a start were looked for; a newer head of such a run may have one.
        """
        self._note_missing(window)
        reaches_up = window.high >= min(LATEST, self._now + _AHEAD)
        waiting: list[tuple[Key, Candidate, Decision | None]] = []
        unplaced: list[Candidate] = []
        for candidate in window.candidates:
            if candidate.trace_id in self._state.settled:
                continue
            changed = self._changed_above is None or candidate.trace_id in self._changed_above
            key, verdict = self._judge.from_search(
                candidate, all_seen=not timeless and not changed, all_newer_seen=reaches_up
            )
            if verdict is None and not key[1]:
                unplaced.append(candidate)
            else:
                waiting.append((key, candidate, verdict))
        for candidate, verdict in zip(unplaced, self._judge.read_all(unplaced), strict=True):
            self._state.take(candidate, verdict)
        waiting.sort(key=lambda entry: entry[0], reverse=True)
        waiting = [entry for entry in waiting if complete_from <= entry[0][0] and entry[0] < self._cursor]
        for start in range(0, len(waiting), self._wanted):
            self._go_on()
            part = waiting[start : start + self._wanted]
            unproved = [candidate for _, candidate, verdict in part if verdict is None]
            read = dict(zip(map(id, unproved), self._judge.read_all(unproved), strict=True))
            for _, candidate, verdict in part:
                self._state.take(candidate, read[id(candidate)] if verdict is None else verdict)
            behind = waiting[start + self._wanted :]
            if behind and self._full(complete_from, behind[0][0]):
                return True
        return self._full(complete_from)

    def _take_timeless(self, floor: int) -> None:
        """Runs without any start sort last, wherever their spans lie: in windows that were left, or never searched."""
        cursor = self._query.cursor
        low = floor if cursor is None else max(floor, min(cursor.time // SECOND, LATEST - 1))
        self._walk(search_text(self._query, TIMELESS), LATEST, low, low, all_of_it=True)

    def _full(self, complete_from: int, after: Key = (-1, "")) -> bool:
        """Whether more items than the page holds are certain: none can still come before them."""
        certain = [
            item.key
            for item in self._state.items.values()
            if item.key[0] >= max(complete_from, self._since) and after < item.key < self._cursor
        ]
        return len(certain) >= self._wanted

    def _cut(self) -> Page:
        items = sorted(
            (item for item in self._state.items.values() if item.key[0] >= self._since and item.key < self._cursor),
            key=lambda item: item.key,
            reverse=True,
        )
        shown = items[: self._query.limit]
        more = len(items) > len(shown) and shown
        cursor = Cursor(*shown[-1].key) if more else None
        return Page([item.summary for item in shown], cursor, tuple(self._state.notes))
