"""A server that is killed while an export runs: after a restart nothing is missing, nothing twice, nothing wrong."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
import pytest

from runspan.platform_api.client import run_path
from support.cli import Running, generated, process, running, server, until_stored, write_ndjson
from support.web import listed

SEED = 20261124
RUNS = 3000
KILLS = 5
LAST_KILL = 1800
"""Runs that are on disk at the last kill, at most: far from the end, so that every kill is during an export."""

DEADLINE = 60


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    found = generated(RUNS, seed=SEED, unfinished=True)
    assert len(found) == RUNS
    return found


def stored(data: Path) -> int:
    """Return how many runs another process sees in the file."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        count: int = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        return count


def kill_when(child: Running, exporting: Running, data: Path, count: int, delay: float) -> None:
    """Send SIGKILL a moment after so many runs are on disk, so that it interrupts work at any point."""
    until_stored(data, count, exporting)
    time.sleep(delay)
    assert child.end(signal.SIGKILL) == -signal.SIGKILL


def assert_all_there(url: str, texts: dict[str, bytes]) -> None:
    """Assert that every document is listed once, and is read byte for byte."""
    with httpx.Client(base_url=url, trust_env=False) as client:
        ids = listed(client)
        assert len(ids) == len(set(ids))
        assert set(ids) == texts.keys()
        wrong = []
        for run_id, text in texts.items():
            answer = client.get(run_path(run_id))
            if answer.content != b'{"success":true,"data":' + text + b"}" or "x-runspan-incomplete" in answer.headers:
                wrong.append(run_id)
        assert wrong == []


@pytest.mark.campaign
def test_kills_during_an_export_lose_and_double_nothing(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """At each kill the exporter ends with its report, accepted runs are on disk, and no document in the file is
    damaged; the last export, to a server that stays up, completes everything."""
    random = Random(SEED)
    path, data = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "data"
    moments = sorted(random.sample(range(1, LAST_KILL), KILLS))
    args = ("--batch-spans", 60, "--concurrency", 2, "--retry-max-time", 0, "--json")
    for moment in moments:
        with server(data) as (url, child):
            before = stored(data)
            with running("export", path, "--endpoint", url, *args, prints_on="stdout") as exporting:
                kill_when(child, exporting, data, max(moment, before + 1), random.uniform(0, 0.02))
                assert exporting.process.wait(DEADLINE) == 1
                report = json.loads(exporting.wait_for("{").string)
        assert report["stopped"] or report["runs_rejected"]
        assert max(moment, report["runs_accepted"]) <= stored(data) < RUNS
        assert intact(data)
    with server(data) as (url, child):
        done = process("export", path, "--endpoint", url, "--json")
        assert json.loads(done.stdout)["runs_accepted"] == RUNS
        assert_all_there(url, texts)
        assert child.end() == 0
    assert intact(data)


def intact(data: Path) -> bool:
    """Return the result of SQLite's integrity check."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_an_export_outlives_the_server_that_it_sends_to(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """After a kill and a restart at the same address, the server receives the rest of the same export."""
    random = Random(SEED + 1)
    path, data = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "data"
    port = free_port()
    with running("serve", "--data", data, "--port", port) as first:
        first.wait_for("is serving")
        url = f"http://127.0.0.1:{port}"
        with running(
            "export",
            path,
            "--endpoint",
            url,
            "--batch-spans",
            40,
            "--retry-max-time",
            f"{DEADLINE}s",
            "--json",
            prints_on="stdout",
        ) as exporting:
            kill_when(first, exporting, data, random.randrange(1, RUNS // 2), random.uniform(0, 0.02))
            with running("serve", "--data", data, "--port", port) as second:
                second.wait_for("is serving")
                report = json.loads(exporting.wait_for("{").string)
                assert exporting.process.wait(DEADLINE) == 0
                assert (report["complete"], report["runs_accepted"]) == (True, RUNS)
                assert report["retries"] > 0
                assert_all_there(url, texts)
                assert second.end() == 0
