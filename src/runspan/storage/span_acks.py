"""Remember which spans of unfinished runs a receiver has, so that no later snapshot sends them again.

A receiver may keep only the spans in the manifest of a run's newest revision, and it is not always known which revision
reached it last. So a span is remembered from its acknowledgement on, and only as long as every revision that was sent
since then contains it. Forgetting is always safe: what is forgotten is sent again, as the same span.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from hashlib import scrypt, sha256
from typing import Any, Final

KEEP: Final = 86_400 * 1_000_000_000
"""How long a span is remembered, in nanoseconds. Then an unfinished run sends it once more, since a backend may delete
it while the run needs it. The Collector does not count a span that ended more than an hour before it arrived."""

SIZE: Final = 16
TABLES: Final = (
    """
    CREATE TABLE spans (
        id INTEGER PRIMARY KEY,
        run BLOB NOT NULL,
        at INTEGER NOT NULL,
        digests BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX spans_by_run ON spans (run)",
    "CREATE TABLE receiver (salt BLOB NOT NULL, hash BLOB NOT NULL) STRICT",
)

Execute = Callable[[str, Sequence[Any]], sqlite3.Cursor]


def digest_of(span: bytes) -> bytes:
    """Return the digest by which a span is remembered: 16 bytes of the SHA-256 of all its bytes."""
    return sha256(span).digest()[:SIZE]


class SpanAcks:
    """The two tables above. A run is identified by any unique bytes. Times are nanoseconds since 1970."""

    def __init__(self, execute: Execute) -> None:
        """``execute``: runs a statement in the transaction of the file's owner, who commits it."""
        self._execute = execute
        self.has_removed = False
        """Whether ``retain_only`` has forgotten spans; the owner may set it back."""

    def get(self, run: bytes, now: int) -> frozenset[bytes]:
        """Return the digests of the spans that the receiver has.

        Those that are too old now, or of the future, are forgotten: a revision without them may be sent next, and a
        clock that is set later must not bring them back.
        """
        rows = self._execute("SELECT at, digests FROM spans WHERE run = ?", (run,)).fetchall()
        valid = [digests for at, digests in rows if now - KEEP < at <= now]
        if len(valid) < len(rows):
            self._execute("DELETE FROM spans WHERE run = ? AND (at <= ? OR at > ?)", (run, now - KEEP, now))
        return frozenset(_split(b"".join(valid)))

    def retain_only(self, run: bytes, digests: Collection[bytes]) -> None:
        """Forget all other spans of a run, before a revision with these is sent.

        ``digests``: those of all spans of the revision other than its revision span.
        """
        kept = frozenset(digests)
        rows = self._execute("SELECT id, digests FROM spans WHERE run = ?", (run,)).fetchall()
        for number, stored in rows:
            remaining = b"".join([digest for digest in _split(stored) if digest in kept])
            if remaining != stored:
                self.has_removed = True
                self._execute("UPDATE spans SET digests = ? WHERE id = ?", (remaining, number))

    def add(self, run: bytes, digests: Collection[bytes], now: int) -> None:
        """Record that the receiver has the revision of the run that was sent last, and with it these spans."""
        new = sorted(frozenset(digests) - self.get(run, now))
        if new:
            self._execute("INSERT INTO spans (run, at, digests) VALUES (?, ?, ?)", (run, now, b"".join(new)))

    def forget(self, run: bytes) -> None:
        """Forget a run that has ended, or is not followed any more."""
        self._execute("DELETE FROM spans WHERE run = ?", (run,))

    def expire(self, now: int) -> None:
        """Delete what is too old, or of the future."""
        self._execute("DELETE FROM spans WHERE at <= ? OR at > ?", (now - KEEP, now))

    def bind_receiver(self, receiver: bytes) -> None:
        """Forget everything, unless this is the receiver of the last call.

        ``receiver``: what distinguishes one from another, login and tenant included. These are secrets, so only a
        salted slow hash of them is stored.
        """
        row = self._execute("SELECT salt, hash FROM receiver", ()).fetchone()
        salt = os.urandom(SIZE) if row is None else row[0]
        known = scrypt(receiver, salt=salt, n=1 << 14, r=8, p=1, dklen=32)
        if row is None or row[1] != known:
            for statement in ("DELETE FROM spans", "DELETE FROM receiver"):
                self._execute(statement, ())
            self._execute("INSERT INTO receiver VALUES (?, ?)", (salt, known))


def _split(digests: bytes) -> list[bytes]:
    return [digests[start : start + SIZE] for start in range(0, len(digests), SIZE)]
