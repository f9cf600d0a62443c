"""``Lists``: which page of the platform's lists is read next, and what is learned from it."""

from __future__ import annotations

from collections import deque
from typing import Final

from runspan.errors import BackendRefused, QueryError, RunspanError
from runspan.model.timestamps import SECOND
from runspan.platform_api import RunListItem, RunListPage
from runspan.sync.checkpoint import AT_ONCE, ListPosition, TrackedRun, TrackState
from runspan.sync.context import SyncContext
from runspan.sync.list_scan import ListFilter, ListScan
from runspan.sync.policy import GIVE_UP_AFTER, HOUR, SKEW, retry_at, since_parameter

RESUME_WITHIN: Final = HOUR
"""A walk that was cut off is gone on with if it began no longer ago: what it has passed may have changed since."""

MAX_RESTARTS: Final = 3


class ListCrawler:
    """Plans walks over the list of each filter, full ones and looks at the top, and writes down what they find.

    A first start, or one whose last full walk is long ago, begins with a full walk; a later one continues at the
    newest run that was known, however long ago that is, so that an outage leaves no hole. One that does not follow
    ends with a look at the top, for what arrived meanwhile.
    """

    def __init__(self, desk: SyncContext) -> None:
        self._desk = desk
        self._filters = desk.settings.filters
        self._walked = {each: desk.checkpoint.list_position(each.name) for each in self._filters}
        self._full: dict[ListFilter, ListScan] = {}
        self._top: dict[ListFilter, ListScan] = {}
        now, ticks = desk.clock(), desk.ticks()
        self._read_at = {each: ticks - max(0, now - walked.full_ended) for each, walked in self._known().items()}
        self._full_at: dict[ListFilter, int] = {}
        self._next_top = dict.fromkeys(self._filters, 0)
        self._once = deque(self._filters)
        self._asked: ListScan | None = None
        self._not_before = 0
        self._answered = {each for each, walked in self._walked.items() if walked.full_ended or walked.cursor}
        self._trouble = ""

    @property
    def done(self) -> bool:
        """Whether a sync that does not follow has read all that it wants to read."""
        return not (self._full or self._top or self._once)

    @property
    def walking(self) -> bool:
        """Whether a first full walk is under way and gets on: older runs than those that are known will come up."""
        first = [each for each in (*self._full, *self._once) if not self._walked[each].full_ended]
        return bool(first) and not self._trouble

    @property
    def polled(self) -> int | None:
        """When the list that waits the longest was last read to where it is known, None: one never was."""
        if len(self._read_at) < len(self._filters):
            return None
        return self._desk.clock() - (self._desk.ticks() - min(self._read_at.values()))

    def next(self, now: int) -> ListScan | None:
        """The walk whose next page is to be read, None when there is nothing to read now."""
        if self._asked is not None or self._desk.ticks() < self._not_before:
            return None
        self._begin(now)
        waiting = [*self._top.values(), *self._full.values()]  # what is new goes before what is old
        self._asked = waiting[0] if waiting else None
        return self._asked

    def take(self, sweep: ListScan, page: RunListPage) -> RunspanError | None:
        """Learns from a page. The error, if that is the end of the sync."""
        self._asked = None
        now = self._desk.clock()
        self._answered.add(sweep.filter)
        counts = self._desk.counts
        counts.pages += 1
        counts.odd += len(page.unusable)
        for text in page.unusable:
            self._desk.note(f"an item of the list has no usable id: {text}")
        for note in page.partial:
            self._desk.note(f"the list is incomplete: {note}")
        self._learn(sweep, page.items, now)
        try:
            ended = sweep.take(page)
        except ValueError as error:
            return self._again(sweep, BackendRefused(expected="the next page of the list", got=str(error)))
        sweep.failures, sweep.failing_since = 0, None
        self._trouble = ""
        walked = self._walked[sweep.filter]
        if sweep.full:
            walked.cursor, walked.top = sweep.cursor, max(walked.top, sweep.top)
        if ended:
            self._end(sweep, now)
        if ended or sweep.full:
            self._desk.checkpoint.save_list_position(sweep.filter.name, walked)
        return None

    def fail(self, sweep: ListScan, error: RunspanError) -> RunspanError | None:
        """A page could not be read. The error, if that is the end of the sync."""
        self._asked = None
        if isinstance(error, QueryError) and sweep.cursor is not None:
            if sweep.restarts >= MAX_RESTARTS:
                return error
            sweep.restart()
            return None
        if isinstance(error, (BackendRefused, QueryError)) and sweep.filter not in self._answered:
            return error  # a wrong address, or a filter that means nothing; else somebody stands before the platform
        return self._again(sweep, error)

    def _again(self, sweep: ListScan, error: RunspanError) -> RunspanError | None:
        now = self._desk.ticks()
        sweep.failures += 1
        sweep.failing_since = now if sweep.failing_since is None else sweep.failing_since
        self._not_before = retry_at(now, sweep.failures)
        self._trouble = str(error)
        settings = self._desk.settings
        if not settings.follow and now - sweep.failing_since > settings.give_up * SECOND:
            return error
        if sweep.failures == GIVE_UP_AFTER:
            self._desk.note(f"a page of the list cannot be read: {error}; trying again")
        return None

    def _begin(self, now: int) -> None:
        """Starts the walks that are due."""
        settings = self._desk.settings
        if self._desk.doubt:
            self._desk.doubt = False
            if not (self._top or self._full):
                self._top[self._filters[0]] = self._look(self._filters[0], now)
        for each in self._filters:
            if each in self._full and not settings.follow:
                continue
            first = each in self._once
            full_due = self._is_full_due(each, now)
            if each not in self._full and full_due and (first or settings.follow):
                self._full[each] = self._full_walk(each, now)
            elif each not in self._top and (first or (settings.follow and self._may_look(each))):
                self._top[each] = self._look(each, now)
            else:
                continue
            if first:
                self._once.remove(each)

    def _known(self) -> dict[ListFilter, ListPosition]:
        """The filters whose list was once read to its end."""
        return {each: walked for each, walked in self._walked.items() if walked.full_ended}

    def _is_full_due(self, each: ListFilter, now: int) -> bool:
        rescan = self._desk.settings.rescan
        if each in self._full_at:
            return self._desk.ticks() - self._full_at[each] >= rescan
        return not 0 <= now - self._walked[each].full_ended < rescan

    def _may_look(self, each: ListFilter) -> bool:
        """Whether the top of the list is to be looked at again. Before a first full walk has begun there is no top."""
        return self._next_top[each] <= self._desk.ticks() and self._newest(each) > 0

    def _full_walk(self, each: ListFilter, now: int) -> ListScan:
        walked, desk = self._walked[each], self._desk
        desk.checkpoint.spans.expire(now)
        if desk.settings.recheck:
            desk.checkpoint.reschedule((TrackState.ENDED,), since=now - desk.settings.recheck)
        if walked.under_way and walked.cursor and 0 <= now - walked.full_began < RESUME_WITHIN:
            since = since_parameter(walked.edge, now)
            return ListScan(each, walked.edge, True, walked.full_began, walked.cursor, walked.top, since)
        edge = 0 if desk.settings.since is None else max(0, now - desk.settings.since)
        if walked.newest:
            edge = min(edge, max(0, walked.newest - desk.settings.overlap))
        walked.full_began, walked.edge, walked.top, walked.cursor = now, edge, 0, None
        return ListScan(each, edge, True, now, since=since_parameter(edge, now))

    def _look(self, each: ListFilter, now: int) -> ListScan:
        newest = self._newest(each)
        edge = max(0, min(newest, now) - self._desk.settings.overlap)
        # Where the newest run is ahead of our clock, one of the two was wrong, and a window would begin too late.
        since = since_parameter(edge, now) if newest <= now + SKEW else None
        return ListScan(each, edge, False, now, since=since)

    def _newest(self, each: ListFilter) -> int:
        """Below which start nothing new is expected: known, or on the way of the full walk."""
        walked = self._walked[each]
        return max(walked.newest, walked.top if each in self._full else 0)

    def _end(self, sweep: ListScan, now: int) -> None:
        each, settings, ticks = sweep.filter, self._desk.settings, self._desk.ticks()
        walked = self._walked[each]
        self._desk.counts.sweeps += 1
        self._read_at[each] = ticks
        self._next_top[each] = ticks + settings.poll
        if sweep.full:
            del self._full[each]
            self._full_at[each] = ticks
            walked.full_ended, walked.cursor = max(now, walked.full_began + 1), None
            walked.newest = max(walked.newest, walked.top)
            if not settings.follow:
                self._top[each] = self._look(each, now)
        else:
            del self._top[each]
            if each in self._full:
                walked.top = max(walked.top, sweep.top)  # known once the full walk has come down to what was before
            else:
                walked.newest = max(walked.newest, sweep.top)

    def _learn(self, sweep: ListScan, items: tuple[RunListItem, ...], now: int) -> None:
        desk = self._desk
        known = desk.checkpoint.entries([item.run_id for item in items]) if items else {}
        for item in items:
            entry = desk.busy.get(item.run_id) or known.get(item.run_id)
            if entry is None:
                known[item.run_id] = entry = TrackedRun(item.run_id, item.time, listed=item.fingerprint)
                desk.counts.noticed += 1
                desk.checkpoint.save(entry)
                continue
            changed = item.fingerprint not in (entry.listed, entry.own)
            back = entry.state is TrackState.GONE and sweep.full and not sweep.began <= entry.changed_at <= now
            if not (changed or back or item.fingerprint != entry.listed):
                continue
            entry.listed, entry.time = item.fingerprint, item.time or entry.time
            if item.run_id in desk.busy:
                entry.again = entry.again or changed
                continue
            if changed or back:
                entry.due, entry.failures = AT_ONCE, 0
            desk.checkpoint.save(entry)
