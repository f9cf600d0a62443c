"""A watched folder: a complete file is sent once, what changes is sent as a change, and no kill loses a run."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
import pytest

from runspan import Run
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import ROOT_REVISION
from runspan.contracts import RunQuery
from runspan.errors import ConfigError, NotFound, StoreError
from runspan.telemetry.registry import (
    OLDEST_UNFINISHED,
    REFUSED,
    REJECTED,
    UNFINISHED,
    WATCH_FAILED,
    WATCH_PENDING,
    WATCHED,
)
from runspan.watch.poller import MAX_FILES, MAX_QUIET_WAIT, DirectoryPoller
from runspan.watch.state_db import REMEMBER, FileStatus, WatchState
from support.cli import generated, running, runspan, server, write_ndjson
from support.receivers import Answer, http_receiver, partial
from support.watch import NOW, REST, Bench, run, stored

SEED = 20261125
WAIT = 60


def revision(store: SqliteStore, run_id: str) -> int:
    with store._readers.connection() as connection:
        return int(connection.execute("SELECT revision FROM runs WHERE run_id = ?", (run_id.encode(),)).fetchone()[0])


# What is sent.


def test_files_are_sent_once(bench: Bench, store: SqliteStore) -> None:
    """JSON, NDJSON, arrays and packed ones; then no file is opened again, not even after a restart."""
    bench.write("a.json", run("a"))
    bench.write("b.ndjson", run("b"), run("c", "running"))
    (bench.path / "d.json.gz").write_bytes(gzip.compress(json.dumps([run("d"), run("e")]).encode()))
    for name in (".hidden.json", "notes.txt", "a.json.tmp"):
        bench.write(name, run("no"))
    bench.poll()
    assert {stored(store, run_id)["id"] for run_id in "abcde"} == set("abcde")
    with pytest.raises(NotFound):
        store.document("no")
    assert bench.sent() == 5
    values = bench.metrics.collect()
    assert (values[WATCHED], values[WATCH_PENDING], values[WATCH_FAILED], values[UNFINISHED]) == (3, 0, 0, 1)
    assert values[OLDEST_UNFINISHED] == (NOW - 1_736_931_601 * 10**9) / 10**9
    bench.poll(3)
    bench.restart()
    bench.poll(3)
    assert bench.sent() == 5
    assert bench.notes == []
    assert sorted(path.name for path in bench.path.glob("[!.]*")) == [
        "a.json", "a.json.tmp", "b.ndjson", "d.json.gz", "notes.txt",
    ]  # fmt: skip


def test_a_file_is_read_once_it_is_complete(bench: Bench, store: SqliteStore) -> None:
    """Not at the first look, not while it grows, and not while it ends in the middle of a document."""
    bench.write("a.json", run("a"))
    bench.poll(1)
    assert bench.sent() == 0
    path = bench.write("b.ndjson", run("b"))
    bench.poll(1)
    assert bench.sent() == 1
    content = json.dumps(run("c")).encode()
    with path.open("ab") as file:
        for byte in (content[:9], content[9:20]):
            file.write(byte)
            file.flush()
            bench.poll(1)
            assert bench.sent() == 1
    bench.poll(3)
    assert bench.notes == []
    assert bench.metrics.collect()[WATCH_PENDING] == 1
    with path.open("ab") as file:
        file.write(content[20:])
    bench.poll(2)
    assert stored(store, "c") == run("c")
    assert bench.metrics.collect()[WATCH_PENDING] == 0


def test_a_renamed_file_is_a_file(bench: Bench, store: SqliteStore) -> None:
    """The atomic way of writing: another name first, also over a file that was there."""
    for status in ("running", "completed"):
        bench.write("a.json.part", run("a", status))
        os.replace(bench.path / "a.json.part", bench.path / "a.json")
        bench.poll()
        assert stored(store, "a")["status"] == status


def test_a_file_that_always_changes_is_read_all_the_same(bench: Bench, store: SqliteStore) -> None:
    """A log that is written all the time does not wait for ever; its documents are there, the cut one comes later."""
    bench.write("log.ndjson", run("r0"))
    for number in range(1, int(MAX_QUIET_WAIT / 2) + 3):
        bench.write("log.ndjson", run(f"r{number}"), replaced=False)
        bench.poll(1)
    assert bench.sent() >= MAX_QUIET_WAIT / 4
    assert stored(store, "r3") == run("r3")


def test_what_stays_broken_is_reported_once(bench: Bench, store: SqliteStore) -> None:
    """After a time a cut file counts as broken, with its place; the good documents in it are there; mended, it goes."""
    path = bench.write("a.ndjson", run("a"))
    path.write_bytes(path.read_bytes() + b'{"id":"b","status"')
    bench.poll(int(MAX_QUIET_WAIT / 2) + 4)
    (note,) = bench.notes
    assert note.startswith(f"{path}:2")
    bench.restart()
    bench.poll(3)
    assert bench.metrics.collect()[WATCH_FAILED] == 1
    assert len(bench.notes) == 1
    assert stored(store, "a") == run("a")
    bench.write("a.ndjson", run("a"), run("b"))
    bench.poll()
    assert stored(store, "b") == run("b")
    assert bench.sent() == 2
    assert bench.metrics.collect()[WATCH_FAILED] == 0


def test_many_errors_are_counted_and_some_reported(bench: Bench, store: SqliteStore) -> None:
    """A log that is broken in every line fills neither the screen nor the memory."""
    path = bench.write("a.ndjson", *({"status": "no id"} for _ in range(70)), run("a"))
    bench.poll()
    assert bench.metrics.collect()[REFUSED] == 70
    assert bench.notes[-1] == f"{path}: … 50 more"
    assert len(bench.notes) == 21
    assert stored(store, "a") == run("a")


# What changes.


def test_a_run_that_goes_on_and_is_corrected(bench: Bench, store: SqliteStore) -> None:
    """Each state of a file becomes the newest revision: snapshots, the run span once, corrections above it, and a
    correction that is reverted; through restarts in between."""
    states = [
        run("a", "pending"),
        run("a", "running", steps=[{"id": "s", "status": "running"}]),
        run("a", output=1),
        run("a", output=2),
        run("a", output=1),
        run("a", "running", note="reopened"),
        run("a", output=3),
    ]
    seen = []
    for state in states:
        bench.write("a.json", state)
        bench.poll()
        bench.restart()
        assert stored(store, "a") == json.loads(Run.from_dict(state).text)
        seen.append(revision(store, "a"))
    assert seen == sorted(set(seen))
    assert seen[1] < ROOT_REVISION == seen[2] < seen[3]
    assert bench.sent() == len(states)


def test_a_log_of_versions_is_read_again_as_it_grows(bench: Bench, store: SqliteStore) -> None:
    """Snapshots before a newer version in the same file are not sent, older versions not again, and they never win."""
    bench.write("log.ndjson", run("a", "pending"), run("a", "running"), run("b", "running"), run("a"))
    bench.poll()
    assert (stored(store, "a")["status"], stored(store, "b")["status"]) == ("completed", "running")
    before = revision(store, "a")
    for number in range(3):
        bench.write("log.ndjson", run("b", "running", progress=number), replaced=False)
        bench.poll()
        assert stored(store, "b")["progress"] == number
    bench.write("log.ndjson", run("b"), replaced=False)
    bench.poll()
    bench.restart()
    bench.write("log.ndjson", run("c"), replaced=False)
    bench.poll()
    assert stored(store, "b") == run("b")
    assert revision(store, "a") == before == ROOT_REVISION
    assert bench.sent() == 2 + 3 + 1 + 1


def test_an_old_file_that_is_read_again_takes_nothing_back(bench: Bench, store: SqliteStore) -> None:
    """Two files contain one run; the older one, forgotten and read again, does not win."""
    old = bench.write("1.json", run("a", "running"))
    os.utime(old, (1_700_000_000, 1_700_000_000))
    bench.poll()
    bench.write("2.json", run("a"))
    bench.poll()
    bench.state._session.execute("DELETE FROM files")
    bench.poll(3)
    assert stored(store, "a") == run("a")
    assert bench.sent() == 2


# Receivers that fail.


def test_what_is_rejected_stays_and_gets_another_chance(bench: Bench, tmp_path: Path) -> None:
    """It is reported by name, the file is not read again and again, and the next start tries it again."""
    (tmp_path / "other").mkdir()
    with http_receiver(lambda post: partial(1, "no room") if post.number < 2 else Answer(body=b"\x0a\x00")) as receiver:
        other = Bench(tmp_path / "other", receiver.url)
        path = other.write("a.json", run("a"))
        other.poll(5)
        assert len(receiver.posts) == 1
        (note,) = other.notes
        assert note.startswith(f"{path}: run a rejected: ")
        assert "no room" in note
        assert (other.sent(), other.metrics.collect()[REJECTED]) == (0, 1)
        other.restart()
        other.poll(3)
        assert (len(receiver.posts), other.sent()) == (2, 1)
        assert receiver.posts[0].message == receiver.posts[1].message
        other.state.close()


def test_what_is_rejected_is_sent_once_while_its_file_is_read_again(tmp_path: Path) -> None:
    """Whether the file ends inside a document or grows: only other content of the run is sent."""
    (tmp_path / "other").mkdir()
    with http_receiver(
        lambda post: partial(1, "no room") if b"bad" in post.message.SerializeToString() else Answer(body=b"\x0a\x00")
    ) as receiver:
        other = Bench(tmp_path / "other", receiver.url)
        path = other.write("a.ndjson", run("bad"), run("good"))
        path.write_bytes(path.read_bytes() + b'{"id":"cut')
        other.poll(REST)
        sent = len(receiver.posts)
        assert (other.sent(), other.metrics.collect()[REJECTED]) == (1, 1)
        path.write_bytes(path.read_bytes() + b'"}\n')
        other.poll(3)
        assert len(receiver.posts) == sent + 1
        assert (other.sent(), other.metrics.collect()[REJECTED]) == (2, 1)
        assert [note.partition(": ")[2].partition(":")[0] for note in other.notes].count("run bad rejected") == 2
        assert other.metrics.collect()[WATCH_FAILED] == 1
        other.write("a.ndjson", run("bad", output="changed"), replaced=False)
        other.poll(3)
        assert (other.sent(), other.metrics.collect()[REJECTED]) == (2, 2)
        other.state.close()


def test_an_outage_is_outlived(bench: Bench, tmp_path: Path) -> None:
    """A receiver that is away makes the looks rarer, and what it did not take goes when it is back, in the same way."""
    (tmp_path / "other").mkdir()
    away = True
    with http_receiver(lambda post: Answer(status=503) if away else Answer(body=b"\x0a\x00")) as receiver:
        other = Bench(tmp_path / "other", receiver.url)
        other.write("a.json", run("a", "running"))
        other.poll(3)
        assert "503" in other.notes[0]
        assert "nothing is lost" in other.notes[0]
        assert other.pause > 2.0
        asked = len(receiver.posts)
        away = False
        other.poll(1)
        assert len(receiver.posts) == asked + 1
        assert receiver.posts[0].message == receiver.posts[-1].message
        assert other.sent() == 1
        other.state.close()


def test_a_folder_that_is_away_is_reported_once(bench: Bench, store: SqliteStore) -> None:
    """A mount that goes and comes back is no end."""
    bench.write("a.json", run("a"))
    gone = bench.path.with_name("gone")
    bench.path.rename(gone)
    bench.poll(4)
    assert len(bench.notes) == 1
    gone.rename(bench.path)
    bench.poll()
    assert stored(store, "a") == run("a")


# Moving.


def test_files_go_to_the_done_folder_when_all_is_accepted(tmp_path: Path, store: SqliteStore, bench: Bench) -> None:
    """Those with something wrong stay; a file that has the name there is not replaced."""
    done = tmp_path / "done"
    done.mkdir()
    (done / "a.json").write_text("mine")
    bench.state.close()
    moving = Bench(bench.path, bench._url, done_folder=str(done))
    moving.write("a.json", run("a"))
    moving.write("b.json", run("b"))
    moving.write("c.ndjson", run("c"), {"status": "no id"}, run("d"))
    moving.poll(REST)
    assert sorted(path.name for path in done.iterdir()) == ["2-a.json", "a.json", "b.json"]
    assert (done / "a.json").read_text() == "mine"
    assert [path.name for path in moving.path.glob("[!.]*")] == ["c.ndjson"]
    assert {stored(store, run_id)["id"] for run_id in "abcd"} == set("abcd")
    moving.state.close()
    bench.open()


# The state file.


def test_a_state_file_is_of_one_target_and_one_process(tmp_path: Path) -> None:
    """Another endpoint needs another one; two processes would send everything twice; other files are not touched."""
    path = tmp_path / "state"
    with closing(WatchState(path, "http://one", "")), pytest.raises(StoreError, match="another process"):
        WatchState(path, "http://one", "")
    with pytest.raises(ConfigError, match="http://one"):
        WatchState(path, "http://two", "")
    assert path.stat().st_mode & 0o077 == 0
    SqliteStore(tmp_path).close()
    with pytest.raises(StoreError, match="another application"):
        WatchState(tmp_path / "runspan.sqlite3", "http://one", "")
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(StoreError, match="no SQLite database"):
        WatchState(tmp_path / "text", "http://one", "")
    with pytest.raises(StoreError):
        WatchState(tmp_path / "none" / "state", "http://one", "")


def test_what_was_planned_is_planned_in_the_same_way(tmp_path: Path) -> None:
    """Until the answer is known a version keeps its time and form, whatever came after it; an accepted one is not sent
    again."""
    texts = [Run.from_dict(run("a", status, **more)) for status, more in
             (("running", {}), ("completed", {}), ("completed", {"fixed": True}))]  # fmt: skip
    path = tmp_path / "state"
    with closing(WatchState(path, "t", "")) as state:
        first = [state.plan_send(text, 100) for text in texts]
        state.commit()
    assert [(item.observed_at, item.after_root) for item in first if item] == [(100, False), (101, False), (102, True)]
    with closing(WatchState(path, "t", "")) as state:
        assert [state.plan_send(text, 900) for text in texts] == first
        state.mark_acked(item for item in first if item)
        state.commit()
    with closing(WatchState(path, "t", "")) as state:
        assert [state.plan_send(text, 900) for text in texts] == [None] * 3


def test_old_state_is_forgotten(tmp_path: Path) -> None:
    """Files that are gone, and runs that were sent longer ago than any plan keeps them."""
    with closing(WatchState(tmp_path / "state", "t", "")) as state:
        folder = DirectoryPoller(str(tmp_path), state, lambda: 0.0)
        for name in ("stays.json", "goes.json"):
            (tmp_path / name).write_text("{}")
        folder.poll()
        for candidate in folder.poll():
            folder.done(candidate, FileStatus.SENT)
        state.plan_send(Run.from_dict(run("old")), NOW)
        state.plan_send(Run.from_dict(run("new")), NOW + REMEMBER)
        (tmp_path / "goes.json").unlink()
        state.expire(str(tmp_path), NOW + REMEMBER + 1)
        names = state._session.execute("SELECT name FROM files").fetchall()
        assert names == [(b"stays.json",)]
        assert state._session.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        assert state._session.execute("SELECT count(*) FROM versions").fetchone() == (1,)


def test_a_round_is_bounded(tmp_path: Path) -> None:
    """Of very many files the oldest are looked at first, and so many are kept in mind; the others come next."""
    for number in range(MAX_FILES + 500):
        path = tmp_path / f"{number}.json"
        path.touch()
        os.utime(path, ns=(0, 10**18 + (-number) % 7919))
    with closing(WatchState(tmp_path / ".state", "t", "")) as state:
        folder = DirectoryPoller(str(tmp_path), state, lambda: 0.0)
        folder.poll()
        found = folder.poll()
        assert len(found) == folder.pending == MAX_FILES
        times = [candidate.stat.modified for candidate in found]
        assert times == sorted(times)
        for candidate in found:
            folder.done(candidate, FileStatus.SENT)
        folder.poll()
        assert len(folder.poll()) == 500


# The command.


def until(true: Callable[[], bool]) -> None:
    """Waits, but not for ever."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count(data: Path) -> int:
    with SqliteStore(data) as store:
        return store.stats().runs


@pytest.mark.campaign
def test_kills_lose_nothing(tmp_path: Path) -> None:
    """An engine drops files in both ways while the watch is killed again and again: at the end every run is there as
    it was last written, each once; and one more start sends nothing at all."""
    random = Random(SEED)
    texts = generated(600, seed=SEED)
    folder, data = tmp_path / "in", tmp_path / "data"
    folder.mkdir()
    written = threading.Event()

    def engine() -> None:
        for number, (run_id, text) in enumerate(texts.items()):
            name = folder / f"{run_id}.json"
            if number % 3:
                part = name.with_suffix(".part")
                part.write_bytes(text)
                part.rename(name)
                continue
            with name.open("wb") as file:
                middle = len(text) // 2
                file.write(
                    b'{"id":"%s","status":"running","steps":[' % run_id.encode() if number % 2 else text[:middle]
                )
                file.flush()
                time.sleep(random.uniform(0, 0.01))
                file.seek(0)
                file.write(text)
                file.truncate()
        written.set()

    with server(data) as (url, _):
        args = ("export", "--watch", folder, "--endpoint", url, "--poll", "0.1s", "--batch-spans", 20)
        thread = threading.Thread(target=engine)
        thread.start()
        kills = 0
        while kills < 5 or not written.is_set():
            before = count(data)
            with running(*args) as child:
                child.wait_for("watching")
                until(lambda seen=before: seen < count(data) or count(data) == len(texts))  # type: ignore[misc]
                time.sleep(random.uniform(0, 0.3))
                child.process.kill()
                assert child.process.wait(WAIT) == -signal.SIGKILL
            kills += 1
        thread.join()
        with running(*args, "--metrics-listen", "0") as child:
            metrics = child.wait_for(r"metrics at (http://\S+)")[1]
            until(lambda: count(data) == len(texts))
            until(lambda: number_of(metrics, "runspan_watch_pending") == 0)
            assert child.end() == 0
        with running(*args, "--metrics-listen", "0") as child:
            metrics = child.wait_for(r"metrics at (http://\S+)")[1]
            until(lambda: number_of(metrics, "runspan_watch_pending") == 0)
            assert number_of(metrics, "runspan_export_requests_total") == 0
            assert child.end() == 0
        assert "0 runs accepted" in child.lines[-1]
        with closing(RunspanApiReader(url)) as reader:
            assert {run_id: reader.document(run_id).text for run_id in texts} == texts
            page = reader.search(RunQuery(limit=200))
            ids = [json.loads(item)["id"] for item in page.items]
            while page.cursor is not None:
                page = reader.search(RunQuery(limit=200, cursor=page.cursor))
                ids += [json.loads(item)["id"] for item in page.items]
    assert sorted(ids) == sorted(texts)


def number_of(url: str, metric: str) -> float | None:
    """A value of /metrics, None while there is none."""
    lines = httpx.get(url, trust_env=False).text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith((f"{metric} ", f"{metric}{{"))), None)


def test_the_command_outlives_its_server(tmp_path: Path) -> None:
    """A server that is not there yet is waited for; the error is reported, with what to do."""
    texts = generated(30)
    folder = tmp_path / "in"
    folder.mkdir()
    write_ndjson(folder / "runs.ndjson", texts)
    with server(tmp_path / "data") as (url, child):
        assert child.end() == 0
    args = ("export", "--watch", folder, "--endpoint", url, "--poll", "0.1s", "--retry-max-time", 0)
    with running(*args) as watching:
        watching.wait_for("nothing is lost")
        watching.wait_for("hint: is a receiver listening there")
        with running("serve", "--data", tmp_path / "data", "--port", url.rpartition(":")[2]) as child:
            child.wait_for("is serving")
            until(lambda: count(tmp_path / "data") == len(texts))
            assert watching.end() == 0
            assert child.end() == 0
    assert "30 runs accepted" in watching.lines[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--watch", "none"), "an existing folder"),
        (("--watch", ".", "runs.json"), "one folder and no other input or output"),
        (("--watch", ".", "--dry-run"), "--dry-run"),
        (("--watch", ".", "--dead-letter", "x"), "--dead-letter"),
        (("--watch", ".", "--done-dir", "."), "another folder"),
        (("--watch", ".", "--done-dir", "none"), "--done-dir"),
        (("--done-dir", "x", "runs.json"), "--watch as well"),
        (("--state-file", "x", "runs.json"), "--watch as well"),
        ((), "Missing argument"),
        (("--watch", ".", "--metrics-listen", "99999"), "HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """They are refused before anything is read."""
    endpoint = ("--endpoint", "http://127.0.0.1:9")
    assert words in runspan("export", *args, *endpoint, code=2).output
