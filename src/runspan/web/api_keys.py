"""``ApiKeyStore``: API keys in an SQLite file that the server and the command line use at once.

A key has about 190 random bits, so it cannot be guessed, and a single SHA-256 of it is stored: slow hashes protect
passwords that people choose. SQLite keeps the file consistent over crashes and concurrent writers, and
``PRAGMA data_version``, which reads shared memory in WAL mode, shows a running server on every request whether another
process changed the keys.
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

from runspan.errors import ConfigError, NotFound, StoreError
from runspan.storage.sqlite_file import Schema, open_database

RUNS_READ = "runs:read"
RUNS_WRITE = "runs:write"
PERMISSIONS = (RUNS_READ, RUNS_WRITE)

PREFIX = "wfk_"
_ALPHABET = string.ascii_letters + string.digits
_TABLE = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, name TEXT NOT NULL, tenant TEXT NOT NULL,
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
    """A key without its secret. Times are in nanoseconds since 1970."""

    id: str
    name: str
    tenant: str
    """Whose runs the key reads and writes; empty for runs without a tenant."""
    permissions: frozenset[str]
    created: int
    expires: int | None = None
    revoked: int | None = None

    def state(self, now: int) -> str:
        """Return ``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


_KeysByPrefix = dict[bytes, list[tuple[bytes, ApiKey]]]


class ApiKeyStore:
    """The keys of one file. Thread-safe, and safe to use from several processes at once."""

    def __init__(self, path: Path | str, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._version = -1
        self._by_prefix: _KeysByPrefix = {}
        self._db = open_database(path, _SCHEMA)

    def create(
        self,
        name: str,
        *,
        tenant: str = "",
        permissions: Iterable[str] = PERMISSIONS,
        expires: int | None = None,
    ) -> tuple[str, ApiKey]:
        """Create a key; return its secret, which is not stored, and the key. Raises ConfigError for permissions."""
        granted = frozenset(permissions)
        if not granted or granted - set(PERMISSIONS):
            raise ConfigError(
                where="permissions",
                expected=f"some of {', '.join(PERMISSIONS)}",
                got=", ".join(sorted(granted)) or "none",
            )
        secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(32))
        key = ApiKey(secrets.token_hex(4), name, tenant, granted, self._clock(), expires)
        self._write(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            key.id,
            secret_digest(secret),
            name,
            tenant,
            " ".join(sorted(granted)),
            key.created,
            expires,
        )
        return secret, key

    def list(self) -> list[ApiKey]:
        """Return all keys, including revoked and expired ones, oldest first."""
        keys = [key for entries in self._current().values() for _, key in entries]
        return sorted(keys, key=lambda key: (key.created, key.id))

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key at once. Idempotent. Raises NotFound if there is no such key."""
        self.get(key_id)
        self._write("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", self._clock(), key_id)
        return self.get(key_id)

    def rotate(self, key_id: str, *, grace: int) -> tuple[str, ApiKey]:
        """Replace a key: both are valid for ``grace`` nanoseconds, then only the new one.

        The new key has the same lifetime as the old one. Raises NotFound, or ConfigError if the key is not active.
        """
        old, now = self.get(key_id), self._clock()
        if old.state(now) != "active":
            raise ConfigError(
                where=f"key {key_id}", expected="an active key", got=old.state(now), hint="create a new one"
            )
        expires = None if old.expires is None else now + (old.expires - old.created)
        secret, key = self.create(old.name, tenant=old.tenant, permissions=old.permissions, expires=expires)
        self._write(
            "UPDATE keys SET expires = min(coalesce(expires, ?2), ?2) WHERE id = ?1", key_id, now + max(grace, 0)
        )
        return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """Return the active key of this secret, or None.

        Candidates are looked up by the first bytes of the digest, which a caller cannot choose, and then compared in
        constant time.
        """
        digest = secret_digest(secret)
        for stored, key in self._current().get(digest[:4], ()):
            if hmac.compare_digest(stored, digest) and key.state(self._clock()) == "active":
                return key
        return None

    @property
    def unused(self) -> bool:
        """Whether no key was ever created. Revoked and expired keys count: revoking the last one opens nothing."""
        return not self._current()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    def get(self, key_id: str) -> ApiKey:
        """Return the key with this id, whatever its state. Raises NotFound."""
        for key in self.list():
            if key.id == key_id:
                return key
        raise NotFound("no such key", where=f"key {key_id}", hint="`runspan keys list` shows the ids")

    def _write(self, statement: str, *values: object) -> None:
        with self._lock:
            try:
                self._db.execute(statement, values)
            except sqlite3.Error as error:
                raise StoreError("cannot write the keys", got=str(error)) from error
            self._version = -1  # data_version ignores a connection's own changes

    def _current(self) -> _KeysByPrefix:
        """Return the digests and keys by the first bytes of the digest, read again if the file has changed."""
        with self._lock:
            try:
                (version,) = self._db.execute("PRAGMA data_version").fetchone()
                if version == self._version:
                    return self._by_prefix
                rows = self._db.execute("SELECT * FROM keys").fetchall()
            except sqlite3.Error as error:
                raise StoreError("cannot read the keys", got=str(error)) from error
            by_prefix: _KeysByPrefix = {}
            for key_id, digest, name, tenant, permissions, created, expires, revoked in rows:
                key = ApiKey(key_id, name, tenant, frozenset(permissions.split()), created, expires, revoked)
                by_prefix.setdefault(digest[:4], []).append((digest, key))
            self._by_prefix, self._version = by_prefix, version
            return by_prefix


def secret_digest(secret: str) -> bytes:
    """Return the SHA-256 under which a secret is stored."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
