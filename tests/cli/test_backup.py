"""``runspan backup`` and ``runspan restore``: what they copy, verify, refuse and say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runspan.backends.sqlite.schema import FILE_NAME
from support.cli import data_directory, execute, generated, process, runspan, server, write_ndjson

TEXTS = generated(40, seed=13)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with runs."""
    return data_directory(tmp_path, TEXTS)


@pytest.fixture
def key(data: Path) -> str:
    """The secret of a key of the directory."""
    return runspan("keys", "create", "--data", data, "--name", "test").stdout.strip()


def runs_in(data: Path) -> dict[str, bytes]:
    return {run_id: runspan("get", run_id, "--data", data).stdout_bytes for run_id in TEXTS}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_round_trip(data: Path, key: str, tmp_path: Path) -> None:
    """Runs and keys come back, sessions do not; the store is one that further runs can be written to."""
    target = tmp_path / "monday.backup"
    with server(data) as (url, _):
        shown = runspan("backup", "--data", data, "--to", target).stderr
    assert f"{target}: 40 runs, with the API keys" in shown
    assert target.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir() if "backup" in file.name] == [target.name]
    restored = tmp_path / "restored"
    assert "restored: 40 runs, with the API keys" in runspan("restore", "--from", target, "--data", restored).stderr
    assert runs_in(restored) == TEXTS
    assert not (restored / "sessions.sqlite3").exists()
    assert (restored / FILE_NAME).stat().st_mode & 0o777 == (restored / "keys.sqlite3").stat().st_mode & 0o777 == 0o600
    assert restored.stat().st_mode & 0o777 == 0o700
    more = write_ndjson(tmp_path / "more.ndjson", generated(5, seed=14))
    with server(restored) as (url, _):
        process("export", more, "--endpoint", url, env={"RUNSPAN_API_KEY": key})
    assert "45 runs" in runspan("backup", "--data", restored, "--to", tmp_path / "next").stderr


def test_a_directory_that_has_only_keys(tmp_path: Path) -> None:
    """The keys come back; the directory gets no store from its backup."""
    data, restored = tmp_path / "data", tmp_path / "restored"
    key = runspan("keys", "create", "--data", data, "--name", "test").stdout.strip()
    shown = runspan("backup", "--data", data, "--to", tmp_path / "b").stderr
    assert f"{tmp_path / 'b'}: 0 runs, with the API keys" in shown
    assert not (data / FILE_NAME).exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("b")] == ["b"]
    runspan("restore", "--from", tmp_path / "b", "--data", restored)
    with server(restored) as (url, _):
        process("export", write_ndjson(tmp_path / "r.ndjson", TEXTS), "--endpoint", url, env={"RUNSPAN_API_KEY": key})
    assert "no runs are kept here" in runspan("backup", "--data", tmp_path, "--to", tmp_path / "c", code=2).stderr


def test_a_backup_of_a_killed_server(data: Path, tmp_path: Path) -> None:
    """What is only in the write-ahead log is in the backup."""
    killed = tmp_path / "killed"
    with server(killed) as (url, child):
        process("export", tmp_path / "runs.ndjson", "--endpoint", url)
        child.process.kill()
        child.process.wait()
    report = json.loads(runspan("backup", "--data", killed, "--to", tmp_path / "b", "--json").stdout)
    assert (report["runs"], report["apiKeys"]) == (40, True)


def test_an_existing_backup_is_replaced_only_when_told(data: Path, tmp_path: Path) -> None:
    """And never by one that failed."""
    target = tmp_path / "b"
    target.write_bytes(b"precious")
    assert "--overwrite" in runspan("backup", "--data", data, "--to", target, code=2).stderr
    execute(data / FILE_NAME, "UPDATE runs SET document = x'00' WHERE id = 3")
    shown = runspan("backup", "--data", data, "--to", target, "--overwrite", code=10).stderr
    assert "the store is damaged in 1 place" in shown
    assert "runspan check" in shown
    assert target.read_bytes() == b"precious"
    runspan("check", "--data", data, "--set-aside")
    assert runspan("backup", "--data", data, "--to", target, "--overwrite", "--quiet").output == ""
    assert not (tmp_path / "b.partial").exists()


def test_a_backup_next_to_the_store_is_refused(data: Path, tmp_path: Path) -> None:
    """It would be lost with it, or replace it."""
    for target in (data / FILE_NAME, data / "b", tmp_path / "x" / ".." / "data" / "b"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "outside of" in runspan("backup", "--data", data, "--to", target, "--overwrite", code=2).stderr
    assert "check the path" in runspan("backup", "--data", data, "--to", tmp_path / "no" / "b", code=10).stderr
    assert (
        "no runs are kept here" in runspan("backup", "--data", tmp_path / "no", "--to", tmp_path / "b", code=2).stderr
    )


def test_damaged_keys_are_not_backed_up(data: Path, key: str, tmp_path: Path) -> None:
    """A backup is sound as a whole."""
    (data / "keys.sqlite3").write_bytes(b"no database" * 1000)
    assert "keys.sqlite3" in runspan("backup", "--data", data, "--to", tmp_path / "b", code=10).stderr
    assert not (tmp_path / "b").exists()


@pytest.fixture
def backup(data: Path, key: str, tmp_path: Path) -> Path:
    """A backup with a key."""
    runspan("backup", "--data", data, "--to", tmp_path / "b")
    return tmp_path / "b"


def test_a_directory_that_is_not_empty_is_replaced_only_when_told(data: Path, backup: Path, tmp_path: Path) -> None:
    """What was there is kept, with its write-ahead log; files of others stay."""
    with server(data, "--retention", "90") as (_, child):
        child.process.kill()
        child.process.wait()
    (data / f"{FILE_NAME}-wal").write_bytes(b"stale" * 5000)
    (data / "notes.txt").write_text("of somebody")
    before = files(data)
    assert "not empty" in runspan("restore", "--from", backup, "--data", data, code=2).stderr
    assert files(data) == before
    shown = runspan("restore", "--from", backup, "--data", data, "--overwrite").stderr
    (replaced,) = data.glob("replaced-*")
    assert str(replaced) in shown
    kept = files(replaced)
    reserve = f"{FILE_NAME}-reserve"  # nothing but disk space
    assert kept == {name: content for name, content in before.items() if ".sqlite3" in name and name != reserve}
    assert not (data / reserve).exists()
    assert kept[f"{FILE_NAME}-wal"] == b"stale" * 5000
    assert (data / "notes.txt").read_text() == "of somebody"
    assert runs_in(data) == TEXTS


def test_a_directory_in_use_is_not_replaced(data: Path, backup: Path) -> None:
    """Neither its store nor its keys alone."""
    for options in ((), ("--backend", "tempo+http://127.0.0.1:1")):
        with server(data, *options):
            shown = runspan("restore", "--from", backup, "--data", data, "--overwrite", code=10).stderr
            assert "the data directory is in use" in shown
            assert "fuser -v" in shown
    assert runs_in(data) == TEXTS


def test_a_damaged_backup_replaces_nothing(data: Path, backup: Path, tmp_path: Path) -> None:
    """Whatever part of it is damaged."""
    for statement in (
        "UPDATE runs SET document = x'00' WHERE id = 7",
        "UPDATE runs SET summary = x'7b7d' WHERE id = 7",
        "UPDATE backup_files SET content = x'00'",
        "UPDATE backup_files SET name = '../keys.sqlite3'",
        "UPDATE last_commit SET marker = x'00'",
        "PRAGMA user_version = 99",
    ):
        damaged = shutil.copy(backup, tmp_path / "damaged")
        execute(Path(damaged), statement)
        before = files(data)
        runspan("restore", "--from", damaged, "--data", data, "--overwrite", code=10)
        assert files(data) == before
        assert not list(data.glob("re*"))
    content = backup.read_bytes()
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    runspan("restore", "--from", tmp_path / "cut", "--data", data, "--overwrite", code=10)
    for other in (data / FILE_NAME, tmp_path / "runs.ndjson", tmp_path / "nothing"):
        shown = runspan("restore", "--from", other, "--data", tmp_path / "new", code=2).stderr
        assert "a file that `runspan backup` has written" in shown
    assert not (tmp_path / "new").exists()


def test_a_backup_in_the_place_of_a_store_is_refused(data: Path, backup: Path) -> None:
    """The message says which command was meant."""
    shutil.copy(backup, data / FILE_NAME)
    shown = runspan("list", "--data", data, code=10).stderr
    assert "this is a backup" in shown
    assert "runspan restore" in shown


@pytest.mark.parametrize("moment", ["staging", "ready", "old files moved", "cleared", "new files moved"])
def test_a_restore_that_was_interrupted(data: Path, backup: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its files are complete nothing has changed; later, whoever opens the directory next finishes it."""
    more = generated(3, seed=15)
    with server(data) as (url, _):
        process(
            "export",
            write_ndjson(data.parent / "more.ndjson", more),
            "--endpoint",
            url,
            env={"RUNSPAN_API_KEY": _key(data)},
        )
    moves = {"staging": 0, "ready": 1, "old files moved": 3, "cleared": 4, "new files moved": 5}[moment]
    rename = os.rename
    seen = 0

    class Killed(BaseException):
        pass

    def count(self: Path, target: Path) -> Path:
        nonlocal seen
        if seen == moves:
            raise Killed
        seen += 1
        rename(self, target)
        return Path(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", count)
        with pytest.raises(Killed):
            runspan("restore", "--from", backup, "--data", data, "--overwrite")
    expected = 43 if moment == "staging" else 40
    assert len(runspan("list", "--data", data, "--json", "--limit", 100).stdout.splitlines()) == expected
    if moment == "staging":
        runspan("restore", "--from", backup, "--data", data, "--overwrite")
    assert runs_in(data) == TEXTS
    assert {file.suffix for file in next(data.glob("replaced-*")).iterdir()} >= {".sqlite3"}
    assert not list(data.glob("restore-*"))


def _key(data: Path) -> str:
    return runspan("keys", "create", "--data", data, "--name", "export").stdout.strip()


def test_the_same_restore_finishes_what_was_interrupted(data: Path, backup: Path) -> None:
    """It says so, and does not ask for --overwrite."""
    runspan("restore", "--from", backup, "--data", data, "--overwrite")
    (data / "restore-ready").mkdir()
    for name in (FILE_NAME, "keys.sqlite3"):
        (data / name).rename(data / "restore-ready" / name)
    assert "finished the restore that was interrupted" in runspan("restore", "--from", backup, "--data", data).stderr
    assert runs_in(data) == TEXTS


def test_reserved_disk_space_is_no_content(backup: Path, tmp_path: Path) -> None:
    """A killed server leaves its reserve, which a restore frees."""
    target = tmp_path / "target"
    target.mkdir()
    reserve = target / f"{FILE_NAME}-reserve"
    reserve.write_bytes(bytes(1 << 20))
    runspan("restore", "--from", backup, "--data", target)
    assert not reserve.exists()
    assert (target / FILE_NAME).exists()
