"""``SqliteStore``: the embedded store as its readers and writers see it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from runspan import contracts
from runspan.backends.sqlite import counts, integrity, lists, queries, retention
from runspan.backends.sqlite.changes import Changer
from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.index import Index, stats_reader
from runspan.backends.sqlite.index.facts_index import damaged_run_ids
from runspan.backends.sqlite.index.indexer import DamagedIndex, IndexStats
from runspan.backends.sqlite.index.search import IndexedSearch, damaged_document_note
from runspan.backends.sqlite.ingest import Ingester
from runspan.backends.sqlite.integrity import Damage
from runspan.backends.sqlite.lists import Item, utf8
from runspan.backends.sqlite.queries import StoredRow, bytes_to_lines
from runspan.backends.sqlite.retention import ArrivalClock, PurgeReport, Retention
from runspan.backends.sqlite.revision import (
    RecentRevisions,
    StoredRevision,
    from_row,
    iter_spans,
    step_spans,
)
from runspan.backends.sqlite.schema import FILE_NAME, open_writer, use_directory
from runspan.backends.sqlite.waiting import Limits, relevant
from runspan.backends.sqlite.writer import GroupWriter
from runspan.codec.decode import verify_run
from runspan.codec.facts import summary_members
from runspan.codec.full_text import SEARCHED
from runspan.codec.semconv import read_error
from runspan.errors import DocumentError, NotFound, PayloadError, StoreError
from runspan.model.document import Run
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import rfc3339
from runspan.otlp.protobuf_reader import ParsedRequest, read_spans
from runspan.storage.sqlite_file import is_damage, open_read_only, store_error, translate_errors

PAGE_BYTES = 16 << 20
"""Bytes of summaries in one page of a list. A summary contains the run's error, which has no limit of its own."""

_VERSION_COLUMNS: Final = "run_id, tenant, incomplete, superseded, digest, revision"
_DOCUMENT: Final = f"SELECT document, {_VERSION_COLUMNS} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
_VERSION: Final = f"SELECT {_VERSION_COLUMNS} FROM runs WHERE trace_id = ?"  # noqa: S608 a constant
_RESOURCE: Final = "SELECT content FROM runs JOIN resources ON resources.id = resource_id WHERE trace_id = ?"
_MAX_MESSAGE: Final = 300
"""Characters of an error's message in statistics."""


class ConnectionPool:
    """Idle connections that cannot write. A pool and not one connection a thread: servers start threads per request.

    check_files: raises StoreError when the path leads to another file, which a new connection would open.
    on_damage: called for each read that SQLite or a row's values of other types than were stored show to be damaged.
    """

    def __init__(self, path: Path, check_files: Callable[[], None], on_damage: Callable[[], None]) -> None:
        self._path = path
        self._check_files = check_files
        self._on_damage = on_damage
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for this caller alone. Errors of SQLite and damaged text are raised as StoreError."""
        if self._closed:
            raise StoreError("the store is closed", where=str(self._path))
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                self._check_files()
                connection = open_read_only(self._path, pragmas=("cache_size = -8192",))
            try:
                with self.value_errors():
                    yield connection
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            if is_damage(error):
                self._on_damage()
            raise store_error(error, self._path) from error
        self._idle.append(connection)
        if self._closed:
            self.close()

    @contextmanager
    def value_errors(self) -> Iterator[None]:
        """Raise StoreError for values of other types than were stored, which a damaged row may have."""
        try:
            yield
        except (UnicodeDecodeError, AttributeError, TypeError) as error:
            self._on_damage()
            hint = "set it aside with `runspan check --set-aside`, then export the run again; or restore a backup"
            raise StoreError("a stored run is damaged", where=str(self._path), got=str(error), hint=hint) from None

    def close(self) -> None:
        """Close the idle connections; one in use is closed by its user."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


class SqliteStore:
    """Runs in one SQLite file in a directory, which is created when it does not exist.

    A write that returned is on disk. The document of every run is stored as its canonical text, and its own spans are
    made from it when they are read. Other spans are stored as they arrived.

    retention_days: runs that ended earlier are rejected, and deleted by ``expire``; a run that has not ended counts
    from when it was last written. None keeps everything.
    max_expire_share: the largest share of the runs that ``expire`` deletes at once, see ``Retention``; 1 is no limit.
    limits: how large a run, and what waits for other spans, may be.
    index: True keeps an index of what lists are filtered and sorted by, False keeps none, None leaves that as it is in
    the directory; see ``index.Index``.
    clock: nanoseconds since 1970. monotonic: nanoseconds of a clock that nobody sets.
    All methods may be called from several threads. A process must not fork while it has a store open.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        retention_days: float | None = None,
        max_expire_share: float = 1.0,
        limits: Limits | None = None,
        index: bool | None = None,
        clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.path = Path(directory) / FILE_NAME
        self.capabilities = contracts.Capabilities(
            durable_writes=True, deletes=True, foreign_spans=True, searches=SEARCHED if index else ""
        )
        self._compression = Compression()
        self._recent = RecentRevisions()
        self._retention = Retention(retention_days, max_expire_share, monotonic)
        self._training: threading.Thread | None = None
        self._damaged_reads = 0
        self._counting = threading.Lock()
        with ExitStack() as stack:
            self._use = stack.enter_context(closing(use_directory(self.path)))
            connection = stack.enter_context(closing(open_writer(self.path)))
            with translate_errors(self.path):
                self._compression.load(connection)
                arrival_clock = ArrivalClock(clock, connection)
                with suppress(StoreError):  # ``expire`` raises it
                    self._retention.cutoff(connection, clock())
                self._writer = GroupWriter(connection, self.path, self._committed)
            self._readers = stack.enter_context(
                closing(ConnectionPool(self.path, self._writer.check_files, self._count_damage))
            )
            self._index = Index(self.path.parent, self._writer, self._readers.connection, self._compression, keep=index)
            stack.pop_all()
        limits = limits or Limits()
        self._ingester = Ingester(
            self._writer,
            self._readers.connection,
            Changer(self._writer, self._readers.connection, limits),
            self._compression,
            self._retention,
            limits,
            arrival_clock,
            self._revision,
            self._fragment,
            self._recent,
        )

    # Reading.

    def document(self, run_id: str, tenant: str = "") -> contracts.Document:
        """See ``contracts.TraceReader``. Raise StoreError when the stored run is damaged."""
        trace_id = _trace_id(run_id, tenant)
        with self._readers.connection() as connection:
            row = connection.execute(_DOCUMENT, (trace_id,)).fetchone()
            if row is None:
                # Read both in one snapshot: between two, the fragments may become the run.
                with _snapshot(connection):
                    row = connection.execute(_DOCUMENT, (trace_id,)).fetchone()
                    waiting = None if row is not None else queries.waiting(connection, trace_id, tenant)
                    if waiting is not None:
                        found = relevant(connection, self._fragment, trace_id, tenant, waiting)
            if row is not None:
                frame, *columns = row
                version = self._version(run_id, tenant, *columns)
                text = self._content(connection, frame, "run", f"run {run_id}")
                return contracts.Document(
                    text, version.incomplete, version.conflict, version.digest, observed_at=version.observed_at
                )
        if waiting is None:
            raise _not_found(f"run {run_id}")
        # It raises TraceIncomplete, or they would not be fragments.
        verified = verify_run([*found.stand_ins, *[span for item in found.fragments for span in item.spans]])
        seen = contracts.live_observed_time(verified.revision)
        return contracts.Document(verified.run.text, verified.incomplete, verified.conflict, observed_at=seen)

    def version(self, run_id: str, tenant: str = "") -> contracts.DocumentVersion | None:
        """Return the version of the document without reading it, None if it is made of spans that wait, or not there.

        Raise StoreError when the index leads to another run.
        """
        row = self._fetch_one(_VERSION, (_trace_id(run_id, tenant),))
        return None if row is None else self._version(run_id, tenant, *row)

    def _version(
        self,
        run_id: str,
        tenant: str,
        stored_id: bytes,
        owner: bytes,
        incomplete: bytes | None,
        superseded: bytes | None,
        digest: bytes,
        revision: int,
    ) -> contracts.DocumentVersion:
        """Return the version in a row of ``_VERSION_COLUMNS``."""
        self._require_run(run_id, tenant, stored_id, owner)
        conflict = queries.conflicting_digests(superseded, digest)
        return contracts.DocumentVersion(
            digest.hex(), bytes_to_lines(incomplete), conflict, contracts.live_observed_time(revision)
        )

    def _require_run(self, run_id: str, tenant: str, stored_id: bytes, owner: bytes) -> None:
        if (stored_id, owner) != (run_id.encode(), tenant.encode()):
            raise self._damaged("run", f"run {run_id}", "another run where the index leads")

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``contracts.TraceReader``. Of a run's trace, return the foreign spans of the run's own tenant only."""
        return list(self.iter_spans(trace_id, tenant))

    def iter_spans(self, trace_id: bytes, tenant: str | None = None) -> Iterator[Span]:
        """Return an iterator over the spans of ``spans``, which makes those of the run one by one."""
        with self._readers.connection() as connection, _snapshot(connection):
            stored = queries.stored_run(connection, trace_id)
            if stored is not None and _trace_id(stored.run_id, stored.tenant) != trace_id:
                raise self._damaged("run", f"trace {trace_id.hex()}", "another run where the index leads")
            if stored is not None and tenant not in (None, stored.tenant):
                stored = None
            tenant = stored.tenant if stored is not None else tenant
            rows = queries.fragments(connection, trace_id, tenant)
            fragments = [span for _, kind, content in rows for span in self._fragment(connection, kind, content)]
            foreign = [
                self._content(connection, frame, "span", f"trace {trace_id.hex()}")
                for frame in queries.foreign_spans(connection, trace_id, tenant)
            ]
            revision = None if stored is None else self._revision(connection, stored)
        if revision is None and not fragments and not foreign:
            raise _not_found(f"trace {trace_id.hex()}")
        return _joined(revision, fragments, foreign)

    def run_spans(self, run_id: str, tenant: str = "") -> list[Span]:
        """See ``contracts.TraceReader``."""
        return self.spans(_trace_id(run_id, tenant), tenant)

    def search(self, query: contracts.RunQuery) -> contracts.Page:
        """See ``contracts.TraceReader``. A page also ends before the summary that would exceed ``PAGE_BYTES``.

        A damaged list item is left out, and ``partial`` contains its run id. Raise QueryUnsupported for a filter or
        order that needs an index if the store keeps none.
        """
        if query.needs_index:
            try:
                return self._search_index(query)
            except DamagedIndex:  # it was made anew
                return self._search_index(query)
        notes: list[str] = []
        with self._readers.connection() as connection, ExitStack() as opened:
            few_ended = query.is_by_end and lists.have_few_ended(connection, query)
            found = []
            for statement, values, is_sorted in lists.statements(query, few_ended=few_ended):
                rows = self._sound(opened.enter_context(closing(connection.execute(statement, values))), query, notes)
                found.append(rows if is_sorted else lists.sorted_by_run_id(rows, query.limit + 1))
            merged = found[0] if len(found) == 1 else merge(*found, key=itemgetter(1, 0), reverse=True)
            return self._page(merged, query, notes)

    def _page(self, rows: Iterable[Item], query: contracts.RunQuery, notes: list[str]) -> contracts.Page:
        """Return a page of rows, which are sorted.

        notes: lines of ``partial``, to which reading the rows adds further.
        """
        items: list[bytes] = []
        size = 0
        last: tuple[int, bytes] | None = None
        has_more = False
        for run_id, value, summary, _, incomplete, superseded, digest in rows:
            size += len(summary)
            if items and (len(items) == query.limit or size > PAGE_BYTES):
                has_more = True
                break
            items.append(summary)
            last = value, run_id
            if incomplete or superseded:
                with self._readers.value_errors():  # here, since these are no errors of the index
                    notes += _version_notes(run_id, incomplete, superseded, digest)
        cursor = contracts.Cursor(last[0], last[1].decode(), query.order) if has_more and last is not None else None
        return contracts.Page(items, cursor, contracts.limited_notes(notes))

    def _search_index(self, query: contracts.RunQuery) -> contracts.Page:
        """Return the page of a query that needs the index, once that has what the store has now."""
        search = IndexedSearch(query, self._readers.connection, self._content, self._count_damage)
        with self._caught_up_index(query.tenant, search.notes) as connection:
            page = self._page(search.runs(connection), query, search.notes)
        if search.matches or search.next_page is not None:
            listed = [summary_members(item).id for item in page.items]
            matches = {run_id: search.matches[run_id] for run_id in listed if run_id in search.matches}
            page = replace(page, cursor=page.cursor or search.next_page, matches=matches)
        if search.changed:
            with suppress(StoreError):  # the next list that finds them tries again
                self._index.correct(search.changed)
        return page

    def run_stats(self, query: contracts.StatsQuery) -> contracts.StatsPage:
        """See ``contracts.TraceReader``. Raise QueryUnsupported if the store keeps no index."""
        try:
            return self._run_stats(query)
        except DamagedIndex:  # it was made anew
            return self._run_stats(query)

    def _run_stats(self, query: contracts.StatsQuery) -> contracts.StatsPage:
        notes: list[str] = []
        with self._caught_up_index(query.tenant, notes) as connection, _snapshot(connection):
            page = stats_reader.read(connection, query, self._failed_run)
        return replace(page, partial=contracts.limited_notes(notes))

    @contextmanager
    def _caught_up_index(self, tenant: str, notes: list[str]) -> Iterator[sqlite3.Connection]:
        """Yield a connection to the index once that has what the store has now; add what it lacks to the notes."""
        left = self._index.catch_up()
        if left:
            notes.append(f"{left} runs that the index does not have yet: it is being made, so try again later")
        with self._index.connection() as connection:
            for run_id in damaged_run_ids(connection, tenant):
                notes.append(damaged_document_note(run_id.decode(errors="replace")))
            yield connection

    def _failed_run(self, trace_id: bytes) -> contracts.FailedRun | None:
        row = self._fetch_one("SELECT run_id, time, summary FROM runs WHERE trace_id = ?", (trace_id,))
        if row is None:
            return None
        run_id, time, summary = row
        message = read_error(summary_members(summary).error, "").message
        return contracts.FailedRun(run_id.decode(), rfc3339(time), message[:_MAX_MESSAGE])

    def _sound(self, rows: Iterable[Item], query: contracts.RunQuery, partial: list[str]) -> Iterator[Item]:
        """Yield the rows whose checksum is right. ``partial`` gets a note of each other."""
        tenant = utf8(query.tenant)
        for row in rows:
            run_id, sort_time, summary, checksum, *_ = row
            if queries.summary_checksum(tenant, run_id, sort_time, summary) == checksum:
                yield row
            else:
                self._count_damage()
                partial.append(contracts.damaged_note(run_id.decode(errors="replace")))

    def resource(self, trace_id: bytes) -> bytes | None:
        """Return the serialized OTLP Resource that sent the run of a trace, None when it is not known."""
        row = self._fetch_one(_RESOURCE, (trace_id,))
        return None if row is None else bytes(row[0])

    def stats(self) -> counts.Stats:
        """See ``counts.stats``."""
        with self._readers.connection() as connection:
            return counts.stats(connection, self.path, self._retention.overdue)

    def unfinished(self) -> counts.Unfinished:
        """See ``counts.unfinished``."""
        with self._readers.connection() as connection:
            return counts.unfinished(connection)

    def stuck(self, before: int, max_age: int) -> list[counts.Stuck]:
        """See ``counts.stuck``."""
        with self._readers.connection() as connection:
            return counts.stuck(connection, before, max_age)

    def suspended(self, since: int) -> dict[str, int]:
        """See ``counts.suspended``."""
        with self._readers.connection() as connection:
            return counts.suspended(connection, since)

    def index_stats(self) -> IndexStats | None:
        """Return what the index lacks and takes, for metrics; None unless this store keeps it up to date."""
        return self._index.stats()

    @property
    def damaged_reads(self) -> int:
        """How many runs, list items and spans were refused since the start because what is stored of them is damaged;
        one that is read again counts again."""
        return self._damaged_reads

    def check(self) -> None:
        """See ``contracts.TraceReader``. Raise StoreError when reading fails, or no write would succeed."""
        self._fetch_one("SELECT 1 FROM runs LIMIT 1")
        self._writer.check()

    # Writing.

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> contracts.WriteResult:
        """See ``contracts.TraceWriter``."""
        return self._ingester.put(run, tenant, observed_at)

    def write(self, received: ParsedRequest, tenant: str = "") -> contracts.WriteResult:
        """Store the spans of an OTLP request from a sender of this tenant, in any order and in any number of requests.

        A run is listed once its revision span and all steps of its manifest have arrived. Runs of another tenant and
        runs past retention are rejected with their ids; the others of the request are stored.
        """
        return self._ingester.write(received, tenant)

    def expire(self, now: int) -> int:
        """Delete what is past retention at this time and free the disk space; return how many runs were deleted.

        Other writes continue meanwhile. Raise StoreError, and delete nothing, when the share of such runs exceeds
        ``max_expire_share``.
        """
        return retention.expire(self._writer, self._retention, now)

    @property
    def is_full(self) -> bool:
        """Whether the last write failed because no space was left."""
        return self._writer.is_full

    def purge(self, items: Sequence[tuple[bytes, str]], tenant: str = "") -> PurgeReport:
        """Delete these runs of a tenant, each in the transaction that finds its document unchanged.

        items: SHA-256 of the document's text, and run id.
        """
        return retention.purge(self._writer, items, tenant)

    def vacuum(self) -> None:
        """Free the disk space of deleted runs. Other writes continue meanwhile."""
        retention.release_pages(self._writer)

    # Checking.

    def count_rows(self) -> int:
        """Return how many rows ``find_damage`` checks, about."""
        with self._readers.connection() as connection:
            return integrity.count_rows(connection)

    def find_damage(self, on_progress: integrity.OnProgress = lambda rows: None) -> Iterator[Damage]:
        """Yield what is damaged in the state that the store has now; see ``integrity.find_damage``.

        Reads and writes continue meanwhile; the write-ahead log grows until the iterator ends.
        """
        with translate_errors(self.path), closing(open_read_only(self.path)) as connection:
            yield from integrity.find_damage(connection, self._compression, on_progress)

    def index_faults(self) -> list[str]:
        """Return some of what is damaged in the index, which can be deleted, since it is made from the store."""
        return self._index.faults()

    def repair(self, damage: Damage) -> bool:
        """Make an index, sums, a list item or a hint from what is sound; return whether that was possible."""
        return self._writer.submit(partial(integrity.repair, compression=self._compression, damage=damage))

    def take_out(self, damages: Sequence[Damage], keep: Callable[[list[bytes]], None]) -> int:
        """Move damaged rows out of the store in one transaction; return how many.

        keep: Called with the rows as lines of JSON, which it must have written to the disk when it returns. It may be
        called again with the same rows.
        """

        def work(connection: sqlite3.Connection) -> int:
            found = [integrity.take_out(connection, self._compression, damage) for damage in damages]
            lines = [line for line in found if line is not None]
            if lines:
                keep(lines)
            return len(lines)

        return self._writer.submit(work)

    def close(self) -> None:
        """Finish the current writes and close the file. Calling it twice is allowed."""
        if self._training is not None:
            self._training.join()
        self._index.close()
        self._readers.close()
        # The last connection to close moves the log into the database, if it may write.
        self._writer.close()
        self._use.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _committed(self, connection: sqlite3.Connection) -> None:
        """Do what follows a commit."""
        self._index.store_changed()
        self._train_when_due(connection)

    def _train_when_due(self, connection: sqlite3.Connection) -> None:
        """Train the dictionary, and use it, in a thread of its own: it takes as long as a hundred writes."""
        if self._compression.is_due(connection):
            self._training = threading.Thread(target=self._train, name="runspan-dictionary")
            self._training.start()

    def _train(self) -> None:
        with suppress(StoreError), self._readers.connection() as connection:  # without one, frames are only larger
            content = self._compression.train(connection)
            if content is not None:
                self._writer.submit(lambda writing: self._compression.add(writing, content))
                self._compression.load(connection)
                last = connection.execute("SELECT max(id) FROM runs").fetchone()[0] or 0
                row: int | None = 0
                while row is not None:
                    row = self._writer.submit(partial(self._compression.recompress, after=row, last=last))

    def _content(self, connection: sqlite3.Connection, frame: bytes, kind: str, where: str) -> bytes:
        """Return the content of a stored frame. Raise StoreError when its checksum is wrong."""
        try:
            return self._compression.decompress(frame, connection)
        except CorruptFrame as error:
            raise self._damaged(kind, where, str(error)) from None

    def _count_damage(self) -> None:
        with self._counting:
            self._damaged_reads += 1

    def _damaged(self, kind: str, where: str, got: str) -> StoreError:
        """Return the error of something that is damaged, and count it."""
        self._count_damage()
        hint = "set it aside with `runspan check --set-aside`, then export the run again; or restore a backup"
        return StoreError(f"the stored {kind} is damaged", where=f"{self.path} {where}", got=got, hint=hint)

    def _revision(self, connection: sqlite3.Connection, stored: StoredRow) -> StoredRevision:
        """Return the revision of a stored run. Raise StoreError when its columns do not fit together."""
        trace_id = run_ids(stored.run_id, stored.tenant).trace_id
        row, recent = self._recent.get(trace_id) or (None, None)
        if recent is not None and row == stored:
            return recent
        run = Run.from_json(self._content(connection, stored.document, "run", f"run {stored.run_id}"))
        try:
            revision = from_row(run, stored.tenant, stored.revision, stored.step_ids, stored.time, stored.document)
        except ValueError as error:
            self._count_damage()
            raise StoreError(
                "the stored run cannot be made into spans again",
                where=f"{self.path} run {stored.run_id}",
                got=str(error),
                hint="set it aside with `runspan check --set-aside`, then export the run again",
            ) from None
        self._recent.add(trace_id, stored, revision)
        return revision

    def _fragment(self, connection: sqlite3.Connection, kind: int, content: bytes) -> list[Span]:
        """Return the spans of a fragment. Raise StoreError when it is damaged."""
        try:
            if kind != queries.SUPERSEDED:
                return read_spans(content)
            tenant, time, span_ids, frame = queries.superseded_content(content)
            run = Run.from_json(self._content(connection, frame, "step", "superseded steps"))
            return step_spans(from_row(run, tenant, 0, span_ids, time))
        except (ValueError, DocumentError, PayloadError) as error:
            raise self._damaged("span", "spans that wait", str(error)) from None

    def _fetch_one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a statement, None without one."""
        with self._readers.connection() as connection:
            return connection.execute(statement, values).fetchone()


def _joined(revision: StoredRevision | None, fragments: Sequence[Span], foreign: Sequence[bytes]) -> Iterator[Span]:
    """Yield the spans of a revision, the fragments, and the foreign spans that are none of the revision's."""
    own_ids: set[bytes] = set()
    for span in iter_spans(revision) if revision is not None else ():
        if foreign:
            own_ids.add(span.span_id)
        yield span
    yield from fragments
    for otlp in foreign:
        yield from [span for span in read_spans(otlp) if span.span_id not in own_ids]


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Read everything in the block from one state of the store."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _version_notes(run_id: bytes, incomplete: bytes | None, superseded: bytes | None, digest: bytes) -> Iterator[str]:
    """Yield the lines of ``partial`` about a run of which other documents are known."""
    if incomplete:
        yield contracts.older_revision_note(run_id.decode(), bytes_to_lines(incomplete))
    if superseded and (conflict := queries.conflicting_digests(superseded, digest)):
        yield contracts.conflict_note(run_id.decode(), conflict)


def _trace_id(run_id: str, tenant: str) -> bytes:
    try:
        return run_ids(run_id, tenant).trace_id
    except UnicodeEncodeError:
        raise _not_found(f"run {run_id!a}") from None


def _not_found(what: str) -> NotFound:
    return NotFound("not in this store", where=what, hint="it was never sent here, or is past retention")
