"""``SqliteStore``: the embedded store as readers and writers see it, put together from its parts."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from runspan.backends.sqlite import retention
from runspan.backends.sqlite.compression import Compression, DictionaryTrainer, load_dictionaries
from runspan.backends.sqlite.ingest import Ingester
from runspan.backends.sqlite.reader import ConnectionPool, StoreReader
from runspan.backends.sqlite.retention import PurgeResult, purge
from runspan.backends.sqlite.schema import FILE_NAME, open_writer
from runspan.backends.sqlite.writer import GroupWriter
from runspan.contracts import Capabilities, Document, Page, RunQuery, WriteResult
from runspan.errors import StoreError
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES
from runspan.model.run import Run
from runspan.model.span import Span
from runspan.otlp.protobuf_reader import ParsedRequest
from runspan.storage.sqlite_file import store_error

UNFINISHED_RUN_STATUSES: Final = tuple(status for status in RUN_STATUSES if status not in TERMINAL_RUN_STATUSES)


@dataclass(frozen=True, slots=True)
class Stats:
    """What the store holds. bytes: of the database file and its log. fragments: spans that wait for others, or for a
    head that names them."""

    runs: int
    bytes: int
    foreign_spans: int
    fragments: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """runs: how many are pending, running or suspended. oldest: the earliest start among them, None without one."""

    runs: int
    oldest: int | None


_UNFINISHED = """
    WITH RECURSIVE tenants (tenant) AS (
        SELECT min(tenant) FROM runs
        UNION ALL
        SELECT (SELECT min(tenant) FROM runs WHERE runs.tenant > tenants.tenant)
        FROM tenants WHERE tenants.tenant IS NOT NULL
    )
    SELECT count(*), min(nullif(time, 0)) FROM tenants JOIN runs INDEXED BY runs_by_status
    ON runs.tenant = tenants.tenant AND runs.status IN (?, ?, ?)
"""
"""Hops from tenant to tenant in the index, and in each reads the few runs that have not ended."""


class SqliteStore:
    """Runs in one SQLite file in a directory, which is made when it is not there.

    A write that returned is on disk. The document of every run is kept as its canonical text; its own spans follow from
    it and are made again when asked for. Other spans are kept as they came.

    retention_days: runs that ended earlier are refused, and deleted by ``expire``; one that has not ended counts from
    when it was last written. None keeps everything.
    clock: nanoseconds since 1970.
    All methods may be called from several threads. A process must not fork while it has a store open.
    """

    capabilities = Capabilities(durable_writes=True, deletes=True, foreign_spans=True)

    def __init__(
        self,
        directory: Path | str,
        *,
        retention_days: float | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = Path(directory) / FILE_NAME
        connection = open_writer(self.path)
        compression = Compression()
        try:
            load_dictionaries(connection, compression)
        except sqlite3.Error as error:
            connection.close()
            raise store_error(error, self.path) from error
        self._retention = retention.Retention(retention_days)
        self._readers = ConnectionPool(self.path)
        self._reading = StoreReader(self._readers, compression)
        self._writer = GroupWriter(connection, self.path, DictionaryTrainer(compression))
        self._intake = Ingester(self._writer, compression, self._retention, clock, self._reading.revision)

    def document(self, run_id: str, tenant: str = "") -> Document:
        """See ``contracts.TraceReader``. StoreError when what is stored is damaged."""
        return self._reading.document(run_id, tenant)

    def spans(self, trace_id: bytes, tenant: str | None = None) -> list[Span]:
        """See ``contracts.TraceReader``. Of a run's trace, the foreign spans that its own tenant sent."""
        return self._reading.spans(trace_id, tenant)

    def search(self, query: RunQuery) -> Page:
        """See ``contracts.TraceReader``."""
        return self._reading.search(query)

    def resource(self, trace_id: bytes) -> bytes | None:
        """The serialized OTLP Resource that sent the run of a trace, None when it is not known."""
        row = self._reading.one(
            "SELECT content FROM runs JOIN resources ON resources.id = resource_id WHERE trace_id = ?", (trace_id,)
        )
        return None if row is None else bytes(row[0])

    def put(self, run: Run, *, tenant: str = "", observed_at: int) -> WriteResult:
        """See ``contracts.TraceWriter``."""
        return self._intake.put(run, tenant, observed_at)

    def write(self, received: ParsedRequest, tenant: str = "") -> WriteResult:
        """Takes the spans of an OTLP request from a sender of this tenant, in any order and split over requests.

        A run shows once its head and all steps that the head names have come. Runs of another tenant, and runs past
        retention, are rejected by name; the others of the request are taken.
        """
        return self._intake.write(received, tenant)

    def expire(self, now: int) -> int:
        """Deletes what is past retention at this time, gives the disk back, and tells how many runs went.

        Writes go on meanwhile.
        """
        return retention.expire(self._writer, self._retention, now)

    def purge(self, items: Sequence[tuple[bytes, str]], tenant: str = "") -> PurgeResult:
        """Deletes these runs of a tenant, in one transaction, while they are as somebody keeps them elsewhere.

        items: SHA-256 of the document's text, and run id. A run whose document is another now stays.
        """
        return self._writer.submit(lambda connection: purge(connection, items, tenant))

    def vacuum(self) -> None:
        """Gives the disk space of deleted runs back. Writes go on meanwhile."""
        retention.release_pages(self._writer)

    def stats(self) -> Stats:
        """Counts, for metrics."""
        runs, foreign_spans, fragments = self._reading.one(
            "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM foreign_spans), (SELECT count(*) FROM fragments)"
        )
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return Stats(runs, sum(file.stat().st_size for file in files if file.exists()), foreign_spans, fragments)

    def unfinished(self) -> Unfinished:
        """What has not ended, of all tenants. Takes time by the number of tenants and of such runs, not of all runs."""
        runs, oldest = self._reading.one(_UNFINISHED, [status.encode() for status in UNFINISHED_RUN_STATUSES])
        return Unfinished(runs, oldest)

    def stuck(self, before: int) -> int:
        """How many runs of all tenants a search with this ``stuck_before`` finds. Takes time by the number of runs that
        are pending or running."""
        statement = "SELECT count(*) FROM runs INDEXED BY live_runs WHERE observed_at < ?"
        return int(self._reading.one(statement, [before])[0])

    def check(self) -> None:
        """See ``contracts.TraceReader``: StoreError when reading fails or the writer is gone."""
        self._reading.one("SELECT 1 FROM runs LIMIT 1")
        if not self._writer.alive:
            raise StoreError("the writer has ended", where=str(self.path), hint="start the process again")

    def close(self) -> None:
        """Finishes the writes under way and closes the file. Calling it twice is allowed."""
        self._readers.close()
        # The last connection of all moves the log into the database, if it may write.
        self._writer.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
