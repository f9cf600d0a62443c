"""``KeyRing``: API keys in an SQLite file that the server and the command line use at once.

A key has about 190 random bits, so nobody finds it by trying, and one SHA-256 of it is stored: slow hashes protect
words that people choose. SQLite brings what two processes need: a crash leaves the file whole, writers wait for each
other, and ``PRAGMA data_version``, in WAL mode a look at shared memory, tells a running server on every request
whether somebody changed it.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
import string
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from runspan.errors import NotFound, SettingError, StoreError
from runspan.storage.sqlite_file import Schema, open_database

RUNS_READ = "runs:read"
RUNS_WRITE = "runs:write"
PERMISSIONS = (RUNS_READ, RUNS_WRITE)

PREFIX = "wfk_"
_ALPHABET = string.ascii_letters + string.digits
_TABLE = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, name TEXT NOT NULL, company TEXT NOT NULL,
    permissions TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER, revoked INTEGER
) STRICT
"""
_SCHEMA = Schema(
    name="the file of API keys",
    application_id=0x72736B79,
    version=1,
    tables=(_TABLE,),
    hint="choose another data directory",
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key: all but its secret. Times are nanoseconds since 1970."""

    id: str
    name: str
    company: str
    permissions: frozenset[str]
    created: int
    expires: int | None = None
    revoked: int | None = None

    def state(self, now: int) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class ApiKeyStore:
    """The keys of one file. All methods may be called from several threads and processes.

    company: whose runs a key reads and writes, the tenant of the spans; "" is the tenant of runs without one.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._version = -1
        self._by_prefix: dict[bytes, list[tuple[bytes, ApiKey]]] = {}
        self._db = open_database(path, _SCHEMA)

    def create(
        self,
        name: str,
        *,
        company: str = "",
        permissions: Iterable[str] = PERMISSIONS,
        expires: int | None = None,
    ) -> tuple[str, ApiKey]:
        """A new key: its secret, which is shown this once, and the rest."""
        granted = frozenset(permissions)
        if not granted or granted - set(PERMISSIONS):
            raise SettingError(
                where="permissions",
                expected=f"some of {', '.join(PERMISSIONS)}",
                got=", ".join(sorted(granted)) or "none",
            )
        secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(32))
        key = ApiKey(secrets.token_hex(4), name, company, granted, self._clock(), expires)
        self._change(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            key.id,
            _digest(secret),
            name,
            company,
            " ".join(sorted(granted)),
            key.created,
            expires,
        )
        return secret, key

    def list(self) -> list[ApiKey]:
        """Every key ever made, oldest first, revoked and expired ones too."""
        with self._lock:
            self._reload_if_changed()
            keys = [key for entries in self._by_prefix.values() for _, key in entries]
        return sorted(keys, key=lambda key: (key.created, key.id))

    def revoke(self, key_id: str) -> ApiKey:
        """Ends a key at once. Revoking it again changes nothing. NotFound when there is none."""
        self._get(key_id)
        self._change("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", self._clock(), key_id)
        return self._get(key_id)

    def rotate(self, key_id: str, *, grace: int) -> tuple[str, ApiKey]:
        """A new key in place of an old one; both are valid for ``grace`` nanoseconds, then only the new one.

        A key that was made to expire gets a successor with the same lifetime.
        """
        old, now = self._get(key_id), self._clock()
        if old.state(now) != "active":
            raise SettingError(
                where=f"key {key_id}", expected="an active key", got=old.state(now), hint="create a new one"
            )
        expires = None if old.expires is None else now + (old.expires - old.created)
        secret, key = self.create(old.name, company=old.company, permissions=old.permissions, expires=expires)
        self._change(
            "UPDATE keys SET expires = min(coalesce(expires, ?2), ?2) WHERE id = ?1", key_id, now + max(grace, 0)
        )
        return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """The active key of this secret, or None.

        Candidates are found by the first bytes of the digest, which no caller can steer, and then compared in
        constant time.
        """
        digest = _digest(secret)
        with self._lock:
            self._reload_if_changed()
            candidates = self._by_prefix.get(digest[:4], ())
        for stored, key in candidates:
            if hmac.compare_digest(stored, digest) and key.state(self._clock()) == "active":
                return key
        return None

    @property
    def unused(self) -> bool:
        """Whether no key was ever made. Revoked and expired keys count: revoking the last one opens nothing."""
        with self._lock:
            self._reload_if_changed()
            return not self._by_prefix

    def close(self) -> None:
        """Releases the file. Calling it twice is allowed."""
        with self._lock:
            self._db.close()

    def _get(self, key_id: str) -> ApiKey:
        for key in self.list():
            if key.id == key_id:
                return key
        raise NotFound("no such key", where=f"key {key_id}", hint="`runspan keys list` shows the ids")

    def _change(self, statement: str, *values: object) -> None:
        with self._lock:
            try:
                self._db.execute(statement, values)
            except sqlite3.Error as error:
                raise StoreError("cannot write the keys", got=str(error)) from error
            self._version = -1  # data_version does not tell a connection about its own changes

    def _reload_if_changed(self) -> None:
        try:
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return
            rows = self._db.execute("SELECT * FROM keys").fetchall()
        except sqlite3.Error as error:
            raise StoreError("cannot read the keys", got=str(error)) from error
        by_prefix: dict[bytes, list[tuple[bytes, ApiKey]]] = {}
        for key_id, digest, name, company, permissions, created, expires, revoked in rows:
            key = ApiKey(key_id, name, company, frozenset(permissions.split()), created, expires, revoked)
            by_prefix.setdefault(digest[:4], []).append((digest, key))
        self._by_prefix, self._version = by_prefix, version


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
