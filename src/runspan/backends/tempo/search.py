"""A page of runs, newest first: windows of time are searched from the newest back until the page is full.

A list item is verified by its own digest. The trace is read where a search alone does not prove the item: a run that
has not ended may have done so just now, and the response does not have all attributes of an unusual run.

Where a list depends on a text, the document of each run decides. If few of the newest runs contain it, searches in all
data find which traces may contain it, in any fragment of each, so that no other is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from msgspec.structs import replace

from runspan.backends.remote.filters import match_trace, needs_document
from runspan.backends.tempo.search_api import (
    EARLIEST,
    LATEST,
    SEARCHES,
    Candidate,
    SearchText,
    SearchWindow,
    WindowSearcher,
    changed_text,
    content_texts,
    ended_text,
    is_unfinished,
    known_attributes,
    search_text,
    version_of,
    versions_text,
)
from runspan.codec.decode import RunSummary, read_summary
from runspan.codec.fields import REVISION, ROOT_REVISION, RUN_ID, TENANT
from runspan.codec.full_text import Match
from runspan.contracts import (
    Cursor,
    Page,
    RunQuery,
    conflict_note,
    damaged_note,
    limited_notes,
    older_revision_note,
)
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.document import TERMINAL_RUN_STATUSES
from runspan.model.span import Span
from runspan.model.timestamps import SECOND

SortKey = tuple[int, str]
"""The position of a run in a list: sort time and run id, both descending."""


# Verifying candidates.


class Decision(NamedTuple):
    """Whether a trace is in the list."""

    key: SortKey | None = None
    """Where it is in the list, None if it is not."""
    summary: bytes = b""
    note: str = ""
    """What is wrong with the run, or why it may be wrong to leave it out; "" if nothing is."""
    is_final: bool = True
    """Whether no other window can have a newer version of the run."""
    needs_document: bool = False
    """Whether it is in the list only if its document meets the other filters."""
    text: Match | None = None
    """Where the run contains the text of the query."""


class CandidateVerifier:
    """Decides whether the candidates of one query are items of the list.

    read: returns the spans of a trace; raises NotFound.
    """

    def __init__(self, query: RunQuery, read: Callable[[bytes], list[Span]], pool: ThreadPoolExecutor) -> None:
        self._query = query
        self._known = known_attributes(query)
        self._read = read
        self._pool = pool

    def from_search(self, candidate: Candidate) -> Decision | None:
        """Return the decision that follows from the spans found, None when the trace must be read."""
        if not candidate.is_complete:
            return None
        version = _newest_version([replace(span, own=[*self._known, *span.own]) for span in candidate.spans])
        if version.summary is None or version.missing:
            return None
        decision = self._decide_summary(version)
        if version.summary.revision >= ROOT_REVISION and version.summary.status in TERMINAL_RUN_STATUSES:
            return decision
        return None if decision.key is not None else Decision(is_final=False)

    def from_traces(self, candidates: Sequence[Candidate]) -> list[Decision]:
        """Read the traces, several at a time, and return the decisions."""
        return list(self._pool.map(self._from_trace, [candidate.trace_id for candidate in candidates]))

    def _from_trace(self, trace_id: bytes) -> Decision:
        try:
            spans = self._read(trace_id)
        except NotFound:
            return Decision()
        versions = [span for span in spans if REVISION in span.attributes()]
        if not versions:
            return Decision()
        versions.sort(key=version_of, reverse=True)
        version = _newest_version(versions)
        if version.summary is None:
            is_own = versions[0].attributes().get(TENANT, "") == self._query.tenant
            return Decision(note=damaged_note(_run_id(versions[0])) if is_own else "")
        decision = self._decide_summary(version)
        if not decision.needs_document:
            return decision
        match = match_trace(self._query, version.summary, spans)
        return decision._replace(text=match.text) if match.is_match else Decision(note=match.unproved)

    def _decide_summary(self, version: _Version) -> Decision:
        run = version.summary
        if run is None or run.tenant != self._query.tenant:
            return Decision()
        if not self._query.matches(run):
            return Decision()
        note = ""
        if version.missing:
            note = older_revision_note(run.run_id, version.missing)
        elif version.conflict:
            note = conflict_note(run.run_id, version.conflict)
        return Decision((run.time, run.run_id), run.summary, note, needs_document=needs_document(self._query, run))


class _Version(NamedTuple):
    """The newest version of a run whose list item has the recorded digest."""

    summary: RunSummary | None
    missing: tuple[str, ...]
    """What is wrong with the first newer version."""
    conflict: tuple[str, ...]
    """The digests of other documents that were sent as the same revision."""


def _newest_version(spans: Sequence[Span]) -> _Version:
    """Return the newest version of the run and revision spans of a trace, which are sorted, newest first."""
    newest: RunSummary | None = None
    missing: tuple[str, ...] = ()
    others: dict[str, None] = {}
    for span in spans:
        if newest is not None and version_of(span)[0] != newest.revision:
            break
        try:
            summary = read_summary(span)
        except TraceIncomplete as error:
            if newest is None:
                missing = missing or error.missing
            continue
        if newest is None:
            newest = summary
        elif summary is not None and summary.digest != newest.digest:
            others[summary.digest] = None
    return _Version(newest, missing, tuple(others))


def _run_id(span: Span) -> str:
    """Return the id of a span's run, that of its trace in hex when it has none."""
    run_id = span.attributes().get(RUN_ID)
    return run_id if type(run_id) is str else span.trace_id.hex()


# Searching.

_FUTURE_SECONDS: Final = 3600
"""How far past now such a server is searched: clocks differ."""
_FIRST: Final[SortKey] = (1 << 64, "")
"""A position before all runs."""
_MAX_CHANGED: Final = 2000
"""Changes after the end that one search finds; if there are more, each trace of a page is read."""
_MIN_LIMIT: Final = 100
_MAX_COUNT: Final = 5000
"""How many traces are searched for at once."""
_MAX_HINTS: Final = 1000
"""How many kinds of queries have a hint."""
_MAX_MATCHING: Final = 5000
"""Traces that ``content_texts`` may find; if there are more, the documents of all runs are read, newest first."""
_MAX_DIRECT: Final = 1000
"""So many of these are looked up by their ids, instead of searching through all runs."""
_IDS: Final = 80
"""Ids of one search, so that its URL is shorter than the 8 KB that proxies take."""
_MAX_CHECKED: Final = 200
"""Runs that are looked at for a page before ``content_texts`` are searched in all data."""
_FEW: Final = 4
"""So many traces are read without a search that shows which of them need not be: it costs as much."""


def _key(candidate: Candidate) -> SortKey:
    """Return where a candidate sorts if the newest span that was found of it is its newest."""
    return candidate.spans[0].start, _run_id(candidate.spans[0])


class WindowHint(NamedTuple):
    """What the last page of a kind of query showed."""

    seconds: int
    """How far it reached back."""
    needs_versions: bool
    """Whether it had more than a few runs that have not ended, so that ``SearchText.versions`` is searched at once."""
    are_contents_rare: bool | None
    """Whether ``content_texts`` find so few runs that only those are read; None if they were not searched."""


@dataclass
class RunSearch:
    """One call of ``TempoReader.search``."""

    query: RunQuery
    searcher: WindowSearcher
    verifier: CandidateVerifier
    hints: dict[object, WindowHint]
    """By kind of query, what the last page showed; updated by the search. A wrong hint costs a search, never a run."""
    now: int
    """Seconds since 1970."""
    check_deadline: Callable[[], None]
    """Raises when the list takes too long."""

    def __post_init__(self) -> None:
        query = self.query
        self._items: dict[bytes, tuple[SortKey, bytes]] = {}
        """The position and the summary of each run found, by trace id."""
        self._matches: dict[str, Match] = {}
        """Where the runs found contain the text of the query, by run id."""
        self._decided: set[bytes] = set()
        """The ids of the traces with a final decision."""
        self._notes: dict[str, SortKey] = {}
        """What is not certain, with the position in the list to which it applies."""
        self._before: SortKey = query.before or _FIRST
        self._since = max(query.since or 0, 0)
        # Tempo finds a run in every window that it reaches into, so the lowest one has those that started before it.
        self._floor = max(self._since, query.ended_since or 0)
        self._wanted = query.limit + 1
        self._needs_versions = False
        self._changed: dict[bytes, Candidate] | None = {}
        """The traces whose runs changed after their end, wherever they lie; None if they are too many."""
        self._matching: set[bytes] | None = None
        """The traces that may contain the text of the query; None if that is not known."""
        self._can_search_contents = self.query.text is not None
        """Whether ``content_texts`` may show which documents to read, and were not searched yet."""
        self._checked = 0
        """How many runs were looked at."""

    def page(self) -> Page:
        """Return the page. Raise UnicodeEncodeError when the query holds text that no run can have."""
        query = self.query
        edges = (query.stuck_before is None, query.is_by_end, query.before is None)
        contents = (query.trigger, query.error_code, query.min_duration, query.model, query.step_type, query.text)
        kind = (query.tenant, query.workflow_id, query.statuses, query.limit, edges, contents)
        high = LATEST if query.before is None else min(max(query.before[0] // SECOND, EARLIEST) + 1, LATEST)
        floor = min(max(self._floor // SECOND, EARLIEST), high - 1)
        newest, hint = min(high, self.now), self.hints.get(kind)
        self._needs_versions = hint is not None and hint.needs_versions
        are_rare = None if hint is None else hint.are_contents_rare
        self._can_search_contents = self._can_search_contents and are_rare is not False
        self._changed = self._find_changed()
        if not are_rare or not self._search_contents():
            text = search_text(query, after_end=self._changed is None, times=self.searcher.needs_times)
            self._search_back(text, high, floor, None if hint is None else max(floor, newest - hint.seconds))
        page = self._page()
        lowest = floor if page.cursor is None else page.cursor.time // SECOND
        if len(self.hints) >= _MAX_HINTS:
            self.hints.clear()
        if query.text is not None and not self._can_search_contents:
            are_rare = self._matching is not None
        self.hints[kind] = WindowHint(max((newest - lowest) * 5 // 4, 2), self._needs_versions, are_rare)
        return page

    def _search_contents(self) -> bool:
        """Search for the traces that may contain the text of the query. Add all of the list that is not in it yet if
        they are few, and return whether they were.
        """
        self._can_search_contents = False
        found: set[bytes] = set()
        for text in content_texts(self.query.text or ""):
            self.check_deadline()
            window = self.searcher.complete_window(text, EARLIEST, LATEST, _MAX_MATCHING, spans=1)
            if window is None:
                return False
            self._note_missing(window)
            found.update(candidate.trace_id for candidate in window.candidates)
        self._matching = found
        self._notes[f"Tempo was searched for the text in {SEARCHES}: longer ones were not searched"] = _FIRST
        return len(found) <= _MAX_DIRECT and self._add_traces(found)

    def _add_traces(self, trace_ids: Iterable[bytes]) -> bool:
        """Add what is in the list of these traces alone; return False if they could not be searched for."""
        ids = sorted(trace_ids)
        candidates: list[Candidate] = []
        for start in range(0, len(ids), _IDS):
            self.check_deadline()
            text = versions_text(ids[start : start + _IDS]).select
            window = self.searcher.complete_window(text, EARLIEST, LATEST, _IDS + 1)
            if window is None:
                return False
            self._note_missing(window)
            candidates += window.candidates
        self._add_window(SearchWindow(EARLIEST, len(candidates) + 1, candidates, missing=0), 0)
        return True

    def _find_changed(self) -> dict[bytes, Candidate] | None:
        """Return the runs that changed after their end: a window of the page may show an older version of one."""
        text = changed_text(self.query)
        window = self.searcher.complete_window(text.find, EARLIEST, LATEST, _MAX_CHANGED)
        if window is not None and window.candidates:
            window = self.searcher.complete_window(text.select, EARLIEST, LATEST, _MAX_CHANGED)
        if window is None:
            return None
        self._note_missing(window)
        return {candidate.trace_id: candidate for candidate in window.candidates}

    def _note_missing(self, window: SearchWindow) -> None:
        if window.missing:
            self._notes[f"Tempo left out {window.missing} parts of its data"] = _FIRST

    def _search_back(self, text: SearchText, high: int, floor: int, low: int | None) -> None:
        """Add windows from the newest back, until the page is full or the floor is reached.

        - low: where the first window begins, None when that is not known.
        """
        is_cut_off = False
        enough = self._wanted * 5 // 4
        while True:
            self.check_deadline()
            if self.searcher.limited:
                # Each week costs a search there.
                high = min(high, self.now + _FUTURE_SECONDS)
                lowest = min(max(floor, self.now - self.searcher.lookback_days * 86_400), high - 1)
                is_cut_off = is_cut_off or lowest > floor
                floor = lowest
            if low is None:
                low = self.searcher.start_of_newest(text.find, floor, high, enough)
            if low is None:
                continue
            low = min(max(low, floor), high - 1)
            before = len(self._items)
            window = self._newest_window(text, low, high, enough)
            low = None
            if window is None:
                continue
            at_floor = window.low <= floor
            # The lowest window has every run that is left.
            is_full = self._add_window(window, 0 if at_floor else window.low * SECOND)
            if is_full:
                return
            if at_floor:
                if is_cut_off:
                    note = f"runs that started more than {self.searcher.lookback_days} days ago were not searched"
                    self._notes[note] = _FIRST
                return
            high = window.low
            found = len(self._items)
            needed = max(self._wanted - found, 1) * (len(window.candidates) + 1) // (found - before + 1)
            if needed > _MAX_CHECKED and self._can_search_contents and self._search_contents():
                return
            enough = min(needed * 5 // 4 + 1, _MAX_COUNT)

    def _newest_window(self, text: SearchText, low: int, high: int, enough: int) -> SearchWindow | None:
        """Search a range; see ``WindowSearcher.newest_window``.

        A search by ``text.select`` does not show where each run lies that has not ended, because the start of such a
        run may change and the response need not have its newest revision. These traces are read at once, and if they
        are many, a second search shows all of their revisions.
        """
        limit = max(4 * enough, _MIN_LIMIT)
        with_versions = self._needs_versions and bool(text.versions)
        searched = text.versions if with_versions else text.select
        window = self.searcher.newest_window(searched, low, high, limit, enough)
        if window is None or not text.versions or self._changed is None:
            return window
        unfinished = [candidate for candidate in window.candidates if version_of(candidate.spans[0])[0] < ROOT_REVISION]
        self._needs_versions = len(unfinished) > _FEW
        if with_versions:
            return window
        if self._needs_versions:
            return self.searcher.newest_window(text.versions, window.low, high, limit, enough)
        unfinished = [candidate for candidate in unfinished if self._is_open(candidate)]
        for candidate, decision in zip(unfinished, self.verifier.from_traces(unfinished), strict=True):
            self._add(candidate, decision)
        return window

    def _add_window(self, window: SearchWindow, complete_from: int) -> bool:
        """Verify what is new in a window, newest first, until the page is full; return whether it is.

        - complete_from: the sort time, in nanoseconds, from which on all runs of the list are in the windows so far.
        """
        self._note_missing(window)
        changed = self._changed or {}
        candidates = [candidate for candidate in window.candidates if candidate.trace_id not in changed]
        pending = [
            (_key(candidate), candidate) for candidate in (*candidates, *changed.values()) if self._is_open(candidate)
        ]
        lowest = max(complete_from, self._since)
        pending = [(key, candidate) for key, candidate in pending if lowest <= key[0] and key < self._before]
        pending.sort(key=lambda entry: entry[0], reverse=True)
        for start in range(0, len(pending), self._wanted):
            if self._checked >= _MAX_CHECKED and self._can_search_contents and self._search_contents():
                return True
            chunk = pending[start : start + self._wanted]
            self._checked += len(chunk)
            self.check_deadline()
            self._decide([candidate for _, candidate in chunk if self._is_open(candidate)])
            if self._is_full(complete_from, chunk[-1][0]):
                return True
        return self._is_full(complete_from)

    def _decide(self, candidates: Sequence[Candidate]) -> None:
        """Add the decisions on candidates."""
        unproved, unread = [], []
        for candidate in candidates:
            decision = None if self._changed is None else self.verifier.from_search(candidate)
            if decision is None:
                unproved.append(candidate)
            elif decision.needs_document:
                unread.append(candidate)
            else:
                self._add(candidate, decision)
        if self._changed is not None:
            ended = [candidate for candidate in unproved if version_of(candidate.spans[0])[0] >= ROOT_REVISION]
            self.searcher.needs_times = self.searcher.needs_times or len(ended) > _FEW
        if is_unfinished(self.query) and len(unproved) > _FEW:
            unproved = self._without_ended(unproved)
        unread += unproved
        for candidate, decision in zip(unread, self.verifier.from_traces(unread), strict=True):
            self._add(candidate, decision)

    def _is_open(self, candidate: Candidate) -> bool:
        """Return whether it is to be decided if a candidate is in the list."""
        trace_id = candidate.trace_id
        return trace_id not in self._decided and (self._matching is None or trace_id in self._matching)

    def _add(self, candidate: Candidate, decision: Decision) -> None:
        if decision.is_final:
            self._decided.add(candidate.trace_id)
        if decision.key is not None:
            self._items[candidate.trace_id] = decision.key, decision.summary
            if decision.text is not None:
                self._matches[decision.key[1]] = decision.text
        if decision.note:
            self._notes[decision.note] = decision.key or _key(candidate)

    def _without_ended(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates except for those of which a search finds the end, and no change after it."""
        if self._changed is None:
            return list(candidates)
        ids = [candidate.trace_id for candidate in candidates if candidate.trace_id not in self._changed]
        ended: set[bytes] = set()
        for start in range(0, len(ids), _IDS):
            text = ended_text(ids[start : start + _IDS]).find
            window = self.searcher.complete_window(text, EARLIEST, LATEST, _IDS + 1)
            if window is not None:
                ended.update(candidate.trace_id for candidate in window.candidates)
        self._decided |= ended
        return [candidate for candidate in candidates if candidate.trace_id not in ended]

    def _is_full(self, complete_from: int, after: SortKey = (-1, "")) -> bool:
        """Return whether more items than the page holds are certain: no other run can sort before them.

        - after: the last position that was decided.
        """
        lowest = max(complete_from, self._since)
        certain = [key for key, _ in self._items.values() if lowest <= key[0] and after <= key < self._before]
        return len(certain) >= self._wanted

    def _page(self) -> Page:
        items = [item for item in self._items.values() if self._since <= item[0][0] and item[0] < self._before]
        items.sort(reverse=True)
        shown = items[: self.query.limit]
        cursor = Cursor(*shown[-1][0]) if len(items) > len(shown) and shown else None
        last = shown[-1][0] if cursor is not None else (-1, "")
        notes = [note for note, key in self._notes.items() if key >= last]
        matches = {run_id: self._matches[run_id] for (_, run_id), _ in shown if run_id in self._matches}
        return Page([summary for _, summary in shown], cursor, limited_notes(notes), matches)
