"""Reads the platform's lists page by page: which page is next, and what it shows about the runs.

A list is newest first and moves while it is read: new runs appear at its top, others change, and a page may come twice.
So a run is identified by its id and never by its position, every scan overlaps the one before, and full scans find what
the others miss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runspan.errors import AccessError, BackendRefused, NotFound, QueryError, RunspanError
from runspan.model.timestamps import SECOND
from runspan.platform_api.schema import RunListItem, RunListPage
from runspan.sync.checkpoint import TrackedRun, TrackState
from runspan.sync.context import DAY, HOUR, MAX_FAILURES, MINUTE, ListFilter, SyncContext, retry_at

RESUME_WITHIN: Final = HOUR
"""An interrupted full scan is resumed only if it started within this time: earlier pages may have changed since."""

CURSOR_ATTEMPTS: Final = 2
"""Requests with a cursor that is refused before the scan begins at the top again: a gateway may have refused it."""

CLOCK_SKEW: Final = 5 * MINUTE
"""How far the platform's clock may differ from this one when it computes the start of a window."""

_LEASE_EVERY: Final = SECOND

_MAX_WORKFLOW: Final = 512
"""Characters of the id of a workflow by which it is leased. An index of PostgreSQL takes 2,704 bytes."""

_WINDOWS: Final = (("1h", HOUR), ("24h", DAY), ("7d", 7 * DAY), ("30d", 30 * DAY))
"""The values of ``since`` that the platform documents."""


@dataclass(slots=True)
class ListScan:
    """One scan of a list, from the newest run down to an edge; no I/O."""

    filter: ListFilter
    edge: int
    """The sort time below which runs are not read, in nanoseconds since 1970; 0: none."""
    full: bool
    """Whether it reads down to ``SyncConfig.since``, for changes of tracked runs. Otherwise it looks for new runs."""
    started: int
    """In nanoseconds since 1970."""
    cursor: str | None = None
    """Of the next page; None for the first."""
    after_page: int = 0
    """How many pages had ever been read when it started; 0 if it resumes another one."""
    newest: int = 0
    """The highest sort time on the first page; 0 before it was read."""
    since: str | None = None
    """The platform's window that reaches down to the edge. It stays the same, because cursors may depend on it."""
    failures: int = 0
    """Failed requests for the next page."""
    failing_since: int | None = None
    """The time of the first of them, from ``SyncContext.monotonic``."""
    not_before: int = 0
    """When to request the next page, in the same time."""
    waits: bool = False
    """Whether the runs that were listed are fetched before it begins at the top again."""
    pages: int = 0
    """Pages that were read since it began at the top."""
    most_pages: int = 0
    restarts: int = 0
    """How often it began again without reading more pages than ever before."""
    stuck_since: int | None = None
    """The time of the first of them."""
    seen_cursors: set[str] = field(default_factory=set)

    @property
    def failing(self) -> bool:
        """Whether it does not get on at the moment."""
        return bool(self.failures or self.waits)

    def restart(self, now: int) -> None:
        """Begin at the top again, because a cursor was refused. now: From ``SyncContext.monotonic``."""
        self.cursor, self.waits, self.pages = None, True, 0
        self.failures, self.failing_since = 0, None
        self.seen_cursors.clear()
        self.restarts += 1
        self.stuck_since = now if self.stuck_since is None else self.stuck_since
        self.not_before = retry_at(now, self.restarts)

    def advance(self, page: RunListPage) -> bool:
        """Move on to the next page. Return True if there is none, or if it would be below the edge.

        The scan ends only after a page that is entirely below the edge, because the order of runs that started at the
        same time is undefined. Raise ValueError if a cursor comes twice.
        """
        times = [item.time for item in page.items]
        if self.cursor is None and not self.newest:
            # A run with a start in the future would hide all runs that start before it.
            self.newest = min(max(times, default=0) or self.started, self.started)
        if page.cursor is None or (times and max(times) < self.edge):
            return True
        if page.cursor in self.seen_cursors or page.cursor == self.cursor:
            raise ValueError("a cursor came a second time")
        self.seen_cursors.add(page.cursor)
        self.cursor = page.cursor
        self.failures, self.failing_since = 0, None
        self.pages += 1
        if self.pages > self.most_pages:
            self.most_pages, self.restarts, self.stuck_since = self.pages, 0, None
        return False


class ListCrawler:
    """Plans the scans of each filter's list, full ones and of its top, and stores what they find.

    The first sync, or one whose last full scan is long ago, starts with a full scan. Later scans continue at the newest
    tracked run, however long ago that is, so that an outage leaves no gap. A sync that does not follow ends with a scan
    of the top, for runs that appeared meanwhile.
    """

    def __init__(self, context: SyncContext) -> None:
        self._context = context
        self._config = context.config
        self._pages_before = context.checkpoint.pages[0]
        self._has_lease = False
        self._lease_at = 0
        """When to try to lease the lists, from ``SyncContext.monotonic``."""
        self._full_scans: dict[ListFilter, ListScan] = {}
        self._top_scans: dict[ListFilter, ListScan] = {}
        self._requested: ListScan | None = None
        self._unread = set(context.config.filters)
        """The filters whose list this sync has not started to read."""
        self._load()

    @property
    def done(self) -> bool:
        """Whether a sync that does not follow has read all lists."""
        return not (self._full_scans or self._top_scans or self._unread)

    @property
    def first_scan_in_progress(self) -> bool:
        """Whether a first full scan makes progress, so that runs older than the tracked ones will be found."""
        if not self._has_lease:
            return not all(position.full_ended for position in self._positions.values())
        in_progress = [each for each, scan in self._full_scans.items() if not scan.failing]
        return any(not self._positions[each].full_ended for each in (*in_progress, *self._unread))

    @property
    def known_to_work(self) -> bool:
        """Whether a page was ever read, by this sync or an earlier one: the address, the key and a filter are right."""
        return bool(self._known_to_work)

    @property
    def polled_at(self) -> int | None:
        """When every list had been read, in nanoseconds since 1970; None if one never was, or another worker does."""
        if not self._has_lease or len(self._read_at) < len(self._positions):
            return None
        return self._context.clock() - (self._context.monotonic() - min(self._read_at.values()))

    def next_scan(self, now: int, *, has_backlog: Callable[[], bool]) -> ListScan | None:
        """Return the scan whose next page is to be requested; None if there is none at the moment.

        has_backlog: Whether listed runs can be fetched that were not yet.
        """
        if self._requested is not None or not self._lease():
            return None
        self._start_scans(now)
        monotonic = self._context.monotonic()
        for scan in (*self._top_scans.values(), *self._full_scans.values()):  # new runs before old ones
            if monotonic >= scan.not_before and not (scan.waits and has_backlog()):
                scan.waits = False
                self._requested = scan
                return scan
        return None

    def add_page(self, scan: ListScan, page: RunListPage) -> RunspanError | None:
        """Store what a page shows. Return the error if it ends the sync."""
        self._requested = None
        context, now = self._context, self._context.clock()
        self._known_to_work.add(scan.filter)
        context.counts.pages += 1
        context.checkpoint.add_page()
        context.counts.unusable += len(page.unusable)
        for text in page.unusable:
            context.log(f"a list item has no usable id: {text}")
        for note in page.partial:
            context.log(f"the list is incomplete: {note}")
        self._track(scan, page.items, now)
        try:
            ended = scan.advance(page)
        except ValueError as error:
            return self._retry(scan, BackendRefused(expected="the next page of the list", got=str(error)))
        position = self._positions[scan.filter]
        if scan.full:
            position.cursor, position.full_newest = scan.cursor, max(position.full_newest, scan.newest)
        if ended:
            self._end(scan, now)
        if ended or scan.full:
            context.checkpoint.save_list_position(scan.filter.name, position)
        return None

    def fail(self, scan: ListScan, error: RunspanError) -> RunspanError | None:
        """Schedule a page that could not be read. Return the error if it ends the sync."""
        self._requested = None
        if isinstance(error, NotFound):
            hint = "is this the base URL of the platform's API, or of a runspan server?"
            error = BackendRefused(expected="the list of runs", got=str(error), hint=hint)
        if isinstance(error, (AccessError, BackendRefused, QueryError)) and scan.filter not in self._known_to_work:
            return error  # a wrong address, key or filter; if the list worked before, it is a gateway in trouble
        if isinstance(error, QueryError) and scan.cursor is not None and scan.failures + 1 >= CURSOR_ATTEMPTS:
            return self._restart(scan, error)
        return self._retry(scan, error)

    def _lease(self) -> bool:
        """Return whether this worker reads the lists; it continues where another one ended."""
        context, now = self._context, self._context.monotonic()
        if not self._has_lease and now >= self._lease_at:
            self._lease_at = now + _LEASE_EVERY
            self._has_lease = context.checkpoint.lease_lists()
            self._load()
            if not self._config.follow:
                # Another worker, which may go on for ever, has read them for this sync too, in a scan that started
                # later: after a page that was read later.
                self._unread -= {
                    each
                    for each, at in self._positions.items()
                    if at.after_page > self._pages_before and at.full_ended >= at.full_started
                }
        return self._has_lease

    def _load(self) -> None:
        """Read how far the lists were read."""
        context, now, monotonic = self._context, self._context.clock(), self._context.monotonic()
        self._positions = {each: context.checkpoint.list_position(each.name) for each in self._config.filters}
        self._full_read_at = {
            each: monotonic - (now - position.full_ended)
            for each, position in self._positions.items()
            if 0 < position.full_ended <= now
        }
        self._read_at = dict(self._full_read_at)
        self._known_to_work = {each for each, at in self._positions.items() if at.full_ended or at.cursor}

    def _restart(self, scan: ListScan, error: QueryError) -> RunspanError | None:
        """Begin at the top again, because the platform has forgotten a cursor."""
        now, config = self._context.monotonic(), self._config
        got = f"a refused cursor of page {scan.pages + 1}: {error}"
        stuck = scan.stuck_since is not None and now - scan.stuck_since > config.retry_max_time * SECOND
        if stuck and not config.follow:
            hint = "the runs above it were fetched; the next sync reads the list again"
            return BackendRefused(expected="cursors that are valid until the end of the list", got=got, hint=hint)
        self._context.log(f"the list: {got}; reading it again from its top, after fetching the runs that it showed")
        scan.restart(now)
        if scan.full:
            position = self._positions[scan.filter]
            position.cursor = None
            self._context.checkpoint.save_list_position(scan.filter.name, position)
        return None

    def _retry(self, scan: ListScan, error: RunspanError) -> RunspanError | None:
        now = self._context.monotonic()
        scan.failures += 1
        scan.failing_since = now if scan.failing_since is None else scan.failing_since
        scan.not_before = retry_at(now, scan.failures)
        if not self._config.follow and now - scan.failing_since > self._config.retry_max_time * SECOND:
            return error
        if scan.failures == MAX_FAILURES:
            self._context.log(f"a page of the list cannot be read: {error}; trying again")
        return None

    def _start_scans(self, now: int) -> None:
        """Start the scans that are due."""
        if self.done and not self._config.follow:
            pages, wanted = self._context.checkpoint.pages
            if pages < wanted:
                first = self._config.filters[0]
                self._top_scans[first] = self._top_scan(first, now)
        for each in self._config.filters:
            unread = each in self._unread
            if not (unread or self._config.follow):
                continue
            if each not in self._full_scans and self._is_full_scan_due(each):
                self._full_scans[each] = self._full_scan(each, now)
            elif each not in self._top_scans and (unread or self._is_top_scan_due(each)):
                self._top_scans[each] = self._top_scan(each, now)
            self._unread.discard(each)

    def _is_full_scan_due(self, each: ListFilter) -> bool:
        config, read_at = self._config, self._full_read_at.get(each)
        interval = config.rescan if config.rescan is not None else HOUR if config.follow else 0
        return read_at is None or self._context.monotonic() - read_at >= interval

    def _is_top_scan_due(self, each: ListFilter) -> bool:
        read_at = self._read_at.get(each)
        is_due = read_at is None or self._context.monotonic() - read_at >= self._config.poll
        # Before the first page of a first full scan it is unknown where the top begins.
        return is_due and self._newest(each) > 0

    def _full_scan(self, each: ListFilter, now: int) -> ListScan:
        position, config, checkpoint = self._positions[each], self._config, self._context.checkpoint
        checkpoint.spans.expire(now)
        if config.recheck:
            checkpoint.reschedule(TrackState.ENDED, since=now - config.recheck)
        interrupted = position.full_started > position.full_ended and position.cursor
        if not (interrupted and 0 <= now - position.full_started < RESUME_WITHIN):
            edge = 0 if config.since is None else max(0, now - config.since)
            if position.newest:
                edge = min(edge, max(0, position.newest - config.overlap))
            position.full_started, position.edge, position.full_newest, position.cursor = now, edge, 0, None
        return ListScan(
            each,
            position.edge,
            full=True,
            started=position.full_started,
            after_page=0 if position.cursor else checkpoint.pages[0],
            cursor=position.cursor,
            newest=position.full_newest,
            since=since_parameter(position.edge, now),
        )

    def _top_scan(self, each: ListFilter, now: int) -> ListScan:
        newest = self._newest(each)
        edge = max(0, min(newest, now) - self._config.overlap)
        # If the newest run is ahead of this clock, one of the two clocks was wrong, and a window could start too late.
        since = since_parameter(edge, now) if newest <= now + CLOCK_SKEW else None
        pages, _ = self._context.checkpoint.pages
        return ListScan(each, edge, full=False, started=now, after_page=pages, since=since)

    def _newest(self, each: ListFilter) -> int:
        """Return the time until which all runs are tracked, or will be after the current full scan."""
        position = self._positions[each]
        return max(position.newest, position.full_newest if each in self._full_scans else 0)

    def _end(self, scan: ListScan, now: int) -> None:
        each, monotonic = scan.filter, self._context.monotonic()
        position = self._positions[each]
        self._context.counts.scans += 1
        self._read_at[each] = monotonic
        position.after_page = max(position.after_page, scan.after_page)
        if scan.full:
            del self._full_scans[each]
            self._full_read_at[each] = monotonic
            position.full_ended, position.cursor = max(now, position.full_started + 1), None
            position.newest = max(position.newest, position.full_newest)
            if not self._config.follow:
                self._top_scans[each] = self._top_scan(each, now)
        else:
            del self._top_scans[each]
            if each in self._full_scans:
                # There may be a gap below until the full scan has read it.
                position.full_newest = max(position.full_newest, scan.newest)
            else:
                position.newest = max(position.newest, scan.newest)

    def _track(self, scan: ListScan, items: tuple[RunListItem, ...], now: int) -> None:
        """Store new and changed runs."""
        context = self._context
        tracked = context.checkpoint.get([item.run_id for item in items])
        for item in items:
            run = tracked.get(item.run_id)
            if run is None:
                workflow = item.workflow_id[:_MAX_WORKFLOW]
                run = TrackedRun(item.run_id, item.time, list_fingerprint=item.fingerprint, workflow=workflow)
                tracked[item.run_id] = run
                context.counts.listed += 1
                context.checkpoint.save(run)
                continue
            changed = item.fingerprint not in (run.list_fingerprint, run.document_fingerprint)
            back = run.state is TrackState.GONE and scan.full and not scan.started <= run.changed_at <= now
            if changed or back or item.fingerprint != run.list_fingerprint:
                run.list_fingerprint, run.time = item.fingerprint, item.time or run.time
                context.checkpoint.list_changed(run, at_once=changed or back)


def since_parameter(edge: int, now: int) -> str | None:
    """Return the shortest of the platform's windows that reaches back to the edge; None if none does."""
    needed = now - edge + CLOCK_SKEW
    return next((name for name, length in _WINDOWS if length >= needed), None)
