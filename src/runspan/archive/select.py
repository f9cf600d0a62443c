"""Which runs go into an archive: all of a tenant before a moment, page by page, each document fetched and proved."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeVar

import msgspec
from tenacity import RetryCallState, Retrying, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from runspan.contracts import MAX_LIMIT, Cursor, RunQuery, TraceReader
from runspan.errors import BackendBusy, BackendUnreachable, NotFound, RateLimited, RunspanError, TraceIncomplete
from runspan.model.document import TERMINAL_RUN_STATUSES, sort_time
from runspan.model.run import Run
from runspan.sources.archive_manifest import SkipCount, UnfinishedArchive

T = TypeVar("T")

_FIRST_ID: Final = "\0"
"""Sorts before every run id that is usual, so that a cursor with it stands before all runs of its moment."""

GIVE_UP_AFTER: Final = 300.0
_BACKOFF: Final = wait_random_exponential(multiplier=0.5, max=30.0)
_SLICE: Final = 1.0
MAX_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class RetryingReader:
    """How a backend is asked. workers: documents fetched at once.

    sleep: waits between attempts, a second at a time. give_up: seconds for which a backend that is away or asks to wait
    is asked again; one that asks for more ends it at once. waiting: told why, and the seconds until the next attempt.
    """

    reader: TraceReader
    workers: int
    sleep: Callable[[float], None]
    give_up: float = GIVE_UP_AFTER
    waiting: Callable[[str, float], None] = lambda trouble, seconds: None

    def ask(self, question: Callable[[], T], ended: Callable[[], bool] = lambda: False) -> T:
        """The answer; a backend that is busy, limits the rate or is away for a moment is asked again.

        ended: whether nobody wants it any more; then the last error comes at once.
        """

        def sleep(seconds: float) -> None:
            while seconds > 0 and not ended():
                self.sleep(min(seconds, _SLICE))
                seconds -= _SLICE

        def stop(state: RetryCallState) -> bool:
            # Both clocks: attempts take time as well, and the sleep that tests pass in takes none.
            passed = max(state.seconds_since_start or 0.0, state.idle_for)
            return ended() or passed + state.upcoming_sleep > self.give_up

        def tell(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            self.waiting(str(error), state.upcoming_sleep)

        retrying = Retrying(
            retry=retry_if_exception_type((BackendBusy, BackendUnreachable, RateLimited)),
            stop=stop,
            wait=_pause,
            sleep=sleep,
            before_sleep=tell,
            reraise=True,
        )
        return retrying(question)


class SkippedRuns(NamedTuple):
    """A run that is not archived. kind: the member of ``Left`` that counts it. why: in words, empty where kind says
    it."""

    kind: str
    run_id: str
    why: str = ""

    def counted(self, left: UnfinishedArchive) -> UnfinishedArchive:
        """One run more that is left; some are named."""
        skips: SkipCount = getattr(left, self.kind)
        named = f"{self.run_id}: {self.why}" if self.why else self.run_id
        some = skips.some if len(skips.some) == MAX_NAMED else (*skips.some, named)
        return msgspec.structs.replace(left, **{self.kind: SkipCount(skips.runs + 1, some)})


class CollectedRun(NamedTuple):
    """What came of one item of the list. place: where the list goes on after it."""

    what: Run | SkippedRuns
    place: Cursor


def collect(
    reading: RetryingReader, query: RunQuery, *, after: Cursor, on_partial: Callable[[str], None]
) -> Iterator[CollectedRun]:
    """Everything of the list that sorts after a place, newest first, in its order.

    query: its tenant and ``since`` count. on_partial: told what the backend could not look at.
    """
    with ThreadPoolExecutor(reading.workers, thread_name_prefix="runspan-archive") as pool:
        stopping = threading.Event()
        try:
            yield from _fetched(reading, query, after, on_partial, pool, stopping)
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)


def before(moment: int) -> Cursor:
    """The place in a list before all runs that started earlier than a moment."""
    return Cursor(moment, _FIRST_ID)


def _fetched(
    reading: RetryingReader,
    query: RunQuery,
    after: Cursor,
    on_partial: Callable[[str], None],
    pool: ThreadPoolExecutor,
    stopping: threading.Event,
) -> Iterator[CollectedRun]:
    """Documents are fetched ahead of the one that is handed out, a few for each worker."""
    waiting: deque[tuple[Future[Run | SkippedRuns], Cursor]] = deque()
    for summary in _summaries(reading, query, after, on_partial):
        waiting.append((pool.submit(_document, reading, summary, query.tenant, stopping), summary.place))
        while len(waiting) > 4 * reading.workers:
            future, place = waiting.popleft()
            yield CollectedRun(future.result(), place)
    for future, place in waiting:
        yield CollectedRun(future.result(), place)


class _Summary(NamedTuple):
    run_id: str
    status: str
    place: Cursor


def _summaries(
    reading: RetryingReader, query: RunQuery, after: Cursor, on_partial: Callable[[str], None]
) -> Iterator[_Summary]:
    place: Cursor | None = after
    while place is not None:
        asked = replace(query, limit=MAX_LIMIT, cursor=place)
        page = reading.ask(lambda asked=asked: reading.reader.search(asked))  # type: ignore[misc]  # a default binds it
        for line in page.partial:
            on_partial(line)
        for item in page.items:
            yield _summary(item)
        place = page.cursor


def _summary(item: bytes) -> _Summary:
    """A list's item is a document of few members."""
    run = Run.from_json(item)
    return _Summary(run.id, run.status or "", Cursor(sort_time(run.envelope), run.id))


def _document(reading: RetryingReader, summary: _Summary, tenant: str, stopping: threading.Event) -> Run | SkippedRuns:
    """The run of a list's item, or why it is left. Raises what concerns the backend and not this run."""
    run_id = summary.run_id
    if summary.status not in TERMINAL_RUN_STATUSES:
        return SkippedRuns("unfinished", run_id)
    if stopping.is_set():
        return SkippedRuns("unreadable", run_id, "not looked at")
    try:
        document = reading.ask(lambda: reading.reader.document(run_id, tenant), stopping.is_set)
        if document.incomplete:
            return SkippedRuns("incomplete", run_id, "; ".join(document.incomplete[:3]))
        run = Run.from_json(document.text)
    except NotFound:
        return SkippedRuns("vanished", run_id)
    except TraceIncomplete as error:
        return SkippedRuns("incomplete", run_id, str(error))
    except (BackendBusy, BackendUnreachable, RateLimited):
        raise
    except RunspanError as error:
        return SkippedRuns("unreadable", run_id, str(error))
    return run if run.finished else SkippedRuns("unfinished", run_id)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, (BackendBusy, RateLimited)) else None
    return asked or _BACKOFF(state)
