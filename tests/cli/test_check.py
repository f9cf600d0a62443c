"""``runspan check``: what it finds, says and mends in a data directory, and its exit codes."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runspan.backends.sqlite.schema import FILE_NAME
from support.cli import data_directory, execute, generated, process, runspan, server, write_ndjson

TEXTS = generated(30, seed=12)
BROKEN = "UPDATE runs SET document = x'00' WHERE id IN (3, 4)"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with runs and a key."""
    folder = data_directory(tmp_path, TEXTS)
    runspan("keys", "create", "--data", folder, "--name", "test")
    return folder


def test_a_sound_store(data: Path) -> None:
    """One line, none with --quiet."""
    assert "31 rows checked in" in runspan("check", "--data", data).stderr
    assert runspan("check", "--data", data, "--quiet").output == ""
    assert json.loads(runspan("check", "--data", data, "--json").stdout)["intact"] is True


def test_damaged_runs_are_named_and_set_aside_and_sent_again(data: Path, tmp_path: Path) -> None:
    """The rest of the store works meanwhile; what was set aside is in a file that only its owner may read."""
    execute(data / FILE_NAME, BROKEN, "UPDATE runs SET summary = x'7b7d' WHERE id = 7")
    shown = runspan("check", "--data", data, code=1).stderr
    ids = list(TEXTS)
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        ids = [row[0].decode() for row in connection.execute("SELECT run_id FROM runs WHERE id IN (3, 4, 7)")]
    assert all(f"run {run_id} (row" in shown for run_id in ids)
    assert "--set-aside moves damaged rows" in shown
    assert "--repair builds indexes anew" in shown
    found = json.loads(runspan("check", "--data", data, "--json", code=1).stdout)
    assert (found["damaged"], found["left"]) == (3, 3)
    mended = runspan("check", "--data", data, "--repair", "--set-aside")
    assert "everything else is sound" in mended.stderr
    (aside,) = data.glob("set-aside-*.ndjson")
    assert aside.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line)["run"] for line in aside.read_text().splitlines()] == ids[:2]
    with server(data) as (url, _):
        process("export", tmp_path / "runs.ndjson", "--endpoint", url, env={"RUNSPAN_API_KEY": _key(data)})
    for run_id, text in TEXTS.items():
        assert runspan("get", run_id, "--data", data).stdout_bytes == text


def _key(data: Path) -> str:
    return runspan("keys", "create", "--data", data, "--name", "export").stdout.strip()


def test_a_running_server_is_checked_and_mended(data: Path) -> None:
    """Both read one state of the file, and what is set aside is gone for the server too."""
    with server(data):
        execute(data / FILE_NAME, BROKEN)
        assert "2 places" in runspan("check", "--data", data, code=1).stderr
        assert "set aside: 2 rows" in runspan("check", "--data", data, "--set-aside").stderr
        assert "29 rows" in runspan("check", "--data", data).stderr


def test_a_damaged_file_of_keys(data: Path) -> None:
    """Keys and sessions are part of the directory."""
    execute(data / "keys.sqlite3", "UPDATE keys SET sha256 = x'00'")
    shown = runspan("check", "--data", data, code=1).stderr
    assert "keys.sqlite3: key" in shown
    assert "runspan keys create" in shown
    (data / "keys.sqlite3").write_bytes(b"no database" * 1000)
    assert "keys.sqlite3: file is not a database" in runspan("check", "--data", data, code=1).stderr


def test_a_log_of_another_database(data: Path, tmp_path: Path) -> None:
    """Every command refuses it; --set-aside moves it away."""
    with server(tmp_path / "other") as (url, child):
        process("export", tmp_path / "runs.ndjson", "--endpoint", url)
        child.process.kill()
        child.process.wait()
    shutil.copy(tmp_path / "other" / f"{FILE_NAME}-wal", data)
    for command in ("check", "list"):
        assert "write-ahead log is not of this database" in runspan(command, "--data", data, code=10).stderr
    assert "-wal" in runspan("check", "--data", data, "--set-aside").stderr
    assert len(list(data.glob("set-aside-*-wal"))) == 1
    assert "31 rows" in runspan("check", "--data", data).stderr


def test_nothing_is_set_aside_while_a_dictionary_is_damaged(data: Path) -> None:
    """Documents that need it only look damaged."""
    execute(data / FILE_NAME, BROKEN, "INSERT INTO dictionaries VALUES (32768, x'00', zeroblob(32))")
    shown = runspan("check", "--data", data, "--set-aside", code=1).stderr
    assert "row 32768 of dictionaries" in shown
    assert "restore a backup" in shown
    assert not list(data.glob("set-aside-*"))


def test_damaged_pages(data: Path, tmp_path: Path) -> None:
    """What can be read is copied into a new file while no server runs; the damaged file is kept."""
    more = generated(300, seed=16)
    with server(data) as (url, child):
        env = {"RUNSPAN_API_KEY": _key(data)}
        process("export", write_ndjson(tmp_path / "more.ndjson", more), "--endpoint", url, env=env)
        child.end()
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs'").fetchone()[0]
    content = bytearray((data / FILE_NAME).read_bytes())
    cell = int.from_bytes(content[4096 * (root - 1) :][14:16], "big")
    leaf = int.from_bytes(content[4096 * (root - 1) + cell :][:4], "big")
    content[4096 * (leaf - 1)] = 0x77  # no kind of page
    (data / FILE_NAME).write_bytes(content)
    with server(data):
        assert "stop the server and --set-aside" in runspan("check", "--data", data, code=1).stderr
        assert "in use" in runspan("check", "--data", data, "--set-aside", code=10).stderr
    shown = runspan("check", "--data", data, "--set-aside").stderr
    assert "copied into a new file" in shown
    assert "everything else is sound" in shown
    (aside,) = data.glob("set-aside-*.ndjson")
    (replaced,) = data.glob("replaced-*")
    assert (replaced / FILE_NAME).read_bytes()[:4096] == content[:4096]
    gone = {json.loads(line)["run"] for line in aside.read_text().splitlines()}
    assert 0 < len(gone) < 330
    for run_id, text in (TEXTS | more).items():
        shown = runspan("get", run_id, "--data", data, code=5 if run_id in gone else 0)
        assert run_id in gone or shown.stdout_bytes == text
    assert len(runspan("keys", "list", "--data", data, "--json").stdout.splitlines()) >= 2


def test_no_store(tmp_path: Path) -> None:
    """Nothing is created."""
    assert "no runs are kept here" in runspan("check", "--data", tmp_path / "nothing", code=2).stderr
    assert not (tmp_path / "nothing").exists()
