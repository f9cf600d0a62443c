"""A database and the write-ahead log next to it: what belongs together is opened, everything else is refused."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from conformance.harness import T0
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.backends.sqlite.wal import log_path
from runspan.errors import StoreError
from runspan.testing import generate
from support.cli import environment

RUNS = [Run.from_json(text) for text in generate(120, seed=8)]


def put(store: SqliteStore, start: int, end: int) -> None:
    for run in RUNS[start:end]:
        store.put(run, observed_at=T0)


def snapshot(data: Path, target: Path) -> Path:
    """Copy the files as a killed process leaves them."""
    target.mkdir()
    for file in data.glob(f"{FILE_NAME}*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, target)
    return target


def stored(data: Path) -> set[str]:
    with SqliteStore(data) as store, closing(sqlite3.connect(store.path)) as connection:
        assert intact(connection)
        return {row[0].decode() for row in connection.execute("SELECT run_id FROM runs")}


def intact(connection: sqlite3.Connection) -> bool:
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    except sqlite3.DatabaseError:
        return False


def checkpoint(store: SqliteStore) -> None:
    store.vacuum()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_every_transaction_has_a_marker_of_its_own(data: Path) -> None:
    """The row is on the page that is read without SQLite."""
    markers = []
    with SqliteStore(data) as store:
        for start in range(3):
            put(store, start, start + 1)
            with closing(sqlite3.connect(store.path)) as connection:
                markers.append(connection.execute("SELECT marker, previous FROM last_commit").fetchone())
                page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'last_commit'").fetchone()
    assert page == (3,)
    assert [marker for marker, _ in markers[:-1]] == [previous for _, previous in markers[1:]]


def test_a_killed_store_opens_with_its_log(data: Path, tmp_path: Path) -> None:
    """Before, between and after checkpoints everything that was confirmed is there."""
    with SqliteStore(data) as store:
        put(store, 0, 10)
        first = snapshot(data, tmp_path / "first")
        checkpoint(store)
        put(store, 10, 20)
        second = snapshot(data, tmp_path / "second")
        with closing(sqlite3.connect(store.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        third = snapshot(data, tmp_path / "third")
    assert (len(stored(first)), len(stored(second)), len(stored(third))) == (10, 20, 20)


def test_a_store_killed_while_it_frees_pages_opens(data: Path, tmp_path: Path) -> None:
    """Pages are freed in a transaction of their own, which may be the only one of the log."""
    snapshots: list[Path] = []
    with SqliteStore(data) as store:
        put(store, 0, 60)
        store.vacuum()
        writer = store._writer
        truncate = writer._truncate_log

        def snapshot_and_truncate() -> None:
            snapshots.append(snapshot(data, tmp_path / f"killed-{len(snapshots)}"))
            truncate()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "_truncate_log", snapshot_and_truncate)
            writer.submit_to_full_disk(lambda connection: connection.execute("DELETE FROM runs WHERE id > 10").rowcount)
    logs = [log_path(killed / FILE_NAME).stat().st_size for killed in snapshots]
    assert len(logs) == 3
    assert all(logs[1:])  # the second has the deletion, the third has only the freed pages
    assert [len(stored(killed)) for killed in snapshots] == [60, 10, 10]


def test_a_checkpoint_that_was_interrupted_is_finished(data: Path, tmp_path: Path) -> None:
    """Of the pages of a log, the database may have any part."""
    with SqliteStore(data) as store:
        put(store, 0, 60)
        before = snapshot(data, tmp_path / "before")
        with closing(sqlite3.connect(store.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        after = (data / FILE_NAME).read_bytes()
    page, old = 4096, (before / FILE_NAME).read_bytes()
    random = Random(8)
    for length in (1, 2, 3, 4, 20):  # pages are moved in the order of their numbers
        torn = tmp_path / f"torn-{length}"
        shutil.copytree(before, torn)
        (torn / FILE_NAME).write_bytes(after[: length * page] + old[length * page :])
        assert len(stored(torn)) == 60
    for at in range(5):
        torn = tmp_path / f"mixed-{at}"
        shutil.copytree(before, torn)
        pages = [
            after[n : n + page] if random.random() < 0.5 else old[n : n + page] for n in range(0, len(after), page)
        ]
        (torn / FILE_NAME).write_bytes(b"".join(pages))
        assert len(stored(torn)) == 60


def refuse(data: Path, message: str = "not of this database") -> None:
    """Opening is refused, as often as it is tried, and changes no file."""
    before = {file.name: file.read_bytes() for file in data.glob(f"{FILE_NAME}*") if not file.name.endswith("-shm")}
    for _ in range(2):
        with pytest.raises(StoreError, match=message):
            SqliteStore(data)
    assert before == {
        file.name: file.read_bytes() for file in data.glob(f"{FILE_NAME}*") if not file.name.endswith("-shm")
    }


def test_a_log_over_an_older_copy_is_refused(data: Path, tmp_path: Path) -> None:
    """SQLite alone applies it, and the copy is damaged."""
    with SqliteStore(data) as store:
        put(store, 0, 40)
        checkpoint(store)
        copy = shutil.copy(data / FILE_NAME, tmp_path / "copy")
        put(store, 40, 80)
        checkpoint(store)
        put(store, 80, 100)
        killed = snapshot(data, tmp_path / "killed")
    shutil.copy(copy, killed / FILE_NAME)
    without_check = shutil.copytree(killed, tmp_path / "without")
    with closing(sqlite3.connect(without_check / FILE_NAME)) as connection:
        assert not intact(connection)
    refuse(killed)


def test_a_log_over_a_newer_copy_is_refused(data: Path, tmp_path: Path) -> None:
    """The log was left behind before the copy was made."""
    with SqliteStore(data) as store:
        put(store, 0, 40)
        killed = snapshot(data, tmp_path / "killed")
        checkpoint(store)
        put(store, 40, 80)
        checkpoint(store)
        shutil.copy(data / FILE_NAME, killed)
    refuse(killed)


def test_a_log_over_a_copy_that_went_another_way_is_refused(data: Path, tmp_path: Path) -> None:
    """Both began as one file and made the same number of commits."""
    with SqliteStore(data) as store:
        put(store, 0, 20)
    other = shutil.copytree(data, tmp_path / "other")
    with SqliteStore(other) as store:
        put(store, 20, 40)
    with SqliteStore(data) as store:
        put(store, 40, 60)
        checkpoint(store)
        put(store, 60, 70)
        killed = snapshot(data, tmp_path / "killed")
    shutil.copy(other / FILE_NAME, killed)
    refuse(killed)


def test_a_log_of_another_store_is_refused(data: Path, tmp_path: Path) -> None:
    """Also one of another kind of file, and one without its database."""
    with SqliteStore(data) as store:
        put(store, 0, 20)
    with SqliteStore(tmp_path / "other") as store:
        put(store, 0, 20)
        shutil.copy(log_path(store.path), log_path(data / FILE_NAME))
    refuse(data)
    with closing(sqlite3.connect(tmp_path / "foreign")) as connection:
        connection.executescript("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        shutil.copy(tmp_path / "foreign-wal", log_path(data / FILE_NAME))
    refuse(data)
    (data / FILE_NAME).unlink()
    refuse(data)
    log_path(data / FILE_NAME).unlink()
    assert stored(data) == set()


def test_a_log_whose_middle_is_damaged_is_refused(data: Path, tmp_path: Path) -> None:
    """Confirmed writes that follow the damage would be lost without notice. An incomplete end is no damage."""
    with SqliteStore(data) as store:
        put(store, 0, 20)
        killed = snapshot(data, tmp_path / "killed")
    log = log_path(killed / FILE_NAME)
    content = log.read_bytes()
    for at in (8, 20, len(content) // 2):
        log.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        refuse(killed, "write-ahead log is damaged")
    log.write_bytes(content[:-5000])
    assert len(stored(killed)) == 19


PROCESS = """
import sys, time
from runspan.backends.sqlite import SqliteStore
with SqliteStore(sys.argv[1]):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_store_that_another_process_has_open_is_opened(data: Path) -> None:
    """That process has compared the two, and moves the log while this one opens the files."""
    with SqliteStore(data) as store:
        put(store, 0, 20)
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(data)], stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert len(stored(data)) == 20
        process.send_signal(signal.SIGKILL)
    assert len(stored(data)) == 20
