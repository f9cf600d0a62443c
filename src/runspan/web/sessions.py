"""Logins of browsers: a random token in a cookie stands for an API key, until it ends, is logged out, or the key ends.

The cookie holds neither the key nor anything that is derived from it, and the server keeps only the token's SHA-256, as
it does for keys. Sessions are rows beside the keys, so they outlive a restart, hold for every process over one data
directory, and a logout ends them for whoever copied the cookie. The key is looked up on every request: what ends or
narrows the key does so for its sessions at once.

The session's cookie: what it is called, what it may do, and whose key a request with it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flask import Response
from werkzeug.http import parse_cookie

from runspan.web.api_keys import ApiKey
from runspan.web.public_url import PublicUrl

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from runspan.errors import StoreError
from runspan.storage.sqlite_file import Schema, open_database
from runspan.web.api_keys import ApiKeyStore

NAME: Final = "runspan"
_READS: Final = frozenset({"GET", "HEAD"})


class SessionCookie:
    """The cookies of one application. They open what is read and nothing that is written, whatever the key may do."""

    def __init__(self, sessions: SessionStore, places: PublicUrl) -> None:
        self._sessions = sessions
        self._places = places

    def key_of(self, environ: WSGIEnvironment) -> ApiKey | None:
        """The key behind a request that only reads, or None."""
        if environ["REQUEST_METHOD"] not in _READS:
            return None
        token = self._token(environ)
        return self._sessions.key_of(token) if token else None

    def begin(self, key: ApiKey, response: Response, environ: WSGIEnvironment) -> None:
        """Starts a session of the key, in place of the one that the browser may have."""
        self.end(response, environ)
        token, seconds = self._sessions.begin(key)
        self._set(response, environ, token, seconds)

    def end(self, response: Response, environ: WSGIEnvironment) -> None:
        """Ends the browser's session, here and there."""
        token = self._token(environ)
        if token:
            self._sessions.end(token)
        response.headers.remove("Set-Cookie")
        self._set(response, environ, "", 0)

    def _set(self, response: Response, environ: WSGIEnvironment, token: str, seconds: int) -> None:
        response.headers.remove("Set-Cookie")
        response.set_cookie(
            self._name(environ),
            token,
            max_age=seconds,
            path=self._places.root or "/",
            secure=self._places.secure,
            httponly=True,
            samesite="Strict",
        )

    def _token(self, environ: WSGIEnvironment) -> str:
        header = environ.get("HTTP_COOKIE", "")
        return parse_cookie(header).get(self._name(environ), "") if header else ""

    def _name(self, environ: WSGIEnvironment) -> str:
        """Cookies are kept by host without its port: two servers on one machine must not log each other out.

        ``__Host-`` lets no neighbouring subdomain set it; a browser takes that only over TLS and for the whole host.
        """
        if self._places.secure:
            return NAME if self._places.root else f"__Host-{NAME}"
        port = environ.get("HTTP_HOST", "").rpartition(":")[2]
        return f"{NAME}-{port}" if port.isdigit() else NAME


SESSIONS_FILE: Final = "sessions.sqlite3"
DEFAULT_LIFETIME: Final = 12 * 3600 * 1_000_000_000
"""Nanoseconds: a working day."""

_MOST_PER_KEY = 1000
_TABLE = """
CREATE TABLE sessions (
    sha256 BLOB PRIMARY KEY, key_id TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""
_SCHEMA = Schema(
    name="the file of sessions",
    application_id=0x72737365,
    version=1,
    tables=(_TABLE,),
    hint="choose another data directory",
)


class SessionStore:
    """The sessions of one file. All methods may be called from several threads and processes.

    path: the file, or None for sessions that live as long as this object. lifetime: nanoseconds.
    """

    def __init__(
        self,
        path: Path | str | None,
        keys: ApiKeyStore,
        *,
        lifetime: int = DEFAULT_LIFETIME,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.keys = keys
        self.lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._db = open_database(path, _SCHEMA)

    def begin(self, key: ApiKey) -> tuple[str, int]:
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

    def key_of(self, token: str) -> ApiKey | None:
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
