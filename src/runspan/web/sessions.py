"""Sessions: browsers that logged in with an API key, identified by a random token in a cookie.

The cookie contains neither the key nor anything derived from it, and the server stores only the SHA-256 of the token,
as it does for keys. Sessions are stored beside the keys, so they outlive a restart, are valid for every server that
shares them, and a logout also ends them for anyone who copied the cookie. The key is looked up on every request: if it
expires, or is revoked, so do its sessions.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flask import Response
from werkzeug.http import parse_cookie

from runspan.errors import NotFound
from runspan.storage.database import Database
from runspan.storage.sqlite_file import Schema, SharedDatabase
from runspan.web.api_keys import ApiKey, ApiKeyStore, secret_digest
from runspan.web.links import PublicUrl

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

DEFAULT_LIFETIME: Final = 12 * 3600 * 1_000_000_000
"""Nanoseconds; a working day."""
MAX_SESSIONS_PER_KEY: Final = 1000
COOKIE_NAME: Final = "runspan"

_CLOCK_STEP: Final = 60 * 1_000_000_000
"""Nanoseconds by which a clock may be set back without ending sessions."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
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
    """The sessions of one database. Thread-safe, and safe to use from several processes at once."""

    def __init__(
        self,
        database: Database | Path | str | None,
        keys: ApiKeyStore,
        *,
        lifetime: int = DEFAULT_LIFETIME,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Use the sessions of a database, or open those of a file, or in memory if it is None, until ``close``.

        ``lifetime`` is in nanoseconds.
        """
        if isinstance(database, Path | str | None):
            database = SharedDatabase(database, _SCHEMA)
        self._database: Database = database
        self._keys = keys
        self._lifetime = lifetime
        self._clock = clock

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._database.close()

    def create(self, key: ApiKey) -> tuple[str, int]:
        """Create a session of a key; return the token for the cookie, and its lifetime in seconds."""
        token = secrets.token_urlsafe(32)
        now = self._clock()
        expires = now + self._lifetime if key.expires is None else min(now + self._lifetime, key.expires)
        self._database.execute("DELETE FROM sessions WHERE expires <= ?", now)
        self._database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", secret_digest(token), key.id, now, expires)
        self._database.execute(
            "DELETE FROM sessions WHERE sha256 IN"
            " (SELECT sha256 FROM sessions WHERE key_id = ? ORDER BY created DESC LIMIT ? OFFSET ?)",
            key.id,
            MAX_SESSIONS_PER_KEY,
            MAX_SESSIONS_PER_KEY,
        )
        return token, max(1, (expires - now) // 1_000_000_000)

    def find_key(self, token: str) -> ApiKey | None:
        """Return the active key of a session, or None. The lookup is by a digest, which a caller cannot choose."""
        rows = self._database.execute(
            "SELECT key_id, created, expires FROM sessions WHERE sha256 = ?", secret_digest(token)
        )
        if not rows:
            return None
        key_id, created, expires = rows[0]
        now = self._clock()
        if not created - _CLOCK_STEP <= now < expires:  # of a clock that was ahead, it would last too long
            return None
        try:
            key = self._keys.get(key_id)
        except NotFound:
            return None
        return key if key.state(now) == "active" else None

    def delete(self, token: str) -> None:
        """End a session. An unknown token changes nothing."""
        self._database.execute("DELETE FROM sessions WHERE sha256 = ?", secret_digest(token))


class SessionCookie:
    """The cookie of one application. Whatever its key permits, a session permits only requests that read."""

    def __init__(self, sessions: SessionStore, public_url: PublicUrl) -> None:
        self._sessions = sessions
        self._public_url = public_url

    def find_key(self, environ: WSGIEnvironment) -> ApiKey | None:
        """Return the active key of a browser's session, or None. Requests that may write have none."""
        if environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            return None
        token = self._token(environ)
        return self._sessions.find_key(token) if token else None

    def start_session(self, key: ApiKey, response: Response, environ: WSGIEnvironment) -> None:
        """Start a session of a key, replacing the browser's current one."""
        self._sessions.delete(self._token(environ))
        token, seconds = self._sessions.create(key)
        self._set(response, environ, token, seconds)

    def end_session(self, response: Response, environ: WSGIEnvironment) -> None:
        """End the browser's session: delete it from the store, and the cookie from the browser."""
        self._sessions.delete(self._token(environ))
        self._set(response, environ, "", 0)

    def _set(self, response: Response, environ: WSGIEnvironment, token: str, seconds: int) -> None:
        response.set_cookie(
            self._name(environ),
            token,
            max_age=seconds,
            path=self._public_url.root_path or "/",
            secure=self._public_url.secure,
            httponly=True,
            samesite="Strict",
        )

    def _token(self, environ: WSGIEnvironment) -> str:
        header = environ.get("HTTP_COOKIE", "")
        return parse_cookie(header).get(self._name(environ), "") if header else ""

    def _name(self, environ: WSGIEnvironment) -> str:
        """Return the name of the cookie.

        Browsers keep cookies by host without its port, so the port is part of the name: two servers on one machine must
        not end each other's sessions. ``__Host-`` keeps other subdomains from setting the cookie; browsers accept it
        only over TLS and without a path.
        """
        if self._public_url.secure:
            return COOKIE_NAME if self._public_url.root_path else f"__Host-{COOKIE_NAME}"
        port = environ.get("HTTP_HOST", "").rpartition(":")[2]
        return f"{COOKIE_NAME}-{port}" if port.isdigit() else COOKIE_NAME
