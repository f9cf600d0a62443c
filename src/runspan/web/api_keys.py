"""``ApiKeyStore``: API keys in a database that servers and the command line use at once.

A key has about 190 random bits, so it cannot be guessed, and a single SHA-256 of it is stored: slow hashes protect
passwords that people choose. A change by another process counts once ``revoke`` or ``rotate`` has returned there: over
an SQLite file a server keeps the keys that it found until the file changes, which it asks SQLite a hundred times a
second at most, and these methods wait for as long. Over PostgreSQL it keeps none.
"""

from __future__ import annotations

import re
import secrets
import string
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from runspan.errors import ConfigError, NotFound
from runspan.storage.data_directory import KEYS_LOCK, DirectoryUse
from runspan.storage.database import Database
from runspan.storage.sqlite_file import Schema, SharedDatabase

RUNS_READ = "runs:read"
RUNS_WRITE = "runs:write"
PERMISSIONS = (RUNS_READ, RUNS_WRITE)

PREFIX = "wfk_"
_MAX_FOUND = 10_000
"""Keys that a server keeps in memory."""
_TRUSTED = 0.01
"""Seconds after which a server asks again whether the file has changed: threads that ask wait for each other."""
_ALPHABET = string.ascii_letters + string.digits
_TABLE = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, name TEXT NOT NULL, tenant TEXT NOT NULL,
    permissions TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER, revoked INTEGER
) STRICT
"""
_SELECT = "SELECT id, name, tenant, permissions, created, expires, revoked FROM keys "
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


class _KeysFile(SharedDatabase):
    """The file of a data directory, which no restore replaces while it is open."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self._use = stack.enter_context(closing(DirectoryUse(path.parent, KEYS_LOCK)))
            super().__init__(path, _SCHEMA)
            stack.pop_all()

    def close(self) -> None:
        super().close()
        self._use.close()


class ApiKeyStore:
    """The keys of one database. Thread-safe, and safe to use from several processes at once."""

    def __init__(self, database: Database | Path | str, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Use the keys of a database, or open those of a file, until ``close``."""
        if isinstance(database, Path | str):
            database = _KeysFile(Path(database))
        self._database: Database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[bytes, ApiKey] = {}
        """By digest: keys in the database as of ``_version``."""
        self._version = -1
        self._trusted_until = 0.0

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._database.close()

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
        self._database.execute(
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

    def find_damage(self) -> Sequence[str]:
        """Return the keys that are not as they were written, by their ids, one line each."""
        found = []
        for key_id, digest, permissions in self._database.execute("SELECT id, sha256, permissions FROM keys"):
            is_sound = re.fullmatch("[0-9a-f]{8}", str(key_id)) and isinstance(digest, bytes) and len(digest) == 32
            if not is_sound or not set(str(permissions).split()) <= set(PERMISSIONS):
                found.append(f"key {key_id}: it is not as it was written")
        return found

    def list(self) -> Sequence[ApiKey]:
        """Return all keys, including revoked and expired ones, oldest first."""
        return self._select("ORDER BY created, id")

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
        last = now + max(grace, 0)
        self._write("UPDATE keys SET expires = ? WHERE id = ? AND (expires IS NULL OR expires > ?)", last, key_id, last)
        return secret, key

    def find(self, secret: str) -> ApiKey | None:
        """Return the active key of this secret, or None. The lookup is by a digest, which a caller cannot choose."""
        key = self._find(secret_digest(secret))
        return key if key is not None and key.state(self._clock()) == "active" else None

    @property
    def unused(self) -> bool:
        """Whether no key was ever created. Revoked and expired keys count: revoking the last one opens nothing."""
        return not self._database.execute("SELECT 1 FROM keys LIMIT 1")

    def get(self, key_id: str) -> ApiKey:
        """Return the key with this id, whatever its state. Raises NotFound."""
        for key in self._select("WHERE id = ?", key_id):
            return key
        raise NotFound("no such key", where=f"key {key_id}", hint="`runspan keys list` shows the ids")

    def _find(self, digest: bytes) -> ApiKey | None:
        now = time.monotonic()
        if now >= self._trusted_until:
            version = self._database.version()
            if version is None:
                return next(iter(self._select("WHERE sha256 = ?", digest)), None)
            with self._lock:
                if version != self._version:  # by another process; ``_write`` forgets what this one changes
                    self._found.clear()
                    self._version = version
                self._trusted_until = now + _TRUSTED
        with self._lock:
            key = self._found.get(digest)
            if key is None:
                key = next(iter(self._select("WHERE sha256 = ?", digest)), None)
                if key is not None:
                    if len(self._found) >= _MAX_FOUND:
                        self._found.clear()
                    self._found[digest] = key
            return key

    def _write(self, statement: str, *values: object) -> None:
        self._database.execute(statement, *values)
        with self._lock:
            self._found.clear()
        if self._database.version() is not None:
            time.sleep(_TRUSTED)  # then no other process uses what it found before

    def _select(self, clause: str, *values: object) -> Sequence[ApiKey]:
        return [_from_row(*row) for row in self._database.execute(_SELECT + clause, *values)]


def _from_row(key_id: str, name: str, tenant: str, permissions: str, *times: int | None) -> ApiKey:
    return ApiKey(key_id, name, tenant, frozenset(permissions.split()), *times)  # type: ignore[arg-type]


def secret_digest(secret: str) -> bytes:
    """Return the SHA-256 under which a secret is stored."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
