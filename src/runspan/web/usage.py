"""``UsageStore``: what each tenant has sent on a day, and the quotas of it, next to the API keys.

A request is counted before it is written, in one transaction that compares it with the quota, so that requests at the
same time never exceed one together, on whichever server. What could not be written is taken back. A file is synced less
often than the store: a power failure may lose the counts of the last seconds, a killed process loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from runspan.errors import RateLimited
from runspan.model.timestamps import SECOND, rfc3339
from runspan.storage.database import Database
from runspan.storage.sqlite_file import Schema, SharedDatabase

USAGE_FILE: Final = "usage.sqlite3"
_DAY: Final = 86_400 * SECOND
_ID_BYTES: Final = 8
_FORGOTTEN: Final = 1000
"""Runs of a day before yesterday that a request deletes."""
_AT_ONCE: Final = 500
"""Runs that one statement inserts."""
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
_PRAGMAS: Final = ("synchronous = NORMAL", "secure_delete = ON")
_USED: Final = (
    "INSERT INTO usage VALUES (?, ?, 0, 0) ON CONFLICT (day, tenant) DO UPDATE SET runs = usage.runs"
    " RETURNING runs, bytes"
)
"""Locks the row of a tenant until the end of the transaction, in PostgreSQL too."""
_ADD: Final = "UPDATE usage SET runs = runs + ?, bytes = bytes + ? WHERE day = ? AND tenant = ?"
_TAKE_BACK: Final = (
    "UPDATE usage SET runs = CASE WHEN runs > ? THEN runs - ? ELSE 0 END,"
    " bytes = CASE WHEN bytes > ? THEN bytes - ? ELSE 0 END WHERE day = ? AND tenant = ?"
)
"""Less than nothing would be left if the tenant was erased meanwhile."""
_OLDEST: Final = (
    "UPDATE usage SET runs = runs WHERE (day, tenant) IN"
    " (SELECT day, tenant FROM usage WHERE day < ? ORDER BY day, tenant LIMIT 1) RETURNING day, tenant"
)
"""Locks a day of a tenant that is over, so that one server at a time forgets it."""
_FORGET_RUNS: Final = (
    "DELETE FROM counted_runs WHERE (day, tenant, run) IN"
    " (SELECT day, tenant, run FROM counted_runs WHERE day = ? AND tenant = ? LIMIT ?) RETURNING 1"
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


class UsageStore:
    """The usage of all tenants in one database. Thread-safe, and safe to use from several processes at once."""

    def __init__(
        self,
        database: Database | Path | str | None,
        quotas: Quotas | None = None,
        *,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Use the usage of a database, or open that of a file, or in memory if it is None, until ``close``.

        ``clock``: nanoseconds since 1970.
        """
        if isinstance(database, Path | str | None):
            database = SharedDatabase(database, _SCHEMA, pragmas=_PRAGMAS)
        self._database: Database = database
        self.quotas = quotas or Quotas()
        self._clock = clock

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._database.close()

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
            self._take_back(day, tenant, runs, size)
            raise

    def today(self) -> Sequence[Usage]:
        """Return the usage of the tenants that have sent the most bytes today, and of the others together."""
        rows = self._database.execute(
            "SELECT tenant, runs, bytes FROM usage WHERE day = ? ORDER BY bytes DESC, tenant", self._clock() // _DAY
        )
        found = {tenant: Usage(tenant, runs, size) for tenant, runs, size in rows[:MAX_TENANTS]}
        for _, runs, size in rows[MAX_TENANTS:]:
            others = found.get("", Usage("", 0, 0))
            found[""] = Usage("", others.runs + runs, others.bytes + size)
        return list(found.values())

    def erase(self, tenant: str) -> None:
        """Forget a tenant. A file then has none of its bytes."""
        with self._database.transaction() as execute:
            # In the order in which a request locks them: the other way round, each would wait for the other.
            for (day,) in execute("SELECT day FROM usage WHERE tenant = ? ORDER BY day DESC", tenant):
                execute("DELETE FROM usage WHERE day = ? AND tenant = ?", day, tenant)
            execute("DELETE FROM counted_runs WHERE tenant = ?", tenant)
        if isinstance(self._database, SharedDatabase):
            self._database.compact()

    def _charge(self, day: int, tenant: str, runs: set[bytes], size: int) -> set[bytes]:
        """Count a request; return the runs that were not counted before."""
        quota = self.quotas.of(tenant)
        with self._database.transaction() as execute:
            ((used_runs, used_bytes),) = execute(_USED, day, tenant)
            new = set(_insert_runs(execute, day, tenant, runs))
            if quota.runs and new and used_runs + len(new) > quota.runs:
                raise self._exceeded(day, tenant, "runs", quota.runs, used_runs, len(new))
            if quota.bytes and used_bytes + size > quota.bytes:
                raise self._exceeded(day, tenant, "bytes", quota.bytes, used_bytes, size)
            execute(_ADD, len(new), size, day, tenant)
            for ended, other in execute(_OLDEST, day - 1):
                if len(execute(_FORGET_RUNS, ended, other, _FORGOTTEN)) < _FORGOTTEN:
                    execute("DELETE FROM usage WHERE day = ? AND tenant = ?", ended, other)
        return new

    def _take_back(self, day: int, tenant: str, runs: set[bytes], size: int) -> None:
        with self._database.transaction() as execute:
            execute(_TAKE_BACK, len(runs), len(runs), size, size, day, tenant)
            for run in runs:
                execute("DELETE FROM counted_runs WHERE day = ? AND tenant = ? AND run = ?", day, tenant, run)

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


def _insert_runs(execute: Callable[..., list[Any]], day: int, tenant: str, runs: set[bytes]) -> Iterator[bytes]:
    """Insert runs; yield those that were not there."""
    left = list(runs)
    while left:
        some, left = left[:_AT_ONCE], left[_AT_ONCE:]
        rows = ", ".join(["(?, ?, ?)"] * len(some))
        insert = f"INSERT INTO counted_runs VALUES {rows} ON CONFLICT DO NOTHING RETURNING run"  # noqa: S608 marks only
        for (run,) in execute(insert, *[value for each in some for value in (day, tenant, each)]):
            yield run
