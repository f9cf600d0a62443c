"""Which files of a folder are read: changed ones, those of subfolders, and what links lead to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from runspan.backends.sqlite import SqliteStore
from runspan.sources.filesystem import SYMLINK_OUT
from runspan.watch.poller import SUBFOLDER
from support.watch import REST, Bench, run, stored


def test_a_file_that_is_replaced_with_the_same_size_and_time(bench: Bench, store: SqliteStore) -> None:
    """In place, with its time set back: the system's own time of the change tells."""
    path = bench.write("a.json", run("a", output=1))
    bench.poll()
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"output": 1', b'"output": 2'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    bench.poll(3)
    assert stored(store, "a")["output"] == 2
    os.chmod(path, 0o640)
    bench.poll(3)
    assert (bench.sent(), bench.poller.pending) == (2, 0)


def test_subfolders_are_named_unless_they_are_read(bench: Bench, store: SqliteStore) -> None:
    """Once each, also those that appear later; hidden ones and the done folder are none of them."""
    for name in ("b", "a", ".hidden", "done"):
        (bench.path / name).mkdir()
    bench.polling["done_folder"] = str(bench.path / "done")
    bench.restart()
    bench.write("a/x.json", run("x"))
    bench.poll(3)
    assert bench.notes == [f"{bench.path / 'a'}, {bench.path / 'b'}: not read: {SUBFOLDER}"]
    (bench.path / "c").mkdir()
    bench.poll(3)
    assert bench.notes[1:] == [f"{bench.path / 'c'}: not read: {SUBFOLDER}"]
    assert bench.sent() == 0


def test_subfolders_that_are_read(bench: Bench, store: SqliteStore) -> None:
    """At every depth, as they appear; a link to a folder above is no endless loop."""
    bench.polling["recursive"] = True
    bench.restart()
    deep = bench.path / "2026" / "11"
    deep.mkdir(parents=True)
    (deep / "up").symlink_to(bench.path)
    bench.write("2026/11/x.json", run("x"))
    bench.write("2026/11/y.json", run("same"))
    bench.write("y.json", run("y"))
    bench.poll(3)
    assert [stored(store, name)["id"] for name in ("x", "y", "same")] == ["x", "y", "same"]
    (bench.path / "later").mkdir()
    bench.write("later/y.json", run("z"))
    bench.write("2026/11/x.json", run("x", output=2))
    bench.poll(3)
    assert (stored(store, "z")["id"], stored(store, "x")["output"]) == ("z", 2)
    (bench.path / "2026").rename(bench.path / "moved")
    bench.poll(3)
    assert (bench.sent(), bench.notes) == (5, [])


def test_files_of_subfolders_keep_their_place_in_the_done_folder(
    tmp_path: Path, store: SqliteStore, bench: Bench
) -> None:
    """One that a killed process has left hidden there is put back first."""
    (tmp_path / "done").mkdir()
    bench.polling |= {"recursive": True, "done_folder": str(tmp_path / "done")}
    bench._options = {"done_folder": str(tmp_path / "done")}
    bench.restart()
    (bench.path / "sub").mkdir()
    bench.write("sub/a.json", run("a"))
    bench.write("a.json", run("b"))
    bench.write("sub/.runspan-moving-c.json", run("c"))
    bench.poll(2 * REST)
    assert sorted(str(path.relative_to(tmp_path / "done")) for path in (tmp_path / "done").rglob("*.json")) == [
        "a.json",
        "sub/a.json",
        "sub/c.json",
    ]
    assert (bench.sent(), list(bench.path.rglob("*.json"))) == (3, [])


def test_links_out_of_the_folder_are_followed_only_when_told(bench: Bench, store: SqliteStore, tmp_path: Path) -> None:
    """A file and a folder elsewhere; what leads to a place inside is read."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "a.json").write_text(json.dumps(run("secret")))
    (bench.path / "..data").mkdir()
    (bench.path / "..data" / "b.json").write_text(json.dumps(run("b")))
    (bench.path / "b.json").symlink_to("..data/b.json")  # as Kubernetes mounts them
    (bench.path / "a.json").symlink_to(tmp_path / "else" / "a.json")
    (bench.path / "folder").symlink_to(tmp_path / "else")
    bench.polling["recursive"] = True
    bench.restart()
    bench.poll(3)
    links = f"{bench.path / 'a.json'}, {bench.path / 'folder'}"
    assert (bench.sent(), bench.notes) == (1, [f"{links}: not read: {SYMLINK_OUT}"])
    bench.polling["follow_symlinks"] = True
    bench.restart()
    bench.poll(3)
    assert stored(store, "secret") == run("secret")
    assert len(bench.notes) == 1
