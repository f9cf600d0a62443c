"""What a watch might lose: files that it may not read, versions that come in another order than they were written in,
what a receiver refused, and numbers and state files from elsewhere."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runspan import Run
from runspan.errors import StoreError
from runspan.sources import filesystem
from runspan.storage.span_acks import SenderState
from runspan.sync.checkpoint import Checkpoint, sync_binding
from runspan.telemetry.registry import REJECTED, WATCH_PENDING
from runspan.watch.poller import MAX_QUIET_WAIT, DirectoryPoller, file_stat
from runspan.watch.service import MAX_NAMED
from runspan.watch.state_db import REMEMBER, FileStat, FileStatus, WatchState
from support.receivers import CLOSE, Answer, Post
from support.watch import NOW, Bench, run
from support.write_once import StoringReceiver as Kept
from support.write_once import growing_run as growing
from support.write_once import storing_receiver as keeping

LONG = int(MAX_QUIET_WAIT / 2) + 4


@pytest.fixture
def responses() -> list[Answer | None]:
    """What the receiver answers next instead of taking a request; None to take it."""
    return []


@pytest.fixture
def kept(tmp_path: Path, responses: list[Answer | None]) -> Iterator[Kept]:
    with keeping(tmp_path / "kept", lambda post: responses.pop(0) if responses else None) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, kept: Kept) -> Iterator[Bench]:
    (tmp_path / "in").mkdir()
    made = Bench(tmp_path / "in", kept.url)
    yield made
    made.state.close()


def there(kept: Kept, run_id: str = "a") -> Any:
    return json.loads(kept.text(run_id))


# What cannot be read.


def test_a_file_that_may_not_be_read_is_reported_once(
    bench: Bench, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time, by name; it is sent as soon as it may be read."""
    path = bench.write("a.json", run("a"))
    bench.write("b.json", run("b"))
    with monkeypatch.context() as patch:
        real = os.access
        patch.setattr(os, "access", lambda place, mode, **named: str(place) != str(path) and real(place, mode, **named))
        bench.poll(int(MAX_QUIET_WAIT / 2) - 1)
        assert bench.notes == []
        bench.poll(3 * LONG)
        assert bench.notes == [f"{path}: cannot be read: Permission denied; it is tried again and again"]
        assert (bench.sent(), bench.metrics.collect()[WATCH_PENDING]) == (1, 1)
    bench.poll(1)
    assert there(kept) == run("a")
    assert len(bench.notes) == 1


def test_a_file_in_a_place_that_may_not_be_searched(bench: Bench, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not even say how large it is; that is reported too, and the others are sent."""
    real = os.DirEntry.stat
    path = bench.write("a.json", run("a"))
    bench.write("b.json", run("b"))

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path
            self.is_file, self.is_dir, self.is_symlink = entry.is_file, entry.is_dir, entry.is_symlink
            self._entry = entry

        def stat(self, **named: Any) -> os.stat_result:
            if self.name == "a.json":
                raise refusal()
            return real(self._entry, **named)

    def refusal() -> OSError:
        return OSError(errno.EACCES, os.strerror(errno.EACCES))

    scandir, stat = os.scandir, os.stat

    class Entries:
        def __init__(self, place: Any) -> None:
            with scandir(place) as entries:
                self._entries = [Entry(entry) for entry in entries]

        def __enter__(self) -> Iterator[Entry]:
            return iter(self._entries)

        def __exit__(self, *args: object) -> None:
            pass

    def stat_of(place: Any, **named: Any) -> os.stat_result:
        if str(place) == str(path):
            raise refusal()
        return stat(place, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Entries)
        patch.setattr(os, "stat", stat_of)
        patch.setattr(os, "access", lambda place, mode: str(place) != str(path))
        bench.poll(2 * LONG)
    assert bench.notes == [f"{path}: cannot be read: Permission denied; it is tried again and again"]
    assert bench.sent() == 1
    bench.poll()
    assert there(kept) == run("a")


def test_many_files_that_may_not_be_read_do_not_fill_the_screen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MAX_NAMED + 5):
        bench.write(f"{number}.json", run("a"))
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    bench.poll(2 * LONG)
    assert len(bench.notes) == MAX_NAMED + 1
    assert bench.notes[-1] == f"{bench.path}: … 5 more that cannot be read"


def test_a_disk_that_fails_for_a_while_breaks_no_file(
    bench: Bench, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network share says that nothing can be read: that is no fault of the file, which is sent afterwards."""

    def chunks(path: str, on_bytes: object) -> Iterator[bytes]:
        yield json.dumps(run("b")).encode() + b"\n"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = bench.write("a.ndjson", run("b"), run("a"))
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "chunks", chunks)
        bench.poll(2 * LONG)
    (note,) = bench.notes
    assert note.startswith(f"{path}: cannot be read: Input/output error")
    bench.poll(1)
    assert (there(kept), bench.sent()) == (run("a"), 2)


def test_a_log_that_never_rests_is_read_every_half_minute(bench: Bench) -> None:
    """And not at each look, since it is read from its beginning."""
    sent = []
    with (bench.path / "log.ndjson").open("w", buffering=1) as log:
        for number in range(60):
            log.write(json.dumps(run(f"r{number}")) + "\n")
            bench.poll(1)
            sent.append(bench.sent())
    assert 3 <= len(set(sent)) <= 9


# The order of versions.


ENDS = {
    "snapshots": [run("a", "running"), run("a", "suspended"), run("a", "running")],
    "corrections": [run("a", output=1), run("a", output=2), run("a", output=1)],
    "begun again": [run("a", "running"), run("a"), run("a", "running")],
    "ended again": [run("a"), run("a", "running"), run("a")],
    "to and fro": [run("a", output=number % 2) for number in range(6)],
    "the first of three": [run("a", "pending"), run("a", "running"), run("a"), run("a", "pending")],
}


@pytest.mark.parametrize("log", ENDS.values(), ids=ENDS)
def test_a_log_that_ends_with_an_older_version(bench: Bench, kept: Kept, log: list[dict[str, object]]) -> None:
    """Read at once, it counts as what it ends with, now and whenever it is read again; nothing is sent in circles."""
    bench.write("log.ndjson", *log)
    bench.poll()
    assert there(kept) == log[-1]
    for number in range(3):
        bench.restart()
        bench.write("log.ndjson", run(f"other{number}"), replaced=False)
        bench.poll(3)
        assert there(kept) == log[-1]
    posts = len(kept.receiver.posts)
    bench.restart()
    bench.poll(3)
    assert (len(kept.receiver.posts), bench.notes) == (posts, [])


@pytest.mark.parametrize("log", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_answers_that_are_lost(bench: Bench, kept: Kept, log: list[dict[str, object]], lost: int) -> None:
    """The receiver has versions of which the watch does not know that, in a file that goes back and forth."""
    real, left = kept.receiver.answer, [lost]

    def answer(post: Post) -> Answer:
        got = real(post)
        left[0] -= 1
        return got if left[0] < 0 else CLOSE

    kept.receiver.answer = answer
    for document in log:
        bench.write("a.json", document)
        bench.poll()
    bench.poll(4)
    assert there(kept) == log[-1]
    assert bench.poller.pending == 0


def test_a_log_that_grows_by_others_takes_nothing_back(bench: Bench, kept: Kept) -> None:
    """A run is running in a log and completed in a file of its own: the log's next lines do not change it, but a new
    version of it there does."""
    bench.write("log.ndjson", run("a", "running"), run("b"))
    bench.poll()
    bench.write("a.json", run("a"))
    bench.poll()
    for number in range(3):
        bench.restart()
        bench.write("log.ndjson", run(f"c{number}"), replaced=False)
        bench.poll(3)
        assert there(kept) == run("a")
    bench.write("log.ndjson", run("a", "running"), replaced=False)
    bench.poll()
    assert there(kept) == run("a", "running")


def test_a_list_that_is_written_anew_is_read_anew(bench: Bench, kept: Kept) -> None:
    """An engine writes all runs into one file each time, which only grows: what changed back in its midst counts."""
    for status, others in (("running", 1), ("suspended", 2), ("running", 3)):
        runs = [run("a", status), *(run(f"b{number}") for number in range(others))]
        (bench.path / "all.json").write_text(json.dumps(runs))
        bench.poll()
        assert there(kept) == run("a", status)


def test_a_refused_run_in_a_log_does_not_change_the_others(
    bench: Bench, kept: Kept, responses: list[Answer | None]
) -> None:
    """The next start reads the log once more, because of the one; the others are still what they became elsewhere."""
    bench.write("log.ndjson", run("a", "running"))
    bench.poll()
    bench.write("a.json", run("a"))
    bench.poll()
    responses.append(Answer(400))
    bench.write("log.ndjson", run("b"), replaced=False)
    bench.poll()
    bench.restart()
    bench.poll(3)
    assert (there(kept, "b"), there(kept)) == (run("b"), run("a"))


def test_a_file_that_was_another_for_a_moment(bench: Bench, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changed back while it was read: what it was in between was sent, so what it is now is sent."""
    before = [run("a", "running"), run("b")]
    bench.write("log.ndjson", *before)
    bench.poll()
    bench.write("log.ndjson", run("a", "suspended"), run("b"))
    real = DirectoryPoller.is_same

    def same(folder: DirectoryPoller, candidate: Any) -> bool:
        monkeypatch.setattr(DirectoryPoller, "is_same", real)
        bench.write("log.ndjson", *before)
        return real(folder, candidate)

    monkeypatch.setattr(DirectoryPoller, "is_same", same)
    bench.poll()
    bench.poll(3)
    assert there(kept) == run("a", "running")


def test_the_order_in_one_file_says_nothing_of_the_next(tmp_path: Path) -> None:
    """Reading ends in the midst of a file when the receiver is away."""
    old, new = Run.from_dict(run("a", "running")), Run.from_dict(run("a"))
    with closing(WatchState(tmp_path / "state", "t", "")) as state:
        for document in (old, new, old):
            state.plan_send(document, NOW)
        assert state.start_file(b"b.json", FileStat(1, 2, 3, 4), lambda size: None) == 0
        assert state.plan_send(old, NOW) is not None
        assert state.reverted_runs(NOW - 1) == set()


def test_an_old_version_is_known_as_long_as_its_run(tmp_path: Path) -> None:
    """A log contains a run from long ago that was corrected not so long ago: the old version is not sent."""
    old, new = Run.from_dict(run("a")), Run.from_dict(run("a", fixed=True))
    with closing(WatchState(tmp_path / "state", "t", "")) as state:
        for document, at in ((old, NOW), (new, NOW + REMEMBER)):
            plan = state.plan_send(document, at)
            assert plan is not None
            state.mark_acked([plan])
        state.expire(str(tmp_path), NOW + REMEMBER + 5)
        assert [state.plan_send(document, NOW + 2 * REMEMBER) for document in (old, new)] == [None, None]
        assert state.reverted_runs(NOW) == set()
        state.expire(str(tmp_path), NOW + 2 * REMEMBER + 5)
        assert state.plan_send(old, NOW + 3 * REMEMBER) is not None


def test_an_older_response_does_not_count_for_a_newer_plan(tmp_path: Path) -> None:
    """A version that became the newest once more while it was on its way is not there by the answer to the first."""
    old, new = Run.from_dict(run("a", output=1)), Run.from_dict(run("a", output=2))
    with closing(WatchState(tmp_path / "state", "t", "")) as state:
        first, second = state.plan_send(old, NOW), state.plan_send(new, NOW)
        assert first is not None
        assert second is not None
        again = state.plan_resend(old, NOW)
        state.mark_acked([first, second])
        assert state.plan_send(old, NOW + 5) == again
        state.mark_acked([again])
        assert state.plan_send(old, NOW + 5) is None


# What is refused.


@pytest.mark.parametrize("apart", [False, True], ids=["log", "files"])
def test_older_versions_do_not_count_as_sent_with_a_refused_one(
    bench: Bench, kept: Kept, responses: list[Answer | None], apart: bool
) -> None:
    """Two snapshots are read at once and the newer one is refused: the older is not there, and is sent when it is
    alone again."""
    older, newer = growing("a", 1), growing("a", 2)
    bench.write("1.ndjson", older)
    bench.write("2.ndjson" if apart else "1.ndjson", newer, replaced=apart)
    responses.append(Answer(400))
    bench.poll(2)
    assert (bench.sent(), bench.metrics.collect()[REJECTED], len(bench.notes)) == (0, 1, 1 + apart)
    (bench.path / "2.ndjson").unlink(missing_ok=True)
    bench.write("1.ndjson", older)
    bench.restart()
    bench.poll(3)
    assert there(kept) == older
    assert bench.sent() == 1


@pytest.mark.parametrize(("asked", "waits"), [("120", 120.0), ("86400", 300.0)])
def test_a_receiver_that_asks_to_wait(
    bench: Bench, kept: Kept, responses: list[Answer | None], asked: str, waits: float
) -> None:
    """It gets the next request then, or after five minutes; the line for people says what it asked for."""
    bench.write("a.json", run("a"))
    responses.append(Answer(429, headers={"Retry-After": asked}))
    bench.poll(2)
    (note,) = bench.notes
    assert f"HTTP 429, asks to wait {asked} s; nothing is lost, trying again in {waits:g} s" in note
    assert bench.pause == waits
    bench.poll()
    assert there(kept) == run("a")


# Numbers and state files from elsewhere.


def test_numbers_that_are_too_large_for_sqlite(tmp_path: Path) -> None:
    """Some file systems number their files with all 64 bits, or have files of the year 2300 and later."""
    large = SimpleNamespace(st_size=5, st_mtime_ns=2**70, st_ctime_ns=2**70, st_ino=2**64 - 1)
    other = SimpleNamespace(st_size=5, st_mtime_ns=-(2**70), st_ctime_ns=0, st_ino=2**63)
    first, second = (file_stat(cast("os.stat_result", each)) for each in (large, other))
    assert first != second
    with closing(WatchState(tmp_path / "state", "t", "")) as state:
        for stat in (first, second):
            state.done(b"a", stat, FileStatus.SENT)
            assert state.status(b"a", stat) is FileStatus.SENT
            assert state.reverted_runs(stat.modified) == set()


def test_a_damaged_state_file_is_an_error(tmp_path: Path) -> None:
    """With what to do, and not as a defect of ours."""
    path = tmp_path / "state"
    with closing(WatchState(path, "t", "")) as state:
        state.done(b"a.json", FileStat(1, 2, 3, 4), FileStatus.EMPTY)
        state.plan_send(Run.from_dict(run("a")), NOW)
        state.commit()
    change(path, f"UPDATE runs SET observed_at = {2**63 - 1}")
    with (
        closing(WatchState(path, "t", "")) as state,
        pytest.raises(StoreError, match="another file with --state-file"),
    ):
        state.plan_send(Run.from_dict(run("a", fixed=True)), NOW)
    for outcome in (9, -1):
        change(path, f"UPDATE files SET status = {outcome}")
        with pytest.raises(StoreError, match=f"got a file of status {outcome} .*another file with --state-file"):
            WatchState(path, "t", "")
    change(path, "UPDATE files SET status = 0")
    WatchState(path, "t", "").close()


@pytest.mark.parametrize("kind", ["watch", "sync"])
def test_a_state_file_that_cannot_be_used_names_itself_and_what_to_do(tmp_path: Path, kind: str) -> None:
    """It is no store: there is no backup of it and no retention; without it everything is sent once more."""

    def opened(path: Path) -> SenderState:
        return WatchState(path, "t", "") if kind == "watch" else Checkpoint(path, sync_binding("s", "t"))

    with closing(opened(tmp_path / "state")):
        pass
    for kept in (4096, 0):  # the first page, or not even that
        content = (tmp_path / "state").read_bytes()
        (tmp_path / "damaged").write_bytes(content[:kept] + b"\xff" * (len(content) - kept))
        with pytest.raises(StoreError) as caught, closing(opened(tmp_path / "damaged")) as state:
            state._all("SELECT * FROM binding")
        assert caught.value.where == str(tmp_path / "damaged")
        assert caught.value.hint.startswith("name another file with --state-file: every ")
    with pytest.raises(StoreError) as caught:
        opened(tmp_path / "no" / "folder" / "state")
    assert "name a file elsewhere with --state-file" in caught.value.hint


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_an_empty_file_is_no_fault(tmp_path: Path) -> None:
    """It is not counted among those that are broken."""
    (tmp_path / "a.json").touch()
    with closing(WatchState(tmp_path / ".state", "t", "")) as state:
        folder = DirectoryPoller(str(tmp_path), state, lambda: 0.0)
        folder.poll()
        (found,) = folder.poll()
        folder.done(found, FileStatus.EMPTY)
        assert (state.failed_files(), folder.poll()) == (0, [])
