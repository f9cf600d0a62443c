"""The embedded store: several threads that write at the same time, and writes that fail."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import pytest

from conformance.harness import T0, all_pages, make_run, otlp
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import open_writer
from runspan.backends.sqlite.writer import GroupWriter
from runspan.contracts import RunQuery
from runspan.errors import StoreError
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.testing import generate


@pytest.fixture
def writer(tmp_path):
    path = tmp_path / "runspan.sqlite3"
    writer = GroupWriter(open_writer(path), path, lambda connection: None)
    yield writer
    writer.close()


def together(writer: GroupWriter, *works):
    """Return the results or failures of work that waits for the writer at the same time."""
    entered, go = Event(), Event()

    def hold(connection):
        entered.set()
        go.wait()

    def outcome(work):
        try:
            return writer.submit(work)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(works) + 1) as pool:
        blocker = pool.submit(writer.submit, hold)
        entered.wait()
        futures = []
        for number, work in enumerate(works, 1):
            futures.append(pool.submit(outcome, work))
            while len(writer._jobs) <= number:
                pass
        go.set()
        blocker.result()
        return [future.result() for future in futures]


def resource(content: bytes):
    return lambda connection: connection.execute("INSERT INTO resources (content) VALUES (?)", (content,)).lastrowid


def contents(writer: GroupWriter) -> list[bytes]:
    return [
        row[0] for row in writer.submit(lambda c: c.execute("SELECT content FROM resources ORDER BY id").fetchall())
    ]


def test_one_failure_in_a_group_leaves_the_others(writer):
    """The work that failed is rolled back and reported; the rest of the group is committed."""

    def half_done(connection):
        resource(b"half")(connection)
        raise KeyError("broken")

    first, second, third, fourth = together(writer, resource(b"one"), half_done, resource(b"one"), resource(b"two"))
    assert (first, fourth) == (1, 2)
    assert isinstance(second, KeyError)
    assert isinstance(third, StoreError)
    assert contents(writer) == [b"one", b"two"]


def test_work_that_breaks_the_transaction_fails_alone(writer):
    """When a failure rolls the transaction back, the rest of the group runs again without it."""

    def breaking(connection):
        connection.execute("ROLLBACK")
        raise RuntimeError("the transaction is gone")

    first, second, third = together(writer, resource(b"one"), breaking, resource(b"two"))
    assert isinstance(second, RuntimeError)
    assert (first, third) == (1, 2)
    assert contents(writer) == [b"one", b"two"]


def test_a_failure_after_a_commit_does_not_stop_the_writer(tmp_path):
    """When work after a commit fails, the commit stays, the failed work is rolled back, and writing continues."""

    def fail(connection):
        connection.execute("BEGIN")
        resource(b"left over")(connection)
        raise MemoryError

    path = tmp_path / "runspan.sqlite3"
    writer = GroupWriter(open_writer(path), path, fail)
    assert writer.submit(resource(b"one")) == 1
    assert writer.submit(resource(b"two")) == 2
    assert contents(writer) == [b"one", b"two"]
    writer.check()
    writer.close()


def test_an_interrupted_caller_leaves_the_work_of_others(writer):
    """Ctrl-C reaches the caller that commits for others: nothing of it stays in part, and the others commit theirs."""
    interrupts = iter([KeyboardInterrupt])

    def interrupted(connection):
        resource(b"half")(connection)
        for kind in interrupts:
            raise kind

    results = together(writer, interrupted, resource(b"one"), resource(b"two"))
    assert sum(isinstance(result, KeyboardInterrupt) for result in results) == 1
    assert sorted(contents(writer)) == [b"half", b"one", b"two"]


def test_close_finishes_what_was_submitted(tmp_path):
    """Every write that was submitted before the close returns and is on disk."""
    store = SqliteStore(tmp_path)
    runs = [make_run(f"r{number}") for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda run: store.put(run, observed_at=T0), runs))
    store.close()
    store.close()
    assert all(item.accepted for item in written)
    for use in (lambda: store.put(runs[0], observed_at=T0), lambda: store.document("r1"), store.check):
        with pytest.raises(StoreError, match="closed"):
            use()
    with SqliteStore(tmp_path) as again:
        assert again.stats().runs == 40


def test_threads_that_write_the_same_runs_agree(store):
    """Eight threads send the same runs, span by span in different orders, while others read; all runs are complete."""
    runs = [make_run(f"r{number}") for number in range(12)]
    spans = [span for run in runs for span in encode(run)]
    failures: list[BaseException] = []
    done = Event()

    def send(number: int) -> None:
        for span in spans[number:] + spans[:number]:
            assert store.write(read_protobuf(otlp([span]))).rejected == ()

    def read() -> None:
        try:
            while not done.is_set():
                for page in all_pages(store, RunQuery(limit=5)):
                    for run_id in page:
                        assert Run.from_json(store.document(run_id).text) in runs
        except BaseException as error:
            failures.append(error)

    reader = Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(0, 32, 4)))
    done.set()
    reader.join()
    assert failures == []
    for run in runs:
        assert store.document(run.id).text == run.text
    assert store.stats().fragments == 0


def test_a_full_disk_is_an_error_and_nothing_is_stored_in_part(store):
    """The write fails with a hint, earlier runs stay readable, and with space again the same write succeeds."""
    store.put(make_run("before"), observed_at=T0)
    pages = store._writer.submit(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    store._writer.submit(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall(), alone=True)
    big = make_run("big", input={"noise": os.urandom(100_000).hex()})
    with pytest.raises(StoreError, match="full") as caught:
        store.write(read_protobuf(otlp([*encode(make_run("small")), *encode(big)])))
    assert "free space" in caught.value.hint
    assert store.stats().runs == 1
    assert store.document("before").text == make_run("before").text
    store._writer.submit(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall(), alone=True)
    store.put(big, observed_at=T0)
    assert store.document("big").text == big.text


def test_a_lock_held_by_another_process_is_an_error(store):
    """A write that cannot get the lock in time fails with a hint; when the lock is gone, writing works."""
    store._writer.submit(lambda c: c.execute("PRAGMA busy_timeout = 20").fetchall(), alone=True)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process"):
        store.put(make_run("r"), observed_at=T0)
    other.execute("ROLLBACK")
    other.close()
    store.put(make_run("r"), observed_at=T0)
    assert store.document("r").text == make_run("r").text


def test_two_stores_on_one_directory_see_each_other(tmp_path):
    """A command and a running server write and read the same runs."""
    with SqliteStore(tmp_path) as first, SqliteStore(tmp_path) as second:
        first.put(make_run("r"), observed_at=T0)
        assert second.document("r").text == make_run("r").text
        second.put(make_run("r", status="failed"), observed_at=T0)
        assert first.document("r").text == make_run("r", status="failed").text


CHILD = """
import sys, threading
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes, span_bytes
from runspan.testing import generate

store = SqliteStore(sys.argv[1])
lock = threading.Lock()
documents = enumerate(generate(10**6, seed=int(sys.argv[2])))

def work():
    while True:
        with lock:
            number, text = next(documents)
        run = Run.from_json(text)
        if number % 3:
            spans = [scoped_bytes(span) for span in encode(run)]
            for part in ([spans] if number % 2 else [spans[:1], spans[1:]]):
                store.write(read_protobuf(request_bytes(Resource(), part)))
        else:
            store.put(run, observed_at=1)
        with lock:
            print(number, flush=True)

for _ in range(4):
    threading.Thread(target=work).start()
"""


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_9_loses_no_acknowledged_run(tmp_path, seed):
    """A process killed in the middle of writing: every run it acknowledged is there, and none is wrong."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(400 * seed)]
    child.send_signal(signal.SIGKILL)
    # The kill may cut the last line, and a number cut short would be another run's.
    acknowledged += [int(line) for line in child.stdout.readlines() if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    runs = [Run.from_json(text) for text in generate(max(acknowledged) + 20, seed=seed)]
    with SqliteStore(tmp_path) as store:
        for number in acknowledged:
            assert store.document(runs[number].id).text == runs[number].text
        by_id = {run.id: run for run in runs}
        listed = [run_id for page in all_pages(store, RunQuery(limit=200)) for run_id in page]
        assert len(listed) == len(set(listed)) >= len(acknowledged)
        for run_id in listed:
            assert store.document(run_id).text == by_id[run_id].text
