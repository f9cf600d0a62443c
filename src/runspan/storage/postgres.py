"""``PostgresDatabase``: tables in PostgreSQL that several processes read and write at once.

A request must not wait long for a database that is away: connecting, and each transaction, have a time limit, also if
the server or the network stops in the middle. While it cannot be connected, one request a second tries, and the others
are refused at once with its reason. psycopg's own pool connects in the background, after growing pauses, and a request
would learn neither the reason nor that waiting is of no use.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.string import TextLoader

from runspan.errors import ConfigError, StateUnreachable, StoreError
from runspan.storage.database import PostgresSchema
from runspan.system import require_posix

TIMEOUT: Final = 5.0
"""Seconds for connecting, and for each transaction."""
RETRY_PAUSE: Final = 1.0
"""Seconds after a failed connection during which no other is attempted."""
LOST_AFTER: Final = 20.0
"""Seconds after which a connection counts as lost if the other side, or the network, has vanished."""
SESSION_TIMEOUT: Final = 300.0
"""Seconds for a statement of a session, such as one that changes a million rows."""
_SESSION_IDLE: Final = 30.0
"""Seconds for which a session may leave a transaction alone. Then it ends, and others go on."""
_MAX_CONNECTIONS: Final = 8
"""Of one process. A transaction takes about a millisecond."""
_MAX_TEXT: Final = 300
"""Characters of what the client library says."""
_SCHEMA_LOCK: Final = 0x72756E7370616E
"""Of advisory locks: who creates the tables."""
_WRITE_LOCK: Final = 0x72756E737063
"""The same: which session may change anything."""
_MILLISECONDS: Final = int(TIMEOUT * 1000)
_SETTINGS: Final = {
    "lock_timeout": _MILLISECONDS,
    "statement_timeout": _MILLISECONDS,
    "idle_in_transaction_session_timeout": _MILLISECONDS,  # of a server that was cut off while it held a lock
    "default_transaction_isolation": r"read\ committed",
}
_DEFAULTS: Final[dict[str, str | int | None]] = {
    "application_name": "runspan",
    "target_session_attrs": "read-write",  # of several hosts the one that is no standby
    "client_encoding": "utf8",
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": int(LOST_AFTER * 1000),
}
_SESSION_SETTINGS: Final = {
    "lock_timeout": int(SESSION_TIMEOUT * 1000),
    "statement_timeout": int(SESSION_TIMEOUT * 1000),
    "idle_in_transaction_session_timeout": int(_SESSION_IDLE * 1000),
    "synchronous_commit": "on",
    # How the server notices that a client has vanished.
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 3,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": int(LOST_AFTER * 1000),
}

_FORM: Final = "postgresql://USER@HOST:PORT/DATABASE"

logger = logging.getLogger("runspan.state")


class _Link:
    """A connection, and a second handle of its socket, which may be shut down at any time by any thread."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.deadline = math.inf
        self.timeout = TIMEOUT
        self.is_late = False
        """Whether it was interrupted."""
        self.socket = socket.socket(fileno=os.dup(connection.fileno()))

    @property
    def is_stale(self) -> bool:
        """Whether an idle connection has ended: the server sends nothing else by itself."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def start(self, timeout: float) -> None:
        """Interrupt it after so many seconds."""
        self.timeout, self.deadline = timeout, time.monotonic() + timeout

    def interrupt(self) -> None:
        """End a wait of the thread that uses the connection."""
        self.is_late = True
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self.socket.close()


class PostgresDatabase:
    """A ``Database`` in PostgreSQL, connected when it is made. Thread-safe."""

    def __init__(self, url: str, schema: PostgresSchema) -> None:
        """Connect, and create the tables if they do not exist; any number of processes may do so at once.

        url: ``postgresql://…``, with or without a password; libpq's variables and files count too.
        Raises ConfigError for another URL, StateUnreachable, and StoreError for tables of another version.
        """
        require_posix("a shared state in PostgreSQL", "state")
        self.schema = schema
        self._conninfo, self.name, self._password = _parse(url, schema)
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._idle: list[_Link] = []
        self._used: set[_Link] = set()
        self._reason = ""
        """Why it cannot be connected; empty if it can."""
        self._retry_at = 0.0
        self._failures = 0
        self._closed = threading.Event()
        threading.Thread(target=self._interrupt_late, name="runspan-state", daemon=True).start()
        try:
            self._create_or_check()
        except BaseException:
            self.close()
            raise

    @property
    def failures(self) -> int:
        """How many transactions failed because it did not answer."""
        return self._failures

    def is_reachable(self) -> bool:
        """Whether it answers now."""
        try:
            self.execute("SELECT 1")
        except StoreError:
            return False
        return True

    def execute(self, statement: str, *values: object) -> list[Any]:
        """See ``Database``. Raises StateUnreachable if it does not answer."""
        with self._connected() as connection:
            return _execute(connection, statement, *values)

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., list[Any]]]:
        """Yield ``execute`` for the statements of one transaction, which the end of the block commits."""
        with self._connected() as connection, connection.transaction():
            yield partial(_execute, connection)

    def version(self) -> int | None:
        """See ``Database``."""
        return None

    def session(self) -> PostgresSession:
        """Return a connection of its own. Raises StateUnreachable."""
        self._refuse_while_away()
        link = self._connect()
        try:
            with self.answering(link):
                for name, value in _SESSION_SETTINGS.items():
                    _execute(link.connection, "SELECT set_config(?, ?, false)", name, str(value))
        except BaseException:
            self.give_back(link, reuse=False)
            raise
        return PostgresSession(self, link)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed.set()
        self._close_idle()

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        """Yield a connection that no other thread uses meanwhile."""
        self._refuse_while_away()
        if not self._slots.acquire(timeout=TIMEOUT):
            raise self._unreachable("all connections are in use")
        try:
            link = self._take_idle() or self._connect()
            try:
                with self.answering(link):
                    yield link.connection
            finally:
                self.give_back(link)
        finally:
            self._slots.release()

    @contextmanager
    def answering(self, link: _Link) -> Iterator[None]:
        """Translate the errors of a block that uses a connection, and note that it answers if there is none."""
        try:
            yield
            self._answered()
        except psycopg.Error as error:
            raise self._translate(error, link) from error

    def _take_idle(self) -> _Link | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                link = self._idle.pop()
                if not link.is_stale:
                    self._use(link)
                    return link
            link.close()

    def _connect(self) -> _Link:
        try:
            link = _Link(psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None))
        except (psycopg.Error, OSError) as error:
            raise self._away(self._text(error)) from error
        with self._lock:
            self._use(link)
        return link

    def _answered(self) -> None:
        """Stop refusing requests, since the database answers."""
        if self._reason:
            self._reason = ""
            logger.warning("%s answers again", self.name)

    def _away(self, reason: str) -> StateUnreachable:
        """Refuse all until the end of the pause, and return the error."""
        with self._lock:
            changed, self._reason = not self._reason, reason
            self._retry_at = time.monotonic() + RETRY_PAUSE
        if changed:
            logger.error("%s does not answer: %s", self.name, reason)
        return self._unreachable(reason)

    def _use(self, link: _Link) -> None:
        link.start(TIMEOUT)
        self._used.add(link)

    def give_back(self, link: _Link, *, reuse: bool = True) -> None:
        """Close a connection, or let another transaction use it."""
        status = link.connection.info.transaction_status
        with self._lock:
            self._used.remove(link)
            if reuse and status is psycopg.pq.TransactionStatus.IDLE and not self._closed.is_set():
                self._idle.append(link)
                return
        link.close()
        if status is psycopg.pq.TransactionStatus.UNKNOWN:  # it broke, and so did those that are idle
            self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            links, self._idle = self._idle, []
        for link in links:
            link.close()

    def _refuse_while_away(self) -> None:
        with self._lock:
            if not self._reason:
                return
            reason, now = self._reason, time.monotonic()
            if now >= self._retry_at:
                self._retry_at = now + TIMEOUT + RETRY_PAUSE  # this thread tries, and the others do not wait for it
                return
        raise self._unreachable(reason)

    def _interrupt_late(self) -> None:
        while not self._closed.wait(TIMEOUT / 10):
            now = time.monotonic()
            with self._lock:
                late = [link for link in self._used if link.deadline < now]
            for link in late:
                link.interrupt()

    def _translate(self, error: psycopg.Error, link: _Link) -> StoreError:
        if link.is_late:
            return self._away(f"no answer within {link.timeout:g} seconds")
        text = self._text(error)
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            link.interrupt()  # it became a standby, and another host may take writes
            return self._unreachable(text)
        if isinstance(error, psycopg.OperationalError) or link.connection.broken:
            return self._unreachable(text)
        self._answered()
        hint = "look at the log of PostgreSQL, and at the rights of the user on the schema"
        return StoreError("PostgreSQL refused a statement", where=self.name, got=text, hint=hint)

    def _unreachable(self, reason: str) -> StateUnreachable:
        with self._lock:
            self._failures += 1
        return StateUnreachable(
            f"{self.schema.title} does not answer",
            where=self.name,
            got=reason,
            hint=self.schema.away,
            retry_after=RETRY_PAUSE,
        )

    def _text(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        return (text.replace(self._password, "…") if self._password else text)[:_MAX_TEXT]

    def _create_or_check(self) -> None:
        name, version = self.schema.name, self.schema.version
        with self.transaction() as execute:
            execute("SELECT pg_advisory_xact_lock(?)", _SCHEMA_LOCK)
            if not execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", name):
                execute(f'CREATE SCHEMA "{name}"')
            tables = execute("SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace(?)", name)
            if not tables:
                execute("CREATE TABLE format (version integer NOT NULL)")
                execute("INSERT INTO format VALUES (?)", version)
                execute(self.schema.tables)
            elif execute("SELECT to_regclass(?) IS NULL", f"{name}.format") == [(True,)]:
                raise StoreError(
                    where=self.name,
                    expected=f"no schema {name!r}, or an empty one",
                    got="another application's schema",
                    hint=self.schema.hint,
                )
            found = execute("SELECT version FROM format")
            if found != [(version,)]:
                raise StoreError(
                    f"{self.schema.title} was written by another version of runspan",
                    where=self.name,
                    expected=f"format {version}",
                    got=f"format {found[0][0] if found else 'unknown'}",
                    hint=f"use that version, or {self.schema.hint}",
                )


class PostgresSession:
    """A ``Session`` in PostgreSQL. After an error it may only be closed.

    As in SQLite, one transaction at a time changes anything, so what holds there holds here.
    """

    def __init__(self, database: PostgresDatabase, link: _Link) -> None:
        self._database = database
        self._link: _Link | None = link
        self._connection = link.connection
        self._connection.adapters.register_loader("text", _TextLoader)
        link.deadline = math.inf

    @property
    def where(self) -> str:
        """See ``Session``."""
        return self._database.name

    @property
    def what(self) -> str:
        """See ``Session``."""
        return self._database.schema.title

    @property
    def hint(self) -> str:
        """See ``Session``."""
        return self._database.schema.hint

    @property
    def in_transaction(self) -> bool:
        """See ``Session``."""
        # Also when the connection is lost: a commit must not succeed then.
        return self._connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE

    def begin(self) -> None:
        """See ``Session``."""
        self.execute(f"BEGIN; SELECT pg_advisory_xact_lock({_WRITE_LOCK})")

    def execute(self, statement: str, values: Iterable[Any] = ()) -> psycopg.Cursor[Any]:
        """See ``Session``."""
        if self._link is None:
            raise StoreError("the session is closed", where=self.where)
        adapted = tuple(_to_postgres(value) for value in values)
        with self.errors():
            self._link.start(SESSION_TIMEOUT)
            try:
                return self._connection.execute(_translated(statement), adapted or None)
            finally:
                self._link.deadline = math.inf

    def commit(self) -> None:
        """See ``Session``."""
        if self.execute("COMMIT").statusmessage != "COMMIT":
            raise StoreError("the transaction has failed before", where=self.where)

    def roll_back(self) -> None:
        """See ``Session``."""
        self.execute("ROLLBACK")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """See ``Session``."""
        if self._link is None:
            yield
            return
        with self._database.answering(self._link):
            yield

    def flush(self) -> None:
        """See ``Session``. A commit returns once it is on disk."""

    def indexed_by(self, index: str) -> str:
        """See ``Session``. PostgreSQL knows how many rows it would read."""
        return ""

    def close(self) -> None:
        """See ``Session``."""
        if self._link is not None:
            self._database.give_back(self._link, reuse=False)
            self._link = None


class _TextLoader(TextLoader):
    """Texts of ``_to_postgres``."""

    def load(self, data: Any) -> Any:
        text = str(super().load(data))
        return re.sub(r"\\[0\\]", lambda match: "\0" if match[0] == r"\0" else "\\", text) if "\\" in text else text


def _to_postgres(value: Any) -> Any:
    """Return a value as SQLite takes it: any kind of whole number, and texts with any character."""
    if isinstance(value, int):
        return int(value)
    return value.replace("\\", r"\\").replace("\0", r"\0") if isinstance(value, str) else value


def _translated(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


def _execute(connection: psycopg.Connection[Any], statement: str, *values: object) -> list[Any]:
    # Without values it may be several statements.
    cursor = connection.execute(_translated(statement), values or None)
    return cursor.fetchall() if cursor.description else []


def _parse(url: str, schema: PostgresSchema) -> tuple[str, str, str]:
    """Return the connection string, the name of the database for messages, and the password."""
    hint = "percent-encode special characters of the password, such as %2F for /"
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:  # its text may quote the password
        raise ConfigError(where="state", expected=_FORM, got="another URL", hint=hint) from None
    host, port, database = (str(given.get(key) or "") for key in ("host", "port", "dbname"))
    if not url.startswith(("postgresql://", "postgres://")) or "@" in host + database or port.strip("0123456789,"):
        raise ConfigError(where="state", expected=_FORM, got="another URL", hint=hint)
    settings = {"search_path": schema.name, **_SETTINGS}
    options = " ".join((str(given.pop("options", "")), *(f"-c {key}={value}" for key, value in settings.items())))
    conninfo = make_conninfo("", **(_DEFAULTS | given | {"options": options, "connect_timeout": int(TIMEOUT)}))
    address = f" at {host}{port and ':' + port}" if host else ""
    return conninfo, f"PostgreSQL database {database or 'of the user'}{address}", str(given.get("password") or "")
