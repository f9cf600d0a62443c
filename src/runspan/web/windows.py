"""``Windows``: the requests of each client in the last minute, in this process or of all servers together."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from runspan.storage.postgres import PostgresDatabase

MINUTE: Final = 60.0
"""Seconds."""
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"

Window = list[tuple[float, float, int]]
"""The requests of one client, oldest first: seconds of the first and the last one, and how many."""
Change = Callable[[Window, float], int]
"""What reads or changes a window; it is given the current second too."""


class Windows(Protocol):
    """The windows of all clients. Thread-safe."""

    def change(self, client: str, change: Change) -> int:
        """Return what ``change`` returns of the client's window, which nobody else changes meanwhile."""
        ...


class LocalWindows:
    """Windows in memory. clock: Seconds of a clock that nobody sets."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}
        self._next_sweep = 0.0

    def change(self, client: str, change: Change) -> int:
        """See ``Windows``."""
        with self._lock:
            now = self._clock()
            if now >= self._next_sweep:
                self._next_sweep = now + MINUTE
                self._windows = {name: each for name, each in self._windows.items() if each and not _is_over(each, now)}
            return change(self._windows.setdefault(client, []), now)


class SharedWindows:
    """Windows in a database, for all servers that use it. The clock is the database's."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database
        self._next_sweep = 0.0

    def change(self, client: str, change: Change) -> int:
        """See ``Windows``. Raises StateUnreachable."""
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + MINUTE
            self.database.execute(f"DELETE FROM windows WHERE last <= {_NOW} - ?", 2 * MINUTE)  # noqa: S608
        select = f"SELECT requests, {_NOW} FROM windows WHERE client = ? FOR UPDATE"  # noqa: S608
        with self.database.transaction() as execute:
            rows = execute(select, client)
            while not rows:  # it may be inserted, and swept, by others
                execute("INSERT INTO windows VALUES (?, '[]', 0) ON CONFLICT DO NOTHING", client)
                rows = execute(select, client)
            text, now = rows[0]
            window: Window = [(first, last, count) for first, last, count in json.loads(text)]
            last = window[-1][1] if window else 0.0
            if last > now + MINUTE:  # the clock was set back
                window.clear()
            result = change(window, max(now, last) if window else now)  # the time may be from before the row was locked
            if json.dumps(window) != text:
                values = json.dumps(window), window[-1][1] if window else 0.0, client
                execute("UPDATE windows SET requests = ?, last = ? WHERE client = ?", *values)
            return result


def _is_over(window: Window, now: float) -> bool:
    return window[-1][1] <= now - MINUTE
