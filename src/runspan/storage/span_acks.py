"""The state of a sender, and in it the spans of unfinished runs that a receiver has and no snapshot sends again.

A receiver may keep only the spans in the manifest of a run's newest revision, and it is not always known which revision
reached it last. So a span is remembered from its acknowledgement on, and only as long as every revision that was sent
since then contains it. Forgetting is always safe: what is forgotten is sent again, as the same span.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import scrypt, sha256
from typing import Any, Final

from runspan.errors import ConfigError, StoreError
from runspan.storage.database import Rows, Session
from runspan.storage.sqlite_file import read_statements

KEEP: Final = 86_400 * 1_000_000_000
"""How long a span is remembered, in nanoseconds. Then an unfinished run sends it once more, since a backend may delete
it while the run needs it. The Collector does not count a span that ended more than an hour before it arrived."""

SIZE: Final = 16
TABLES: Final = read_statements(__package__, "span_acks.sql")
"""The tables of every state."""

Execute = Callable[[str, Sequence[Any]], Rows]


def state_hints(without: str) -> dict[str, str]:
    """Return the hints of the schema of a state file. ``without``: what to do instead of using the file."""
    elsewhere = "give the user of this process permission, or name a file elsewhere with --state-file"
    return {
        **dict.fromkeys(("", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"), elsewhere),
        **dict.fromkeys(("SQLITE_CORRUPT", "SQLITE_NOTADB"), without),
        "SQLITE_FULL": "free space; what was not recorded is sent again, and no run is doubled",
        "SQLITE_IOERR": f"look at the system's log and check the disk, or {without}",
    }


def digest_of(data: bytes) -> bytes:
    """Return the digest by which a span or a document is remembered: 16 bytes of the SHA-256 of all its bytes."""
    return sha256(data).digest()[:SIZE]


class SpanAcks:
    """The tables ``spans`` and ``receiver``. Any unique bytes name a run. Times are nanoseconds since 1970."""

    def __init__(self, execute: Execute) -> None:
        """``execute``: runs a statement in the transaction of its owner, who commits it."""
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


class SenderState:
    """What a sender remembers of runs, in a database that survives a kill at any moment. Used by one thread.

    The first change begins a transaction: what was done since the last ``commit`` is lost in a crash.

    Raise ConfigError if it has another binding, and StoreError if it cannot be used or is damaged.
    """

    def __init__(self, session: Session, binding: Mapping[str, str]) -> None:
        """``session``: closed by ``close``, and if this fails.

        ``binding``: names and values of what the state belongs to, such as its receiver.
        """
        self.spans = SpanAcks(self._run)
        """The spans of unfinished runs that the receiver has."""
        self._session = session
        try:
            self._begin()
            self._bind(binding)
            self._prepare()
            self.commit()
        except BaseException:
            self.close()
            raise

    def commit(self) -> None:
        """Commit, so that what was done survives a kill of the process."""
        if self._session.in_transaction:
            self._session.commit()
        if self.spans.has_removed:
            # Removed spans must not come back after a power cut: this waits until the removal is on the disk.
            self._session.flush()
            self.spans.has_removed = False

    def roll_back(self) -> None:
        """Discard what is not committed."""
        if self._session.in_transaction:  # SQLite ends it itself after some errors
            self._session.roll_back()

    def close(self) -> None:
        """Close the database and discard what is not committed. Idempotent."""
        self._session.close()

    def _bind(self, binding: Mapping[str, str]) -> None:
        """Write the binding to a new database. Raise ConfigError when it has another one."""
        bound = dict(self._all("SELECT name, value FROM binding"))
        for name, value in binding.items():
            if not bound:
                self._run("INSERT INTO binding VALUES (?, ?)", (name, value))
            elif bound.get(name) != value:
                raise ConfigError(
                    f"{self._session.what} belongs to another {name}",
                    where=self._session.where,
                    expected=bound.get(name) or "none",
                    got=value or "none",
                    hint=self._session.hint,
                )

    def _prepare(self) -> None:
        """Prepare the state for this process, in the first transaction."""

    def _begin(self) -> None:
        if not self._session.in_transaction:
            self._session.begin()

    def _run(self, statement: str, values: Iterable[Any] = ()) -> Rows:
        """Execute a statement that may change something."""
        self._begin()
        return self._execute(statement, values)

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> Rows:
        try:
            return self._session.execute(statement, values)
        except OverflowError:
            raise self._damaged("a number that no clock shows") from None

    def _all(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """Return the rows of a statement that changes nothing."""
        with self._session.errors():
            return self._execute(statement, values).fetchall()

    def _damaged(self, got: str) -> StoreError:
        expected, where, hint = self._session.what, self._session.where, self._session.hint
        return StoreError("what it has recorded is damaged", where=where, expected=expected, got=got, hint=hint)


def _split(digests: bytes) -> list[bytes]:
    return [digests[start : start + SIZE] for start in range(0, len(digests), SIZE)]
