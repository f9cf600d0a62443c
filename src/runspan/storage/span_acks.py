"""``Acknowledged``: which spans of runs that go on a receiver has, so that no later snapshot sends them again.

Two tables in a ledger's or a checkpoint's file. A receiver may keep no more than the newest version of a run names, and
which version reached it last is not always known. So a span stands here only from its acknowledgement on, and only as
long as every version that was handed over since then names it. Forgetting is always safe: what is forgotten is sent
again, as the same span.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from hashlib import scrypt, sha256
from typing import Any, Final

KEEP: Final = 86_400 * 1_000_000_000
"""How long a span is remembered, nanoseconds: then a run that still goes on sends it once more, since a backend may
delete it while the run needs it. The Collector counts no span that ended more than an hour before it came."""

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
    """What a span is remembered by: of all its bytes, 16 of their SHA-256."""
    return sha256(span).digest()[:SIZE]


class SpanAcks:
    """execute: runs a statement in the transaction of whoever has the file; what is said here counts once that is
    committed. A run goes by any bytes that tell it from all others. Times are nanoseconds since 1970."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def get(self, run: bytes, now: int) -> frozenset[bytes]:
        """The digests of the spans that the receiver has.

        What does not count now is forgotten: a version that does not name it may go next, and no clock that is set
        afterwards may make it count again.
        """
        rows = list(self._rows(run))
        counting = [names for at, names in rows if now - KEEP < at <= now]
        if len(counting) < len(rows):
            self._execute("DELETE FROM spans WHERE run = ? AND (at <= ? OR at > ?)", (run, now - KEEP, now))
        return frozenset(name for names in counting for name in names)

    def retain_only(self, run: bytes, names: Collection[bytes]) -> bool:
        """Before a version of the run is handed over: forgets the spans that it does not name. Whether there were any.

        names: the digests of all spans below the head of that version.
        """
        gone = False
        kept = frozenset(names)
        rows = self._execute("SELECT id, digests FROM spans WHERE run = ?", (run,)).fetchall()
        for number, digests in rows:
            staying = b"".join([name for name in _split(digests) if name in kept])
            if staying != digests:
                gone = True
                self._execute("UPDATE spans SET digests = ? WHERE id = ?", (staying, number))
        return gone

    def add(self, run: bytes, names: Collection[bytes], now: int) -> None:
        """The receiver has the version of the run that was handed over last, and with it these spans."""
        new = sorted(frozenset(names) - self.get(run, now))
        if new:
            self._execute("INSERT INTO spans (run, at, digests) VALUES (?, ?, ?)", (run, now, b"".join(new)))

    def forget(self, run: bytes) -> None:
        """The run has ended, or is nothing to be followed any more."""
        self._execute("DELETE FROM spans WHERE run = ?", (run,))

    def expire(self, now: int) -> None:
        """Gives the place of what does not count any more free."""
        self._execute("DELETE FROM spans WHERE at <= ? OR at > ?", (now - KEEP, now))

    def bind_receiver(self, receiver: bytes) -> None:
        """Forgets everything, unless this receiver is the one that it was said of the last time.

        receiver: whatever tells one from another, login and tenant included. As these are secrets, only a salted slow
        hash of it is stored.
        """
        row = self._execute("SELECT salt, hash FROM receiver", ()).fetchone()
        salt = os.urandom(SIZE) if row is None else row[0]
        known = scrypt(receiver, salt=salt, n=1 << 14, r=8, p=1, dklen=32)
        if row is None or row[1] != known:
            for statement in ("DELETE FROM spans", "DELETE FROM receiver"):
                self._execute(statement, ())
            self._execute("INSERT INTO receiver VALUES (?, ?)", (salt, known))

    def _rows(self, run: bytes) -> Iterator[tuple[int, list[bytes]]]:
        for at, digests in self._execute("SELECT at, digests FROM spans WHERE run = ?", (run,)).fetchall():
            yield at, _split(digests)


def _split(digests: bytes) -> list[bytes]:
    return [digests[start : start + SIZE] for start in range(0, len(digests), SIZE)]
