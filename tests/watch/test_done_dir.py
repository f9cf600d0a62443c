"""--done-dir: a file is moved when the receiver has all of it, and what else is written to it until then is sent too;
through kills at each step, and on file systems of all kinds."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runspan import create_app
from runspan.backends.sqlite import SqliteStore
from runspan.telemetry.registry import WATCH_PENDING, WATCHED
from runspan.watch.done_dir import PREFIX
from support.watch import REST, Bench, run, stored
from support.web import serving


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "data") as store:
        yield store


@pytest.fixture
def done(tmp_path: Path) -> Path:
    (tmp_path / "done").mkdir()
    return tmp_path / "done"


@pytest.fixture
def bench(tmp_path: Path, store: SqliteStore, done: Path) -> Iterator[Staying]:
    (tmp_path / "in").mkdir()
    with serving(create_app(store, store)) as client:
        bench = Staying(tmp_path / "in", str(client.base_url), done_folder=str(done))
        yield bench
        bench.process.run()  # which ends at once
        bench.state.close()


class Staying(Bench):
    """All polls are those of one process, until another one begins."""

    def open(self, url: str = "") -> None:
        super().open(url)
        self.process = self.watch(lambda pause: True)

    def poll(self, times: int = 2, *, seconds: float = 2.0) -> None:
        for _ in range(times):
            self.seconds += seconds
            self.process._round(2.0)

    def again(self, **options: str) -> None:
        """Kill the process and start another one."""
        self.state._session.close()
        self._options = options
        self.open()


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir() if not found.name.startswith(".state"))


def hidden(bench: Staying) -> list[Path]:
    """The files that are being moved."""
    return sorted(bench.path.glob(f"{PREFIX}*"))


# What is written to a file that is done with.


def test_a_file_without_a_document_is_not_done(bench: Staying, store: SqliteStore, done: Path) -> None:
    """An engine opens its file first and writes later, however much later."""
    with (bench.path / "a.json").open("w") as file:
        bench.poll(2 * REST)
        assert (names(bench.path), names(done)) == (["a.json"], [])
        assert (bench.metrics.collect()[WATCHED], bench.metrics.collect()[WATCH_PENDING], bench.notes) == (0, 0, [])
        json.dump(run("a"), file)
    bench.write("b.json")
    (bench.path / "c.json").write_text("[]")
    bench.poll(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done)) == (["b.json", "c.json"], ["a.json"])


@pytest.mark.parametrize("pause", [3, 10, 20, 25])
def test_a_log_leaves_when_nothing_more_comes(bench: Staying, store: SqliteStore, done: Path, pause: int) -> None:
    """Lines that come some seconds apart, or nearly a minute, are all sent; the writer has it open."""
    with (bench.path / "log.ndjson").open("w", buffering=1) as log:
        for number in range(5):
            log.write(json.dumps(run(f"r{number}")) + "\n")
            bench.poll(pause)
            assert names(done) == []
        bench.poll(REST + 2)
    assert [stored(store, f"r{number}")["id"] for number in range(5)] == [f"r{number}" for number in range(5)]
    assert (names(bench.path), names(done), bench.notes) == ([], ["log.ndjson"], [])
    assert len((done / "log.ndjson").read_text().splitlines()) == bench.sent() == 5


def test_a_file_that_is_replaced_as_it_is_moved(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine renames its end over the file between the last look at it and the move: it goes back and is sent."""
    bench.write("a.json", run("a", "running"))
    bench.poll(3)
    before(monkeypatch, "rename", lambda: replace(bench, "a.json", run("a")))
    bench.poll(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done)) == (["a.json"], [])
    bench.poll(REST)
    assert json.loads((done / "a.json").read_text()) == run("a")
    assert (names(bench.path), names(done), bench.notes) == ([], ["a.json"], [])


def test_a_file_that_is_deleted_as_it_is_moved(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.write("a.json", run("a"))
    bench.poll(3)
    before(monkeypatch, "rename", path.unlink)
    bench.poll(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done), bench.notes) == ([], [], [])


def test_a_new_file_keeps_its_name_when_another_goes_back(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine replaces the file just before it is moved, and puts a third one there just after it: all are sent."""
    bench.write("a.json", run("a"))
    bench.poll(3)
    before(monkeypatch, "rename", lambda: replace(bench, "a.json", run("b")))
    before(monkeypatch, "link", lambda: replace(bench, "a.json", run("c")))
    bench.poll(REST)
    (note,) = bench.notes
    assert note.startswith(f"{bench.path / '2-a.json'}: was {bench.path / 'a.json'} until")
    bench.poll(2 * REST)
    assert [stored(store, run_id)["id"] for run_id in "abc"] == ["a", "b", "c"]
    assert (names(bench.path), names(done)) == ([], ["2-a.json", "a.json"])


def replace(bench: Staying, name: str, document: dict[str, object]) -> None:
    bench.write("part", document)
    os.replace(bench.path / "part", bench.path / name)


def before(monkeypatch: pytest.MonkeyPatch, call: str, act: Callable[[], object]) -> None:
    """Do something just before the next call of a function of ``os``."""
    real, left = getattr(os, call), [act]

    def function(*args: Any, **named: Any) -> None:
        if left:
            left.pop()()
        real(*args, **named)

    monkeypatch.setattr(os, call, function)


# Starts and ends.


def test_what_was_sent_before_the_start_is_moved(bench: Staying, done: Path) -> None:
    """By a watch that was killed, or that had no --done-dir."""
    bench.again()
    bench.write("a.json", run("a"))
    bench.poll(REST)
    assert names(bench.path) == ["a.json"]
    bench.again(done_folder=str(done))
    bench.poll(REST)
    assert (names(bench.path), names(done)) == ([], ["a.json"])
    assert bench.sent() == 1


def test_what_a_killed_process_left_hidden_is_put_back(bench: Staying, store: SqliteStore, done: Path) -> None:
    """With or without --done-dir, and though it was sent to another receiver."""
    bench.state._session.close()
    for name in ("a.json", "b.json"):
        bench.write(f"{PREFIX}{name}", run(name[0]))
    bench.write("b.json", run("c"))
    bench.again()
    bench.poll(4)
    assert (names(bench.path), hidden(bench)) == (["2-b.json", "a.json", "b.json"], [])
    assert [stored(store, run_id)["id"] for run_id in "abc"] == ["a", "b", "c"]


def test_a_file_that_cannot_go_back_is_reported_once(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and sent when it is back."""
    bench.write("a.json", run("a"))
    bench.poll(3)
    before(monkeypatch, "rename", lambda: replace(bench, "a.json", run("b")))
    with monkeypatch.context() as patch:

        def link(*args: Any, **named: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "link", link)
        bench.poll(REST)
    (note,) = bench.notes
    (left,) = hidden(bench)
    assert note.startswith(f"{left}: cannot be renamed to {bench.path / 'a.json'}: No space left")
    bench.poll(4)
    assert stored(store, "b") == run("b")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["rename", "link", "unlink", "fsync", "copy2"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same", "elsewhere"])
def test_a_kill_at_any_step(
    bench: Staying,
    store: SqliteStore,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    elsewhere: bool,
    after: bool,
) -> None:
    """The next start goes on: the file is complete in the done folder, and in no other; it was sent once."""
    for name in "ab":
        bench.write(f"{name}.json", run(name))
    bench.poll(3)
    with pytest.MonkeyPatch.context() as patch:
        if elsewhere:
            another_file_system(patch, done)
        dead: list[bool] = []
        for owner, name in ((os, "rename"), (os, "link"), (os, "unlink"), (os, "fsync"), (shutil, "copy2")):
            patch.setattr(owner, name, killing(getattr(owner, name), dead, at=name == call, after=after))
        try:
            bench.poll(REST)
        except Killed:
            assert dead
        else:
            assert not dead
            assert call in ("fsync", "copy2")
            assert not elsewhere
    bench.again(done_folder=str(done))
    with pytest.MonkeyPatch.context() as patch:
        if elsewhere:
            another_file_system(patch, done)
        bench.poll(2 * REST)
    assert names(bench.path) == []
    found = {json.loads(path.read_text())["id"] for path in done.iterdir()}
    assert found == {"a", "b"}
    # A copy that got its name just before a kill is made once more.
    assert set(names(done)) - {"2-a.json", "2-b.json"} == {"a.json", "b.json"}
    assert elsewhere or len(names(done)) == 2
    assert (bench.sent(), bench.notes) == (2, [])


def killing(real: Callable[..., object], dead: list[bool], *, at: bool, after: bool) -> Callable[..., object]:
    """A function at whose first call, or after it, the process dies: nothing more is done by it."""

    def call(*args: Any, **named: Any) -> object:
        if dead:
            raise Killed
        if not at:
            return real(*args, **named)
        dead.append(True)
        if after:
            real(*args, **named)
        raise Killed

    return call


# File systems.


def another_file_system(monkeypatch: pytest.MonkeyPatch, done: Path, fail: int = errno.EXDEV) -> None:
    """Make the done folder look as if it were on a file system of its own."""

    def crossing(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: str, target: str, **named: Any) -> None:
            if (done in Path(source).parents) != (done in Path(target).parents):
                raise OSError(fail, os.strerror(fail))
            real(source, target, **named)

        return call

    for name in ("link", "rename"):
        monkeypatch.setattr(os, name, crossing(getattr(os, name)))


def test_to_another_file_system(bench: Staying, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied with its times and rights; the copy appears when it is complete; a taken name is not overwritten."""
    (done / "a.json").write_text("mine")
    path = bench.write("a.json", run("a"))
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18))
    another_file_system(monkeypatch, done)
    bench.poll(REST)
    assert (names(bench.path), names(done), bench.notes) == ([], ["2-a.json", "a.json"], [])
    copy = done / "2-a.json"
    assert json.loads(copy.read_text()) == run("a")
    assert (copy.stat().st_mtime_ns, copy.stat().st_mode & 0o777) == (10**18, 0o640)


@pytest.mark.parametrize(("kind", "call"), [("written to", "fsync"), ("written to", "link"), ("damaged", "fsync")])
def test_a_copy_that_is_not_the_file(
    bench: Staying, done: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    """The file stays when it was written to while it was copied, and what came is sent; or when the copy was damaged,
    which is reported once."""
    bench.write("a.ndjson", run("a"))
    another_file_system(monkeypatch, done)
    real, turns = getattr(os, call), [1] if kind == "written to" else [1, 1]

    def hooked(first: Any, *args: Any, **named: Any) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{first}")) if call == "fsync" else Path(first)
        if place.suffix == ".part" and turns:
            turns.pop()
            (moved,) = hidden(bench)
            with (moved if kind == "written to" else place).open("a") as file:
                file.write(json.dumps(run("b")))
        real(first, *args, **named)

    monkeypatch.setattr(os, call, hooked)
    bench.poll(3 * REST)
    assert not turns
    assert (names(bench.path), names(done)) == ([], ["a.ndjson"])
    documents = (done / "a.ndjson").read_text().count('"id"')
    assert documents == bench.sent() == (2 if kind == "written to" else 1)
    assert ["the copy is not the same" in note for note in bench.notes] == [True] * (kind == "damaged")


def test_where_files_have_one_name_each(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links a file is renamed, and goes back under a number, as an engine may take its name any time."""

    def link(*args: Any, **named: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    (done / "a.json").write_text("mine")
    bench.write("a.json", run("a"))
    bench.poll(3)
    before(monkeypatch, "rename", lambda: replace(bench, "a.json", run("b")))
    bench.poll(REST)
    assert stored(store, "b") == run("b")
    assert (names(bench.path), names(done)) == (["2-a.json"], ["a.json"])
    bench.poll(REST)
    assert (done / "a.json").read_text() == "mine"
    assert (names(bench.path), names(done)) == ([], ["2-a.json", "a.json"])


def test_a_done_folder_that_is_away_is_reported_once(bench: Staying, done: Path) -> None:
    """The files wait for it, and go when it is back."""
    done.rmdir()
    for name in "abc":
        bench.write(f"{name}.json", run(name))
    bench.poll(2 * REST)
    (note,) = bench.notes
    assert "cannot be moved to" in note
    assert (names(bench.path), hidden(bench)) == (["a.json", "b.json", "c.json"], [])
    done.mkdir()
    bench.poll(REST)
    assert (names(bench.path), names(done)) == ([], ["a.json", "b.json", "c.json"])


def test_links_stay(bench: Staying, store: SqliteStore, done: Path, tmp_path: Path) -> None:
    """What they lead to is sent. Elsewhere they would lead somewhere else, or hold a file that is still written to."""
    (tmp_path / "outside.json").write_text(json.dumps(run("a")))
    (bench.path / "a.json").symlink_to("../outside.json")
    bench.polling["follow_symlinks"] = True
    bench.again(done_folder=str(done))
    bench.poll(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done)) == (["a.json"], [])
