"""``RequestBudget``: the limit of requests to the platform that all workers of a state have together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from hashlib import scrypt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runspan.errors import StateUnreachable
from runspan.http.retry import RateLimiter
from runspan.storage.sqlite_file import SharedDatabase
from runspan.sync.checkpoint import SCHEMA

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

_SLOTS: Final = 10
"""Parts of a second in which requests are counted together."""

_KEPT: Final = 60 * _SLOTS
"""Slots for which requests are kept: the longest window, and the longest wait for the lock of the file."""

_WHERE: Final = "FROM requests WHERE account = ? AND slot BETWEEN ? AND ?"
_TAKE: Final = (
    f"INSERT INTO requests SELECT ?, ?, 1 WHERE (SELECT coalesce(sum(count), 0) {_WHERE}) < ? "
    "ON CONFLICT (account, slot) DO UPDATE SET count = requests.count + 1 RETURNING 1"
)
_FIRST: Final = f"SELECT min(slot) {_WHERE}"
_LOCK: Final = 0x72756E737062
"""An advisory lock of PostgreSQL: who counts."""


def account_of(platform: str, key: str | None) -> bytes:
    """Return what distinguishes an API key from others. It is stored, so it does not disclose the key."""
    return scrypt(key.encode(), salt=platform.encode(), n=1 << 14, r=8, p=1, dklen=16) if key else b""


class RequestBudget(RateLimiter):
    """A ``RateLimiter`` whose requests are counted in the state, so also over restarts. A pause is its own.

    While a database does not answer, it allows none.

    - ``place``: see ``Checkpoint``.
    - ``account``: whose limit it is, as the platform has one for each API key; a digest of it.
    - ``wall_clock``: seconds since 1970, of the machine on which all workers run. A database has its own.
    """

    def __init__(
        self,
        per_minute: int,
        place: Path | PostgresDatabase,
        *,
        account: bytes,
        sleep: Callable[[float], object],
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(per_minute, sleep=sleep, clock=clock)
        self._place = place
        self._account = account
        self._wall_clock = wall_clock
        self._opening = threading.Lock()
        self._refused_until = float("-inf")
        """When the limit was not used up any more after the last refusal, and a second."""
        self._swept_at = 0
        """The slot in which this last deleted what is not kept."""
        self._database: SharedDatabase | None = None

    @property
    def is_contested(self) -> bool:
        """See ``RateLimiter``. A tenth of the limit more or less is no difference."""
        with self._lock:
            now = self._clock()
            own = sum(now - at < self._window for at in self._sent)
            return now < self._refused_until and own < 0.9 * self._limit

    def close(self) -> None:
        """Close the state file. Idempotent."""
        if self._database is not None:
            self._database.close()

    def _count(self, limit: int, window: float) -> float:
        """See ``RateLimiter``."""
        if not limit:
            return 0.0
        delay = self._count_in_state(limit, window)
        with self._lock:
            now = self._clock()
            if delay > 0:
                self._refused_until = now + delay + 1.0
            else:
                self._sent.append(now)
        return delay

    def _count_in_state(self, limit: int, window: float) -> float:
        """See ``_count``."""
        if not isinstance(self._place, Path):
            try:
                with self._place.transaction() as execute:
                    execute("SELECT pg_advisory_xact_lock(?)", _LOCK)
                    now = execute("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]
                    return self._take(execute, now, limit, window)
            except StateUnreachable as error:
                return error.retry_after or 1.0
        with self._opening:
            if self._database is None:
                self._database = SharedDatabase(
                    self._place, SCHEMA, pragmas=("synchronous = NORMAL", "busy_timeout = 60000")
                )
        return self._take(self._database.execute, self._wall_clock(), limit, window)

    def _take(self, execute: Callable[..., list[Any]], now: float, limit: int, window: float) -> float:
        """See ``_count``."""
        slot = int(now * _SLOTS)
        begin = slot - int(window * _SLOTS)
        latest = slot + _KEPT  # others have counted since this slot was computed; later ones are of a clock set back
        if abs(slot - self._swept_at) >= _KEPT:
            self._swept_at = slot
            execute("DELETE FROM requests WHERE slot NOT BETWEEN ? AND ?", slot - _KEPT, latest)
        if execute(_TAKE, self._account, slot, self._account, begin, latest, limit):
            return 0.0
        first = execute(_FIRST, self._account, begin, latest)[0][0]
        return float((slot if first is None else first) + 1 - begin) / _SLOTS
