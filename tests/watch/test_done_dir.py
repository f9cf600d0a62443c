"""--done-dir: a file leaves the folder when the receiver has what is in it, and what else is written to it meanwhile is
sent too; through kills at each step, and on file systems of all kinds."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runspan import create_app
from runspan.backends.sqlite import SqliteStore
from runspan.telemetry.instruments import WATCH_PENDING, WATCHED
from runspan.watch.done_dir import BETWEEN
from runspan.watch.poller import MAX_QUIET_WAIT
from support.web import serving
from watch.test_service import REST, Bench, run, stored

HALF = int(MAX_QUIET_WAIT / 2) + 4
"""Looks after which a file that is done with is on its way, and not yet there."""


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
        bench.ledger.close()


class Staying(Bench):
    """All looks are those of one process, until it ends or another one begins."""

    def open(self, url: str = "") -> None:
        super().open(url)
        self.process = self.watch(lambda pause: True)

    def look(self, times: int = 2, *, seconds: float = 2.0) -> None:
        for _ in range(times):
            self.seconds += seconds
            self.process._round(2.0)

    def again(self, **settings: str) -> None:
        """A kill, and another start."""
        self.ledger._connection.close()
        self._settings = settings
        self.open()


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir() if not found.name.startswith(".ledger"))


def between(bench: Staying) -> list[Path]:
    """The files that are on their way."""
    return sorted(bench.path.glob(f"{BETWEEN}*/*"))


# What is written to a file that is done with.


def test_a_file_without_a_document_is_not_done(bench: Staying, store: SqliteStore, done: Path) -> None:
    """An engine opens its file first and writes later, however much later."""
    with (bench.path / "a.json").open("w") as file:
        bench.look(2 * REST)
        assert (names(bench.path), names(done)) == (["a.json"], [])
        assert (bench.health.collect()[WATCHED], bench.health.collect()[WATCH_PENDING], bench.notes) == (0, 0, [])
        json.dump(run("a"), file)
    bench.write("b.json")
    (bench.path / "c.json").write_text("[]")
    bench.look(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done)) == (["b.json", "c.json"], ["a.json"])


@pytest.mark.parametrize("pause", [3, 10, 20, 25])
def test_a_log_leaves_when_nothing_more_comes(bench: Staying, store: SqliteStore, done: Path, pause: int) -> None:
    """Lines that come some seconds apart, or nearly a minute, are all sent; the writer has it open."""
    with (bench.path / "log.ndjson").open("w", buffering=1) as log:
        for number in range(5):
            log.write(json.dumps(run(f"r{number}")) + "\n")
            bench.look(pause)
            assert names(done) == []
        bench.look(REST + 2)
    assert [stored(store, f"r{number}")["id"] for number in range(5)] == [f"r{number}" for number in range(5)]
    assert (names(bench.path), names(done), bench.notes) == ([], ["log.ndjson"], [])
    assert len((done / "log.ndjson").read_text().splitlines()) == bench.sent() == 5


def test_a_file_that_is_replaced_as_it_is_moved(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine renames its end over the file between our look and our move: it is the end that moved, so it goes
    back and is sent."""
    bench.write("a.json", run("a", "running"))
    bench.look(3)
    before_rename(monkeypatch, lambda: replace(bench, "a.json", run("a")))
    bench.look(HALF)
    assert stored(store, "a") == run("a")
    bench.look(REST)
    assert json.loads((done / "a.json").read_text()) == run("a")
    assert (names(bench.path), names(done), bench.notes) == ([], ["a.json"], [])


def test_a_file_of_the_same_name_does_not_lose_the_one_on_its_way(
    bench: Staying, store: SqliteStore, done: Path
) -> None:
    """One is on its way and is written to, while the engine puts another into its place."""
    bench.write("a.json", run("a", "running"))
    bench.look(HALF)
    (moved,) = between(bench)
    replace(bench, "a.json", run("b"))
    with moved.open("a") as file:
        file.write(json.dumps(run("c")))
    bench.look(4)
    (note,) = bench.notes
    assert note.startswith(f"{bench.path / '2-a.json'}: was {bench.path / 'a.json'} until")
    bench.look(REST)
    assert [stored(store, run_id)["id"] for run_id in "abc"] == ["a", "b", "c"]
    assert (names(bench.path), names(done)) == ([], ["2-a.json", "a.json"])


def replace(bench: Staying, name: str, document: dict[str, object]) -> None:
    bench.write("part", document)
    os.replace(bench.path / "part", bench.path / name)


def before_rename(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Once."""
    real, left = os.rename, [act]

    def rename(*args: Any) -> None:
        if left:
            left.pop()()
        real(*args)

    monkeypatch.setattr(os, "rename", rename)


# Starts and ends.


def test_what_was_sent_before_the_start_is_moved(bench: Staying, done: Path) -> None:
    """By a watch that was killed, or that had no --done-dir."""
    bench.again()
    bench.write("a.json", run("a"))
    bench.look(REST)
    assert names(bench.path) == ["a.json"]
    bench.again(done_folder=str(done))
    bench.look(REST)
    assert (names(bench.path), names(done)) == ([], ["a.json"])
    assert bench.sent() == 1


def test_at_the_end_nothing_is_hidden(bench: Staying, done: Path) -> None:
    """What is on its way goes back; and so it does when a killed watch is followed by one without --done-dir."""
    bench.write("a.json", run("a"))
    bench.look(HALF)
    assert len(between(bench)) == 1
    bench.process.run()
    assert names(bench.path) == ["a.json"]
    bench.look(HALF)
    assert len(between(bench)) == 1
    bench.again()
    bench.look(3)
    assert (names(bench.path), names(done), bench.notes, bench.sent()) == (["a.json"], [], [], 1)


def test_files_of_another_target_are_told(bench: Staying) -> None:
    """A watch for it was killed; that they are hidden there is told, once."""
    other = bench.path / f"{BETWEEN}0123abcd"
    other.mkdir()
    bench.look(4)
    assert [note.split(": holds")[0] for note in bench.notes] == [str(other)]


def test_a_file_that_cannot_go_back_is_told_once(
    bench: Staying, store: SqliteStore, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and sent when it is back."""
    bench.write("a.ndjson", run("a"))
    bench.look(HALF)
    (moved,) = between(bench)
    with moved.open("a") as file:
        file.write(json.dumps(run("b")))
    with monkeypatch.context() as patch:

        def link(*args: Any, **named: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "link", link)
        bench.look(5)
    (note,) = bench.notes
    assert note.startswith(f"{moved}: cannot go back to {bench.path / 'a.ndjson'}: No space left")
    bench.look(4)
    assert stored(store, "b") == run("b")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["makedirs", "rename", "link", "unlink", "fsync", "copy2", "commit"])
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
    """The next start goes on: the file is in the done folder, whole, and in no other; it was sent once."""
    for name in "ab":
        bench.write(f"{name}.json", run(name))
    bench.look(3)
    with pytest.MonkeyPatch.context() as patch:
        if elsewhere:
            another_file_system(patch, done)
        dead: list[bool] = []
        ways = {"copy2": "runspan.watch.done_dir.shutil.copy2", "commit": "runspan.watch.state_db.Ledger.commit"}
        for way in ("makedirs", "rename", "link", "unlink", "fsync", "copy2", "commit", "rmdir"):
            path = ways.get(way, f"os.{way}")
            patch.setattr(path, killing(patch, path, dead, at=way == call, after=after))
        try:
            bench.look(REST)
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
        bench.look(2 * REST)
    assert names(bench.path) == []
    found = {json.loads(path.read_text())["id"] for path in done.iterdir()}
    assert found == {"a", "b"}
    # A copy that got its name just before a kill is made once more.
    assert set(names(done)) - {"2-a.json", "2-b.json"} == {"a.json", "b.json"}
    assert elsewhere or len(names(done)) == 2
    assert (bench.sent(), bench.notes) == (2, [])


def killing(patch: pytest.MonkeyPatch, path: str, dead: list[bool], *, at: bool, after: bool) -> Callable[..., object]:
    """A function after, or instead of, whose first call at a file nothing more is done by this process."""
    target, _, name = path.rpartition(".")
    if path.startswith("os."):
        real = getattr(os, name)
    else:
        from importlib import import_module

        module, _, owner = target.rpartition(".")
        real = getattr(getattr(import_module(module), owner), name)

    def call(*args: Any, **named: Any) -> object:
        if dead:
            raise Killed
        if not at or (name == "commit" and not on_its_way(args[0])):
            return real(*args, **named)
        dead.append(True)
        if after:
            real(*args, **named)
        raise Killed

    return call


def on_its_way(ledger: Any) -> bool:
    """Whether a file is written down that is to be moved: the commits before that are other tests' matter."""
    pattern = f"{BETWEEN}%"
    count = ledger._connection.execute("SELECT count(*) FROM files WHERE CAST(name AS TEXT) LIKE ?", (pattern,))
    return bool(count.fetchone()[0])


# File systems.


def another_file_system(monkeypatch: pytest.MonkeyPatch, done: Path, fail: int = errno.EXDEV) -> None:
    """As if the done folder were on one of its own."""

    def crossing(real: Callable[..., None]) -> Callable[..., None]:
        def call(source: str, target: str, **named: Any) -> None:
            if (done in Path(source).parents) != (done in Path(target).parents):
                raise OSError(fail, os.strerror(fail))
            real(source, target, **named)

        return call

    for name in ("link", "rename"):
        monkeypatch.setattr(os, name, crossing(getattr(os, name)))


def test_to_another_file_system(bench: Staying, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied with its times and rights; the copy appears when it is whole; a taken name is not overwritten."""
    (done / "a.json").write_text("mine")
    path = bench.write("a.json", run("a"))
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18))
    another_file_system(monkeypatch, done)
    bench.look(REST)
    assert (names(bench.path), names(done), bench.notes) == ([], ["2-a.json", "a.json"], [])
    copy = done / "2-a.json"
    assert json.loads(copy.read_text()) == run("a")
    assert (copy.stat().st_mtime_ns, copy.stat().st_mode & 0o777) == (10**18, 0o640)


@pytest.mark.parametrize(("kind", "call"), [("written to", "fsync"), ("written to", "link"), ("damaged", "fsync")])
def test_a_copy_that_is_not_the_file(
    bench: Staying, done: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str
) -> None:
    """The file stays when it was written to while it was copied, and what came is sent; or when the copy was damaged,
    which is told once."""
    bench.write("a.ndjson", run("a"))
    another_file_system(monkeypatch, done)
    real, turns = getattr(os, call), [1] if kind == "written to" else [1, 1]

    def hooked(first: Any, *args: Any, **named: Any) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{first}")) if call == "fsync" else Path(first)
        if place.suffix == ".part" and turns:
            turns.pop()
            (moved,) = between(bench)
            with (moved if kind == "written to" else place).open("a") as file:
                file.write(json.dumps(run("b")))
        real(first, *args, **named)

    monkeypatch.setattr(os, call, hooked)
    bench.look(3 * REST)
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
    bench.write("b.ndjson", run("b"))
    bench.look(HALF)
    moved = next(path for path in between(bench) if path.name == "b.ndjson")
    with moved.open("a") as file:
        file.write(json.dumps(run("c")))
    bench.look(4)
    assert stored(store, "c") == run("c")
    bench.look(REST)
    assert (done / "a.json").read_text() == "mine"
    assert (names(bench.path), names(done)) == ([], ["2-a.json", "2-b.ndjson", "a.json"])


def test_a_done_folder_that_is_away_is_told_once(bench: Staying, done: Path) -> None:
    """The files wait for it, and go when it is back."""
    done.rmdir()
    for name in "abc":
        bench.write(f"{name}.json", run(name))
    bench.look(2 * REST)
    (note,) = bench.notes
    assert "cannot be moved to" in note
    assert len(between(bench)) == 3
    done.mkdir()
    bench.look(REST)
    assert (names(bench.path), names(done)) == ([], ["a.json", "b.json", "c.json"])


def test_links_stay(bench: Staying, store: SqliteStore, done: Path, tmp_path: Path) -> None:
    """What they lead to is sent. Elsewhere they would lead somewhere else, or hold a file that is still written to."""
    (tmp_path / "outside.json").write_text(json.dumps(run("a")))
    (bench.path / "a.json").symlink_to("../outside.json")
    bench.look(REST)
    assert stored(store, "a") == run("a")
    assert (names(bench.path), names(done)) == (["a.json"], [])
