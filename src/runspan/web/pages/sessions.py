"""Logins of browsers: a random token in a cookie stands for an API key, until it ends, is logged out, or the key ends.

The cookie holds neither the key nor anything that is derived from it, and the server keeps only the token's SHA-256, as
it does for keys. Sessions are rows beside the keys, so they outlive a restart, hold for every process over one data
directory, and a logout ends them for whoever copied the cookie. The key is looked up on every request: what ends or
narrows the key does so for its sessions at once.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from runspan.errors import StoreError
from runspan.web.keys import Key, KeyRing

SESSIONS_FILE: Final = "sessions.sqlite3"
DEFAULT_LIFETIME: Final = 12 * 3600 * 1_000_000_000
"""Nanoseconds: a working day."""

_MOST_PER_KEY = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    sha256 BLOB PRIMARY KEY, key_id TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""


class Sessions:
    """The sessions of one file. All methods may be called from several threads and processes.

    path: the file, or None for sessions that live as long as this object. lifetime: nanoseconds.
    """

    def __init__(
        self,
        path: Path | str | None,
        keys: KeyRing,
        *,
        lifetime: int = DEFAULT_LIFETIME,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.keys = keys
        self.lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        try:
            if path is not None:
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path or ":memory:", timeout=10, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                "cannot open the sessions",
                where=str(path),
                got=str(error),
                hint="check the data directory's permissions",
            ) from error

    def begin(self, key: Key) -> tuple[str, int]:
        """A new session of a key: the token for the cookie, and how many seconds it lives."""
        token = secrets.token_urlsafe(32)
        now = self._clock()
        expires = now + self.lifetime if key.expires is None else min(now + self.lifetime, key.expires)
        self._execute("DELETE FROM sessions WHERE expires <= ?", now)
        self._execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", _digest(token), key.id, now, expires)
        self._execute(
            "DELETE FROM sessions WHERE sha256 IN"
            " (SELECT sha256 FROM sessions WHERE key_id = ? ORDER BY created DESC LIMIT -1 OFFSET ?)",
            key.id,
            _MOST_PER_KEY,
        )
        return token, max(1, (expires - now) // 1_000_000_000)

    def key_of(self, token: str) -> Key | None:
        """The active key whose session this is, or None. The row is found by a digest that no caller can steer."""
        rows = self._execute("SELECT key_id, expires FROM sessions WHERE sha256 = ?", _digest(token))
        if not rows or rows[0][1] <= (now := self._clock()):
            return None
        key = next((key for key in self.keys.list() if key.id == rows[0][0]), None)
        return key if key is not None and key.state(now) == "active" else None

    def end(self, token: str) -> None:
        """Logs out. A token that is unknown changes nothing."""
        self._execute("DELETE FROM sessions WHERE sha256 = ?", _digest(token))

    def close(self) -> None:
        """Releases the file. Calling it twice is allowed."""
        with self._lock:
            self._db.close()

    def _execute(self, statement: str, *values: object) -> list[tuple[str, int]]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError("cannot use the sessions", got=str(error)) from error


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
