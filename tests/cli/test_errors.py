"""Closed streams and invalid configuration are reported in two lines, without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from support.cli import generated, runspan, write_ndjson
from support.receivers import http_receiver


def closing(what: str, *args: object) -> subprocess.CompletedProcess[str]:
    """The command, started by a shell that closed a stream: ``>&-`` or ``2>&-``."""
    command = ["sh", "-c", f'exec "$@" {what}', "sh", sys.executable, "-m", "runspan", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "data") as store:
        store.put(Run.from_json(b'{"id":"a","status":"completed","steps":[]}'), observed_at=1)
    return tmp_path / "data"


def test_a_command_that_prints_fails_where_nothing_can_be_printed(data: Path, tmp_path: Path) -> None:
    """The output is lost, so the command must not succeed."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(1))
    for args in (("get", "a", "--data", data), ("list", "--data", data), ("export", path, "--dry-run"), ("--version",)):
        done = closing(">&-", *args)
        assert (done.returncode, done.stderr) == (1, "runspan: standard output: Bad file descriptor\n"), args


def test_a_command_succeeds_with_standard_error_closed(data: Path, tmp_path: Path) -> None:
    """Standard error carries only progress and reports."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(3))
    with http_receiver() as receiver:
        done = closing("2>&-", "export", path, "--endpoint", receiver.url, "--json")
        assert (done.returncode, json.loads(done.stdout)["runs_accepted"]) == (0, 3)
    done = closing("2>&-", "archive", "--before", "0m", "--to", tmp_path / "to", "--data", data)
    assert done.returncode == 0
    checkpoint = tmp_path / "checkpoint.sqlite3"
    done = closing("2>&-", "sync", "http://127.0.0.1:9", "--state-file", checkpoint, "--retry-max-time", "1s", "--json")
    assert done.returncode == 9
    assert json.loads(done.stdout)


def test_a_key_lives_at_most_a_hundred_years(tmp_path: Path) -> None:
    """A later end is not a valid date, and could not be shown."""
    for args in (("create", "--name", "x", "--expires", "999999d"), ("rotate", "x", "--grace", "999999d")):
        assert "expected at most 36500d" in runspan("keys", *args, "--data", tmp_path, code=2).stderr
    runspan("keys", "create", "--name", "x", "--expires", "36500d", "--data", tmp_path)
    assert "x" in runspan("keys", "list", "--data", tmp_path).stdout


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_an_invalid_host_cannot_be_listened_on(tmp_path: Path, host: str) -> None:
    """It is not looked up at a name server either."""
    args = ("export", "--watch", tmp_path, "--endpoint", "http://127.0.0.1:9", "--metrics-listen", f"{host}:1")
    assert f"{host}:1: cannot listen for metrics" in runspan(*args, code=2).stderr


@pytest.mark.parametrize("interval", ["-5", "0", "nan", "inf", "1e300"])
def test_an_invalid_export_interval_is_refused(tmp_path: Path, interval: str) -> None:
    """The SDK would raise, or its thread would end silently."""
    env = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": interval}
    message = runspan("export", "--watch", tmp_path, "--endpoint", "http://127.0.0.1:9", code=2, **env).stderr
    assert f"OTEL_METRIC_EXPORT_INTERVAL: expected milliseconds from 1 to 86400000, got '{interval}'" in message
