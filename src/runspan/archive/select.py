"""Select the runs of an archive: all of a tenant before a moment, page by page, each document fetched and verified."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec
import tenacity

from runspan.contracts import MAX_LIMIT, Cursor, RunQuery, TraceReader
from runspan.errors import BackendBusy, BackendUnreachable, NotFound, RateLimited, RunspanError, TraceIncomplete
from runspan.http.retry import MAX_RETRY_AFTER
from runspan.model.document import Run, sort_time
from runspan.sources.archive import SkipCount, SkippedRuns
from runspan.sources.splitter import MAX_DOCUMENT

T = TypeVar("T")

RETRY_MAX_TIME: Final = 300.0
MAX_NAMED: Final = 20

_BACKOFF: Final = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)
_RETRYABLE: Final = (BackendBusy, BackendUnreachable, RateLimited)


@dataclass(frozen=True, slots=True)
class RetryingReader:
    """A backend that is asked again while it is busy, limits the rate, or is unreachable."""

    reader: TraceReader
    concurrency: int
    """Documents that are fetched at once."""
    retry_max_time: float = RETRY_MAX_TIME
    """Seconds after which the last error is raised. A longer Retry-After raises it at once."""
    on_retry: Callable[[str, float], None] = lambda error, seconds: None
    """Called with the error, and the seconds until the next attempt."""

    def call(self, request: Callable[[], T], stopping: threading.Event) -> T:
        """Return the result of a request. Once ``stopping`` is set, the last error is raised at once."""

        def report(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            self.on_retry(str(error), state.upcoming_sleep)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_RETRYABLE),
            stop=tenacity.stop_when_event_set(stopping) | tenacity.stop_before_delay(self.retry_max_time),
            wait=_wait,
            sleep=tenacity.sleep_using_event(stopping),
            before_sleep=report,
            reraise=True,
        )
        return retrying(request)


class SkippedRun(NamedTuple):
    """A run that is not archived."""

    kind: str
    """The member of ``SkippedRuns`` that counts it."""
    run_id: str
    reason: str = ""
    """Empty where the kind is the reason."""

    def added_to(self, skipped: SkippedRuns) -> SkippedRuns:
        """Return the counts with this run; the first runs are named."""
        before: SkipCount = getattr(skipped, self.kind)
        named = f"{self.run_id}: {self.reason}" if self.reason else self.run_id
        examples = before.examples if len(before.examples) == MAX_NAMED else (*before.examples, named)
        return msgspec.structs.replace(skipped, **{self.kind: SkipCount(before.runs + 1, examples)})


class CollectedRun(NamedTuple):
    """What came of one item of the list."""

    result: Run | SkippedRun
    cursor: Cursor
    """Where the list goes on after it."""


def collect(
    reader: RetryingReader, query: RunQuery, *, after: Cursor, on_partial: Callable[[str], None]
) -> Iterator[CollectedRun]:
    """Yield everything of the list after a cursor, newest first, and fetch some documents for each thread ahead.

    Of ``query`` the tenant and ``since`` count. ``on_partial`` is called with what the backend could not search.
    """
    pending: deque[tuple[Future[Run | SkippedRun], Cursor]] = deque()
    with ThreadPoolExecutor(reader.concurrency, thread_name_prefix="runspan-archive") as pool:
        stopping = threading.Event()
        try:
            for item in _items(reader, query, after, on_partial, stopping):
                future = pool.submit(_document, reader, item, query.tenant, stopping)
                pending.append((future, Cursor(sort_time(item.envelope), item.id)))
                while len(pending) > 4 * reader.concurrency:
                    future, cursor = pending.popleft()
                    yield CollectedRun(future.result(), cursor)
            for future, cursor in pending:
                yield CollectedRun(future.result(), cursor)
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)


def _items(
    reader: RetryingReader,
    query: RunQuery,
    after: Cursor,
    on_partial: Callable[[str], None],
    stopping: threading.Event,
) -> Iterator[Run]:
    """Yield the items of the list: documents of few members."""
    cursor: Cursor | None = after
    while cursor is not None:
        page_query = replace(query, limit=MAX_LIMIT, cursor=cursor)
        page = reader.call(partial(reader.reader.search, page_query), stopping)
        for line in page.partial:
            on_partial(line)
        yield from map(Run.from_json, page.items)
        cursor = page.cursor


def _document(reader: RetryingReader, item: Run, tenant: str, stopping: threading.Event) -> Run | SkippedRun:
    """Return the run of a list's item, or why it is skipped. Raise errors of the backend itself."""
    run_id = item.id
    if not item.finished:
        return SkippedRun("unfinished", run_id)
    if stopping.is_set():
        return SkippedRun("unreadable", run_id, "not fetched")
    try:
        document = reader.call(lambda: reader.reader.document(run_id, tenant), stopping)
        if document.incomplete:
            return SkippedRun("incomplete", run_id, "; ".join(document.incomplete[:3]))
        if len(document.text) > MAX_DOCUMENT:
            return SkippedRun("unreadable", run_id, f"larger than {MAX_DOCUMENT} bytes")
        run = Run.from_json(document.text)
    except NotFound:
        return SkippedRun("vanished", run_id)
    except TraceIncomplete as error:
        return SkippedRun("incomplete", run_id, str(error))
    except _RETRYABLE:
        raise
    except RunspanError as error:
        return SkippedRun("unreadable", run_id, str(error))
    return run if run.finished else SkippedRun("unfinished", run_id)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = (isinstance(error, RunspanError) and error.retry_after) or 0.0
    return min(asked, MAX_RETRY_AFTER) or _BACKOFF(state)
