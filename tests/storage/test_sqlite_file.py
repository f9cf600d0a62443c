"""Every SQLite file of runspan is created, checked and locked in the same way."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from runspan.backends.sqlite import SqliteStore
from runspan.errors import StoreError
from runspan.storage.sqlite_file import Schema, open_database, open_read_only, store_error, translate_errors
from runspan.sync.checkpoint import Checkpoint, sync_binding
from runspan.watch.state_db import WatchState
from runspan.web.api_keys import ApiKeyStore
from runspan.web.sessions import SessionStore

SCHEMA = Schema("a test file", 0x7465, 7, ("CREATE TABLE t (x INTEGER)",), "name another file")


def sessions(path: Path) -> SessionStore:
    with closing(ApiKeyStore(path.with_name("other-keys"))) as keys:
        return SessionStore(path, keys)


OPENERS: dict[str, tuple[str, Callable[[Path], SqliteStore | Checkpoint | WatchState | ApiKeyStore | SessionStore]]] = {
    "store": ("runspan.sqlite3", lambda path: SqliteStore(path.parent)),
    "checkpoint": ("checkpoint", lambda path: Checkpoint(path, sync_binding("a", "b"))),
    "watch state": ("state", lambda path: WatchState(path, "target", "")),
    "keys": ("keys", ApiKeyStore),
    "sessions": ("sessions", sessions),
}
EXCLUSIVE = {"watch state"}


@pytest.fixture(params=OPENERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(kind: str, tmp_path: Path) -> Path:
    return tmp_path / OPENERS[kind][0]


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_a_new_file_is_marked_and_private(kind: str, path: Path) -> None:
    """It has an application id of its own, version 1, a write-ahead log, and mode 0600."""
    opened = OPENERS[kind][1](path)
    with closing(opened):
        for file in path.parent.glob(f"{path.name}*"):
            assert file.stat().st_mode & 0o777 == 0o600
    assert pragma(path, "application_id") not in (0, None)
    assert pragma(path, "user_version") == 1
    assert pragma(path, "journal_mode") == "wal"
    OPENERS[kind][1](path).close()


def test_the_kinds_have_different_ids(tmp_path: Path) -> None:
    ids = set()
    for name, opener in OPENERS.values():
        opener(tmp_path / name).close()
        ids.add(pragma(tmp_path / name, "application_id"))
    assert len(ids) == len(OPENERS)


@pytest.mark.parametrize("change", ["user_version = 2", "user_version = 0", "application_id = 5"])
def test_a_file_of_another_version_or_kind_is_refused_untouched(kind: str, path: Path, change: str) -> None:
    """The error says which file, what was expected and what to do."""
    OPENERS[kind][1](path).close()
    pragma(path, change.partition(" ")[0])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA {change}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another (version|application)") as caught:
        OPENERS[kind][1](path)
    assert (caught.value.where, bool(caught.value.expected), bool(caught.value.hint)) == (str(path), True, True)
    assert path.read_bytes() == before


def test_the_database_of_another_application_is_refused_untouched(kind: str, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another application's database"):
        OPENERS[kind][1](path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_untouched(kind: str, path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to look at" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no SQLite database"):
        OPENERS[kind][1](path)
    assert path.read_bytes() == before


def test_a_path_that_cannot_be_opened_is_an_error(kind: str, path: Path) -> None:
    path.mkdir()
    with pytest.raises(StoreError) as caught:
        OPENERS[kind][1](path)
    assert caught.value.hint


def test_a_file_in_use_is_refused_where_one_process_may_use_it(kind: str, path: Path) -> None:
    """The others share theirs with other processes."""
    with closing(OPENERS[kind][1](path)):
        if kind in EXCLUSIVE:
            with pytest.raises(StoreError, match="another process is using") as caught:
                OPENERS[kind][1](path)
            assert "--state-file" in caught.value.hint
        else:
            OPENERS[kind][1](path).close()
    OPENERS[kind][1](path).close()


def test_many_may_create_one_file_at_once(tmp_path: Path) -> None:
    """The tables are created once, and every thread gets a connection."""
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def opening(number: int) -> None:
        try:
            for round_number in range(10):
                barrier.wait(30)
                with closing(open_database(tmp_path / str(round_number), SCHEMA)) as connection:
                    connection.execute("INSERT INTO t VALUES (?)", (number,))
        except BaseException as error:  # raised by the main thread
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=opening, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for round_number in range(10):
        with closing(open_read_only(tmp_path / str(round_number))) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (8,)


def test_a_connection_that_only_reads_cannot_write(tmp_path: Path) -> None:
    open_database(tmp_path / "db", SCHEMA).close()
    with closing(open_read_only(tmp_path / "db", pragmas=("cache_size = -100",))) as connection:
        assert connection.execute("PRAGMA cache_size").fetchone() == (-100,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("INSERT INTO t VALUES (1)")


def test_a_creation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """All tables and the version are one transaction."""
    broken = Schema("a test file", 0x7465, 7, (*SCHEMA.tables, "CREATE TABLE t (y)"), "name another file")
    with pytest.raises(StoreError, match="already exists"):
        open_database(tmp_path / "db", broken)
    open_database(tmp_path / "db", SCHEMA).close()


def test_a_damaged_page_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "db", SCHEMA)) as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(5000)])
    content = bytearray((tmp_path / "db").read_bytes())
    content[4096:8192] = b"\xff" * 4096
    (tmp_path / "db").write_bytes(content)
    with (
        closing(open_database(tmp_path / "db", SCHEMA)) as connection,
        pytest.raises(StoreError, match="damaged"),
        translate_errors(tmp_path / "db"),
    ):
        connection.execute("SELECT count(*) FROM t").fetchone()


def test_an_unknown_error_still_says_what_sqlite_said() -> None:
    error = store_error(sqlite3.OperationalError("strange"), Path("db"))
    assert (error.where, error.got) == ("db", "strange")
    assert error.hint
