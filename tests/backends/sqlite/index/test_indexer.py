"""The index follows its store, whatever happens to either, and is never believed about a run."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from time import process_time, sleep

import pytest

from backends.sqlite.index.test_filters import HOUR, T0, expected, listed, make_run, make_runs
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.backup import restore_backup, write_backup
from runspan.backends.sqlite.index import facts_index, feed, indexer
from runspan.codec.facts import RunFacts, run_facts
from runspan.contracts import RunQuery
from runspan.errors import QueryUnsupported, StoreError
from runspan.model.timestamps import SECOND, rfc3339
from runspan.storage.data_directory import INDEX_FILE
from runspan.storage.sqlite_file import open_database

DAY = 24 * HOUR
QUERIES = (
    RunQuery(order="duration"),
    RunQuery(order="cost", limit=3),
    RunQuery(trigger="manual"),
    RunQuery(model="gpt-4o-mini"),
    RunQuery(step_type="email", limit=200),
)


def put(store: SqliteStore, *runs: Run) -> None:
    for run in runs:
        assert not store.put(run, observed_at=T0 + HOUR).rejected


def assert_current(store: SqliteStore, runs: list[Run]) -> None:
    """Compare every list with all runs that the store has."""
    for query in QUERIES:
        assert listed(store, query) == expected(runs, query), query


@pytest.fixture
def runs() -> list[Run]:
    return make_runs(60)


def test_lists_have_what_was_stored_before_they_began(tmp_path: Path, runs: list[Run]) -> None:
    """Each run is in the next list, however soon it is asked for."""
    with SqliteStore(tmp_path, index=True) as store:
        for number, run in enumerate(runs):
            put(store, run)
            assert listed(store, RunQuery(order="duration")) == expected(runs[: number + 1], RunQuery(order="duration"))


def test_an_index_of_runs_that_were_there_before(tmp_path: Path, runs: list[Run]) -> None:
    """A store that had no index gets one, and further runs meanwhile."""
    with SqliteStore(tmp_path) as store:
        put(store, *runs[:40])
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs[40:])
        assert_current(store, runs)


def test_growing_runs(tmp_path: Path) -> None:
    """A run is found by what its newest document has, and by nothing that an older one had."""
    chance = random.Random(3)
    with SqliteStore(tmp_path, index=True) as store:
        for round_ in range(6):
            runs = []
            for number in range(12):
                document = make_run(chance, number).to_dict() | {"startedAt": rfc3339(T0 + number * SECOND)}
                document["status"] = "running" if round_ < 5 else "completed"
                run = Run.from_dict(document)
                store.put(run, observed_at=T0 + HOUR + round_ * SECOND)
                runs.append(run)
            assert_current(store, runs)


def test_purged_and_expired_runs(tmp_path: Path, runs: list[Run]) -> None:
    """They are in no list, and a run that is sent again is; also if it takes the place of the last run."""
    now = [T0 + HOUR]
    with SqliteStore(tmp_path, index=True, retention_days=30, clock=lambda: now[0]) as store:
        put(store, *runs)
        assert_current(store, runs)
        for gone in (runs[50:], runs[:5], runs[5:50]):
            items = [(bytes.fromhex(store.document(run.id).version().digest), run.id) for run in gone]
            assert store.purge(items).deleted == len(gone)
        assert_current(store, [])
        put(store, *runs[10:20])
        assert_current(store, runs[10:20])
        now[0] += 60 * DAY
        assert store.expire(now[0]) == 10
        assert_current(store, [])
        fresh = Run.from_dict(runs[0].to_dict() | {"startedAt": rfc3339(now[0]), "completedAt": rfc3339(now[0])})
        put(store, fresh)
        assert_current(store, [fresh])


@pytest.mark.parametrize("is_open", [True, False])
def test_a_deleted_file(tmp_path: Path, runs: list[Run], is_open: bool) -> None:
    """It is made again, also while the store is open."""
    for start in (0, 20, 40):
        with SqliteStore(tmp_path, index=True) as store:
            put(store, *runs[start : start + 20])
            assert_current(store, runs[: start + 20])
            if is_open:
                for file in tmp_path.glob(f"{INDEX_FILE}*"):
                    file.unlink()
                assert_current(store, runs[: start + 20])
        if not is_open:
            (tmp_path / INDEX_FILE).unlink()
    with SqliteStore(tmp_path, index=True) as store:
        assert_current(store, runs)


def test_a_file_of_another_store(tmp_path: Path, runs: list[Run]) -> None:
    """It is not believed."""
    for folder, some in (("a", runs[:30]), ("b", runs[30:])):
        with SqliteStore(tmp_path / folder, index=True) as store:
            put(store, *some)
            assert_current(store, some)
    (tmp_path / "a" / INDEX_FILE).rename(tmp_path / "b" / INDEX_FILE)
    with SqliteStore(tmp_path / "b", index=True) as store:
        assert_current(store, runs[30:])


@pytest.mark.parametrize("count", [0, 5, 10, 15])
def test_an_older_copy_of_the_store(tmp_path: Path, runs: list[Run], count: int) -> None:
    """Who puts it back beside the newer index gets all its runs, also those that have numbers of the others."""
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs[:20])
        assert_current(store, runs[:20])
    copy = store.path.read_bytes()
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs[20:30])
        assert_current(store, runs[:30])
    store.path.write_bytes(copy)
    with SqliteStore(tmp_path) as store:
        put(store, *runs[30 : 30 + count])
        assert_current(store, runs[:20] + runs[30 : 30 + count])
        put(store, *runs[50:])
        assert_current(store, runs[:20] + runs[30 : 30 + count] + runs[50:])


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\0" * 20_000])
def test_a_file_that_is_none(tmp_path: Path, runs: list[Run], content: bytes) -> None:
    """It is replaced."""
    with SqliteStore(tmp_path) as store:
        put(store, *runs)
    (tmp_path / INDEX_FILE).write_bytes(content)
    with SqliteStore(tmp_path, index=True) as store:
        assert_current(store, runs)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits(tmp_path: Path, runs: list[Run], seed: int) -> None:
    """No list has a run that does not belong there, or one in the wrong place; once made anew it has all."""
    chance = random.Random(seed)
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        assert_current(store, runs)
    file = tmp_path / INDEX_FILE
    content = bytearray(file.read_bytes())
    for _ in range(chance.choice([1, 10, 300])):
        content[chance.randrange(100, len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    with SqliteStore(tmp_path, index=True) as store:
        for query in QUERIES:
            wanted = expected(runs, query)[: query.limit]
            page = store.search(query)
            found = [json.loads(item)["id"] for item in page.items]
            in_order = expected(runs, query)
            assert found == [run_id for run_id in in_order if run_id in found]
            assert page.partial or len(found) <= len(wanted)
    with suppress(FileNotFoundError):
        file.unlink()
    with SqliteStore(tmp_path, index=True) as store:
        assert_current(store, runs)


CHANGES = (
    "UPDATE indexed_runs SET duration = duration + 1 WHERE run_id = x'72756e2d303037'",
    "UPDATE indexed_runs SET cost = cost + 1 WHERE run_id = x'72756e2d303037'",
    "UPDATE indexed_runs SET time = time + 1 WHERE run_id = x'72756e2d303037'",
    "UPDATE indexed_runs SET status = status + 1 WHERE run_id = x'72756e2d303037'",
    "UPDATE indexed_runs SET trace_id = zeroblob(16) WHERE run_id = x'72756e2d303037'",
    "UPDATE names SET name = x'00' WHERE name = CAST('completed' AS BLOB)",
    "UPDATE run_values SET kind = 5 - kind WHERE kind = 0",
    "UPDATE run_values SET run = run + 1000000000 WHERE kind = 1",
    "INSERT INTO run_values VALUES (1, 9, 1, 1)",
    "DELETE FROM run_values WHERE kind = 3",
    "DELETE FROM indexed_runs WHERE run_id = x'72756e2d303037'",
    "UPDATE counted_facts SET facts = x'00'",
    "DELETE FROM text_rows WHERE id % 7 = 0",
    "INSERT INTO damaged_runs VALUES (zeroblob(16), 1, x'00')",
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_lists_may_miss_is_found_by_a_check(tmp_path: Path, runs: list[Run], change: str) -> None:
    """Each column of each row is compared with the facts of its run, and the runs with those of the store."""
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        assert_current(store, runs)
        assert store.index_faults() == []
        with closing(sqlite3.connect(tmp_path / INDEX_FILE)) as connection:
            assert connection.execute(change).rowcount > 0
            connection.commit()
        assert store.index_faults() != []


def test_tenants_with_long_names(tmp_path: Path, runs: list[Run]) -> None:
    """They are apart, also if they begin alike."""
    tenants = {("é" * 200)[:length]: runs[start::3] for start, length in enumerate((150, 180, 200))}
    with SqliteStore(tmp_path, index=True) as store:
        for round_ in range(2):
            for tenant, some in tenants.items():
                for run in some:
                    store.put(run, tenant=tenant, observed_at=T0 + HOUR + round_)
            for tenant, some in tenants.items():
                query = RunQuery(tenant=tenant, order="duration")
                assert listed(store, query) == expected(some, query)
            tenants = {
                tenant: [Run.from_dict(run.to_dict() | {"durationMs": 7}) for run in some[:3]] + some[3:]
                for tenant, some in tenants.items()
            }


def test_a_wrong_row_corrects_itself(tmp_path: Path, runs: list[Run]) -> None:
    """A list leaves a run out that the index has otherwise than the store, says so, and the next one has it."""
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        assert_current(store, runs)
        with closing(sqlite3.connect(tmp_path / INDEX_FILE)) as connection:
            connection.execute("UPDATE indexed_runs SET duration = duration + 1 WHERE run_id = ?", (b"run-007",))
            connection.commit()
        page = store.search(RunQuery(order="duration", limit=200))
        assert page.partial == ("run run-007 is left out: it changed while the list was made",)
        assert len(page.items) == len(runs) - 1
        assert_current(store, runs)


def wait_until_complete(store: SqliteStore) -> None:
    """A list waits two seconds for the index, which a busy machine may not make in that time."""
    deadline = time.monotonic() + 60
    while any("does not have yet" in note for note in store.search(RunQuery(order="cost", limit=1)).partial):
        assert time.monotonic() < deadline


def test_damaged_documents(tmp_path: Path, runs: list[Run]) -> None:
    """Lists name a run whose document cannot be read, and have the others; once it is sent again they have it too."""
    with SqliteStore(tmp_path) as store:
        put(store, *runs)
        with closing(sqlite3.connect(store.path)) as connection:
            connection.execute("UPDATE runs SET document = x'00' WHERE run_id = ?", (b"run-009",))
            connection.commit()
    with SqliteStore(tmp_path, index=True) as store:
        wait_until_complete(store)
        page = store.search(RunQuery(order="cost", limit=200))
        assert page.partial == ("run run-009 is left out: its document is damaged",)
        assert len(page.items) == len(runs) - 1


def test_a_damaged_run_is_no_damage_of_the_index(tmp_path: Path, runs: list[Run]) -> None:
    """A list says what to do about the run, instead of making the index anew each time."""
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        wait_until_complete(store)
        with closing(sqlite3.connect(store.path)) as connection:
            connection.execute("UPDATE runs SET incomplete = x'ff' WHERE run_id = ?", (b"run-009",))
            connection.commit()
        with pytest.raises(StoreError, match=r"a stored run is damaged.*check --set-aside"):
            store.search(RunQuery(order="cost", limit=200))
        assert store.damaged_reads == 1


def test_a_run_that_cannot_be_indexed(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lists name it, the log says why, and the index has all others: a defect in what reads one stops none of them."""

    def fail_once(run: Run, time: int | None = None) -> RunFacts:
        if run.id == "run-009":
            raise OverflowError("a number that nobody thought of")
        return run_facts(run, time)

    monkeypatch.setattr(facts_index, "run_facts", fail_once)
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        wait_until_complete(store)
        page = store.search(RunQuery(order="duration", limit=200))
        assert page.partial == ("run run-009 is left out: its document is damaged",)
        assert len(page.items) == len(runs) - 1
    assert "a number that nobody thought of" in caplog.text


def test_large_documents_do_not_hold_the_index(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, a transaction ends behind the one at which its time is over, and the rest follows."""
    with SqliteStore(tmp_path, index=True):
        pass
    with SqliteStore(tmp_path) as store:
        put(store, *runs[:10])
        assert_current(store, runs[:10])
        put(store, *runs[10:])
        with monkeypatch.context() as slowly:
            add = facts_index.FactsWriter.put
            slowly.setattr(facts_index.FactsWriter, "put", lambda *args: (sleep(0.05), add(*args)))
            assert store._index._step(0.1).run <= 10 + 3
        assert_current(store, runs)


def test_a_list_does_not_wait_for_a_large_document(tmp_path: Path, runs: list[Run]) -> None:
    """It has what the index had before, and says what is missing."""
    with SqliteStore(tmp_path, index=True):
        pass
    with SqliteStore(tmp_path) as store:
        put(store, *runs[:10])
        assert_current(store, runs[:10])
        put(store, *runs[10:])
        with store._index._lock:
            assert store._index.catch_up(0.1) == len(runs) - 10


def test_closing_does_not_wait_for_a_large_document(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start indexes it."""
    monkeypatch.setattr(indexer, "_CLOSE_SECONDS", 0.1)
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs)
        thread = store._index._thread
        assert thread is not None
        with store._index._lock:
            store.close()
            assert thread.is_alive()
        thread.join()
        assert store._index._connection is None
    with SqliteStore(tmp_path, index=True) as store:
        assert_current(store, runs)


def test_ids_are_found_quickly_among_many_that_are_taken(tmp_path: Path) -> None:
    """Runs of every millisecond of a range make no later run of that time look through all of them."""
    insert = "INSERT INTO indexed_runs VALUES (?, randomblob(16), 1, 0, NULL, 1, 1, 1, 1, 1, 1, 1, x'00')"
    with closing(open_database(tmp_path / "index", indexer.SCHEMA)) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO progress VALUES (1, 1, x'', 0, 0)")
        connection.executemany(insert, [(row_id,) for row_id in range(1000, 101_000)])
        writer = facts_index.FactsWriter(connection)
        begun = process_time()
        ids = []
        for milliseconds in range(1000, 3000):
            ids.append(writer._free_id(milliseconds))
            connection.execute(insert, (ids[-1],))
        assert ids == list(range(101_000, 103_000))
        assert process_time() - begun < 3, "two thousand times a hundred thousand ids take half a minute"
        assert writer._free_id(500) == 500


def test_none_is_kept(tmp_path: Path, runs: list[Run]) -> None:
    """Without an index what needs one is refused; the file is gone, and the store has nothing for it."""
    with SqliteStore(tmp_path, index=True) as store:
        put(store, *runs[:30])
        assert_current(store, runs[:30])
    with SqliteStore(tmp_path, index=False) as store:
        put(store, *runs[30:])
        assert not list(tmp_path.glob(f"{INDEX_FILE}*"))
        with closing(sqlite3.connect(store.path)) as connection:
            assert not feed.is_on(connection)
            assert connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%changed%'").fetchall() == []
        for query in QUERIES:
            with pytest.raises(QueryUnsupported, match="keeps no index"):
                store.search(query)
        assert len(store.search(RunQuery(limit=200)).items) == len(runs)
    with SqliteStore(tmp_path, index=True) as store:
        assert_current(store, runs)


def test_a_reader_beside_a_server(tmp_path: Path, runs: list[Run]) -> None:
    """Another process's store uses the index that there is, and brings it up to date itself if nobody else does."""
    with SqliteStore(tmp_path, index=True) as server, SqliteStore(tmp_path) as reader:
        put(server, *runs[:30])
        assert_current(reader, runs[:30])
        put(server, *runs[30:])
        assert_current(reader, runs)
        assert_current(server, runs)
    with SqliteStore(tmp_path) as writer:
        more = [Run.from_dict(run.to_dict() | {"id": f"{run.id}-again"}) for run in runs]
        put(writer, *more)
        assert_current(writer, runs + more)


def test_lists_say_what_is_not_indexed_yet(tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that cannot wait for the index is not complete, and says how many runs are missing."""
    with SqliteStore(tmp_path, index=True) as store:
        pass
    with SqliteStore(tmp_path) as store:
        put(store, *runs)
        monkeypatch.setattr(indexer, "_BATCH", 1)
        monkeypatch.setattr(indexer, "_MAX_SECONDS", 0.0)
        monkeypatch.setattr(store._index, "catch_up", lambda: type(store._index).catch_up(store._index, 0.0))
        page = store.search(RunQuery(order="cost", limit=200))
        (note,) = page.partial
        assert int(note.split()[0]) + len(page.items) == len(runs)
        assert page.items != [] or int(note.split()[0]) == len(runs)


def test_how_far_it_is_behind(tmp_path: Path, runs: list[Run]) -> None:
    """Its numbers are those of the runs that it lacks, changed and new ones, until it has them."""
    now = T0 + DAY
    with SqliteStore(tmp_path, index=True, clock=lambda: now) as store:
        put(store, runs[0])
        assert_current(store, runs[:1])
        stats = store.index_stats()
        assert stats is not None
        assert (stats.lag, stats.oldest) == (0, None)
        assert stats.bytes > 0
        with store._index._lock:  # nothing is read meanwhile
            now += SECOND
            changed = Run.from_dict({**runs[0].to_dict(), "changed": True})
            assert store.put(changed, observed_at=T0 + 2 * HOUR).changed
            now += SECOND
            put(store, *runs[1:4])
            behind = store.index_stats()
        assert behind is not None
        assert (behind.lag, behind.oldest) == (4, T0 + DAY + SECOND)
        assert store.search(RunQuery(order="cost")).partial == ()
        stats = store.index_stats()
        assert stats is not None
        assert (stats.lag, stats.oldest) == (0, None)
    with SqliteStore(tmp_path) as store:
        assert store.index_stats() is None


def test_a_full_disk(tmp_path: Path, runs: list[Run]) -> None:
    """Lists have what was indexed before, and say how much is missing; later they are complete again."""
    with SqliteStore(tmp_path, index=True):
        pass
    with SqliteStore(tmp_path) as store:
        put(store, *runs[:30])
        assert_current(store, runs[:30])
        index = store._index._connection
        assert index is not None
        index.execute("PRAGMA max_page_count = 1")  # the file cannot grow
        large = [Run.from_dict(run.to_dict() | {"id": f"{run.id}-{'x' * 400}"}) for run in runs]
        put(store, *large)
        page = store.search(RunQuery(order="cost", limit=200))
        assert page.partial == ("60 runs that the index does not have yet: it is being made, so try again later",)
        assert [json.loads(item)["id"] for item in page.items] == expected(runs[:30], RunQuery(order="cost"))
        index.execute("PRAGMA max_page_count = 1000000")
        assert_current(store, runs[:30] + large)


def test_a_backup_has_no_index(tmp_path: Path, runs: list[Run]) -> None:
    """A store that was restored makes its own."""
    with SqliteStore(tmp_path / "data", index=True) as store:
        put(store, *runs[:30])
        assert_current(store, runs[:30])
        write_backup(tmp_path / "data", [], tmp_path / "backup", overwrite=False, on_progress=lambda *_: None)
        put(store, *runs[30:])
        assert_current(store, runs)
    restore_backup(tmp_path / "backup", tmp_path / "data", overwrite=True, on_progress=lambda *_: None)
    assert not (tmp_path / "data" / INDEX_FILE).exists()
    with SqliteStore(tmp_path / "data", index=True) as store:
        assert_current(store, runs[:30])


def test_readers_and_writers_at_once(tmp_path: Path, runs: list[Run]) -> None:
    """Lists by several threads while runs arrive have at least what was stored when they began."""
    with SqliteStore(tmp_path, index=True) as store:
        stored: list[str] = []
        failures: list[object] = []

        def read() -> None:
            while len(stored) < len(runs):
                before = set(stored)
                page = store.search(RunQuery(order="duration", limit=200))
                found = {json.loads(item)["id"] for item in page.items}
                if page.partial or not before <= found:
                    failures.append((page.partial, before - found))

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for run in runs:
            put(store, run)
            stored.append(run.id)
        for thread in threads:
            thread.join()
        assert failures == []
        assert_current(store, runs)


WRITER = """
import sys
from backends.sqlite.index.test_indexer import *
with SqliteStore(sys.argv[1], index=True) as store:
    chance = random.Random(int(sys.argv[2]))
    print("ready", flush=True)
    while True:
        number = chance.randrange(40)
        run = make_run(chance, number)
        store.put(run, observed_at=T0 + HOUR)
        if chance.random() < 0.3:
            document = store.document(run.id)
            store.purge([(bytes.fromhex(document.version().digest), run.id)])
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return a data directory whose process was killed six times while it stored, changed and deleted runs."""
    chance = random.Random(8)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for round_ in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(round_)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        threading.Event().wait(chance.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return tmp_path


def test_killed_processes(killed: Path) -> None:
    """The index goes on where it was: it has all runs of the store as they are, and no others."""
    inode = os.stat(killed / INDEX_FILE).st_ino
    with SqliteStore(killed, index=True) as store:
        assert store._index.catch_up(60) == 0
        items = store.search(RunQuery(limit=200)).items
        assert items
        runs = [Run.from_json(store.document(json.loads(item)["id"]).text) for item in items]
        assert_current(store, runs)
        assert os.stat(killed / INDEX_FILE).st_ino == inode, "it was made anew"
