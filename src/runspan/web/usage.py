"""``UsageStore``: what each tenant has sent on a day, and the quotas of it, in an SQLite file next to the API keys.

A request is counted before it is written, in one transaction that compares it with the quota, so that requests at the
same time never exceed one together. What could not be written is taken back. The file is synced less often than the
store: a power failure may lose the counts of the last seconds, a killed process loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from runspan.errors import RateLimited
from runspan.model.timestamps import SECOND, rfc3339
from runspan.storage.sqlite_file import Schema, SharedDatabase, transaction, translate_errors

USAGE_FILE: Final = "usage.sqlite3"
_DAY: Final = 86_400 * SECOND
_ID_BYTES: Final = 8
_FORGOTTEN: Final = 1000
"""Runs of earlier days that a request deletes."""
MAX_TENANTS: Final = 100
"""Tenants with metrics of their own."""
_TABLES: Final = (
    """
    CREATE TABLE usage (
        day INTEGER NOT NULL, tenant TEXT NOT NULL, runs INTEGER NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (day, tenant)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE counted_runs (
        day INTEGER NOT NULL, tenant TEXT NOT NULL, run BLOB NOT NULL, PRIMARY KEY (day, tenant, run)
    ) STRICT, WITHOUT ROWID
    """,
)
_SCHEMA: Final = Schema(
    name="the file of usage",
    application_id=0x72737573,
    version=1,
    tables=_TABLES,
    hint="choose another data directory",
)
_ADD: Final = (
    "INSERT INTO usage VALUES (?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET runs = max(0, runs + excluded.runs), bytes = max(0, bytes + excluded.bytes)"
)
_FORGET: Final = (
    "DELETE FROM counted_runs WHERE (day, tenant, run) IN (SELECT day, tenant, run FROM counted_runs WHERE day < ?"
    " ORDER BY day LIMIT ?)"
)


class Quota(NamedTuple):
    """What a tenant may send on a day, in UTC; 0 for no limit."""

    runs: int = 0
    """Runs of which something is sent; each counts once a day."""
    bytes: int = 0
    """Bytes of request bodies, decompressed."""


_NO_QUOTA: Final = Quota()


@dataclass(frozen=True, slots=True)
class Quotas:
    """The quotas of all tenants."""

    default: Quota = _NO_QUOTA
    of_tenants: Mapping[str, Quota] = field(default_factory=dict)
    """The quotas of single tenants, in place of the default."""

    def of(self, tenant: str) -> Quota:
        """Return the quota of a tenant."""
        return self.of_tenants.get(tenant, self.default)


class Usage(NamedTuple):
    """What a tenant has sent today."""

    tenant: str
    """Empty for runs without a tenant, and for the tenants beyond ``MAX_TENANTS`` together."""
    runs: int
    bytes: int


class UsageStore(SharedDatabase):
    """The usage of all tenants of one data directory. Thread-safe, and safe to use from several processes at once."""

    def __init__(
        self, path: Path | str | None, quotas: Quotas | None = None, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        """``path``: None keeps it in memory. ``clock``: nanoseconds since 1970."""
        super().__init__(path, _SCHEMA)
        self.quotas = quotas or Quotas()
        self._clock = clock
        self.execute("PRAGMA synchronous = NORMAL")
        self.execute("PRAGMA secure_delete = ON")

    @contextmanager
    def charged(self, tenant: str, trace_ids: Collection[bytes], size: int) -> Iterator[None]:
        """Count a request of so many bytes with parts of these runs while it is written; not if the block raises.

        Raises RateLimited, and counts nothing, if it exceeds a quota. A run that was counted today is not counted
        again, so what goes on can end.
        """
        day = self._clock() // _DAY
        runs = self._charge(day, tenant, {trace_id[:_ID_BYTES] for trace_id in trace_ids}, size)
        try:
            yield
        except BaseException:
            with self._transaction():
                self._forget_runs(day, tenant, runs)
                self._connection.execute(_ADD, (day, tenant, -len(runs), -size))
            raise

    def today(self) -> Sequence[Usage]:
        """Return the usage of the tenants that have sent the most bytes today, and of the others together."""
        rows = self.execute(
            "SELECT tenant, runs, bytes FROM usage WHERE day = ? ORDER BY bytes DESC, tenant", self._clock() // _DAY
        )
        found = {tenant: Usage(tenant, runs, size) for tenant, runs, size in rows[:MAX_TENANTS]}
        for _, runs, size in rows[MAX_TENANTS:]:
            others = found.get("", Usage("", 0, 0))
            found[""] = Usage("", others.runs + runs, others.bytes + size)
        return list(found.values())

    def erase(self, tenant: str) -> None:
        """Forget a tenant, so that the file has none of its bytes."""
        with self._transaction():
            for table in ("usage", "counted_runs"):
                self._connection.execute(f"DELETE FROM {table} WHERE tenant = ?", (tenant,))  # noqa: S608 constants
        self.execute("VACUUM")
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _charge(self, day: int, tenant: str, runs: set[bytes], size: int) -> set[bytes]:
        """Count a request; return the runs that were not counted before."""
        quota = self.quotas.of(tenant)
        with self._transaction():
            execute = self._connection.execute
            used = execute("SELECT runs, bytes FROM usage WHERE day = ? AND tenant = ?", (day, tenant)).fetchone()
            used_runs, used_bytes = used or (0, 0)
            insert = "INSERT OR IGNORE INTO counted_runs VALUES (?, ?, ?)"
            new = {run for run in runs if execute(insert, (day, tenant, run)).rowcount}
            if quota.runs and new and used_runs + len(new) > quota.runs:
                raise self._exceeded(day, tenant, "runs", quota.runs, used_runs, len(new))
            if quota.bytes and used_bytes + size > quota.bytes:
                raise self._exceeded(day, tenant, "bytes", quota.bytes, used_bytes, size)
            execute(_ADD, (day, tenant, len(new), size))
            execute(_FORGET, (day - 1, _FORGOTTEN))
            execute("DELETE FROM usage WHERE day < ?", (day - 1,))
        return new

    def _exceeded(self, day: int, tenant: str, what: str, quota: int, used: int, more: int) -> RateLimited:
        reset = (day + 1) * _DAY
        return RateLimited(
            f"the quota of {what} a day is used up",
            where=f"tenant {tenant!r}" if tenant else "runs without a tenant",
            expected=f"at most {quota} {what} a day",
            got=f"{used} today, and {more} more in this request",
            retry_after=max(1.0, (reset - self._clock()) / SECOND),
            hint=f"it resets at {rfc3339(reset)}",
        )

    def _forget_runs(self, day: int, tenant: str, runs: set[bytes]) -> None:
        rows = [(day, tenant, run) for run in runs]
        self._connection.executemany("DELETE FROM counted_runs WHERE day = ? AND tenant = ? AND run = ?", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, translate_errors(self._path, self._hints), transaction(self._connection):
            yield
