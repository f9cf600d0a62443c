"""``runspan serve``: how it starts, what its options do, and that its end loses nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.cli import serve
from runspan.cli.server_log import LogFormatter, LogLimit, LogQueue
from runspan.errors import StoreError
from support.cli import (
    SAMPLES,
    Running,
    environment,
    generated,
    process,
    running,
    runspan,
    server,
    until_stored,
    write_ndjson,
)
from support.web import document


def get(url: str, path: str = "/api/v1/runs", key: str = "") -> httpx.Response:
    return httpx.get(url + path, headers={"x-api-key": key} if key else {}, trust_env=False)


def test_it_says_where_it_is_and_that_it_is_open(tmp_path: Path) -> None:
    """The address, the two paths that people need, and who may use them; its end is reported too."""
    with server(tmp_path / "data") as (url, child):
        assert get(url).json() == {"success": True, "data": [], "meta": {"cursor": None, "hasMore": False}}
        assert get(url, "/healthz").status_code == get(url, "/readyz").status_code == 200
        child.wait_for("no API key was made")
        assert child.end() == 0
    output = "".join(child.lines)
    assert f"runs:   {url}/api/v1/runs" in output
    assert f"traces: {url}/v1/traces" in output
    assert output.endswith("runspan stopped; everything acknowledged is on disk\n")


def test_its_options_reach_the_application(tmp_path: Path) -> None:
    """Body bound, limits, trace link, private metrics and access log, set by variables."""
    key = json.loads(runspan("keys", "create", "--data", tmp_path, "--name", "x", "--json").stdout)["key"]
    env = {
        "RUNSPAN_MAX_BODY": "1",
        "RUNSPAN_READS_PER_MINUTE": "3",
        "RUNSPAN_WRITES_PER_MINUTE": "1",
        "RUNSPAN_TRACES_PER_MINUTE": "1",
        "RUNSPAN_TRACE_URL": "http://jaeger/trace/{trace_id}",
        "RUNSPAN_PRIVATE_METRICS": "1",
        "RUNSPAN_ACCESS_LOG": "1",
        "RUNSPAN_CONCURRENCY": "2",
    }
    headers = {"x-api-key": key, "content-type": "application/json"}
    with (
        server(tmp_path, **env) as (url, child),
        httpx.Client(base_url=url, headers=headers, trust_env=False) as client,
    ):
        large = b'{"id":"run_1","input":"' + b"x" * (1 << 20) + b'"}'
        assert client.post("/api/v1/runs", content=large).status_code == 413
        assert client.post("/api/v1/runs", content=b'{"id":"run_1"}').status_code == 429
        assert client.post("/v1/traces", content=b"{}").status_code == 200
        assert client.post("/v1/traces", content=b"{}").status_code == 429
        assert get(url, "/metrics").status_code == 401
        with SqliteStore(tmp_path) as store:
            store.put(Run.from_dict(document("run_2")), observed_at=1)
        link = client.get("/api/v1/runs/run_2/trace").json()["data"]
        assert link["url"] == f"http://jaeger/trace/{link['traceId']}"
        assert [client.get("/api/v1/runs").status_code for _ in range(3)] == [200, 200, 429]
        limited = runspan("list", "--backend", url, code=8, RUNSPAN_API_KEY=key)
        assert re.search(r"hint: retry in \d+ seconds", limited.stderr)
        assert child.end() == 0
    assert any("POST '/v1/traces' 429" in line for line in child.lines)


def test_the_log_cannot_be_forged() -> None:
    """One line starts a record and its stack trace is indented, whatever text from outside is in either."""
    try:
        raise ValueError("bad\nERROR forged\x1b[2J")
    except ValueError:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 1, "on %s", ("a\r\nERROR\x9b b",), sys.exc_info(), None, "st"
        )
    first, *others = LogFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == r"ERROR on a\r\nERROR\x9b b"
    assert others[0] == "  Traceback (most recent call last):"
    assert r"  ERROR forged\x1b[2J" in others
    assert others[-1] == "  st"
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_a_record_of_the_log_is_bounded() -> None:
    """A client's text is cut, and so is a deep traceback."""
    record = logging.LogRecord("x", logging.ERROR, "", 1, "%s", ("a" * 50_000,), None, None, "line\n" * 5000)
    lines = LogFormatter("%(message)s").format(record).split("\n")
    assert lines[0] == "a" * 2000 + "… (50000 characters)"
    assert len(lines) < 210


def test_the_log_is_bounded() -> None:
    """Of many warnings from one place some are logged each minute, and the others counted; other places go on."""
    now = 0.0
    limit = LogLimit(per_minute=3, clock=lambda: now)

    def logged(line: int, level: int = logging.WARNING) -> str:
        record = logging.LogRecord("x", level, "file.py", line, "%s failed", ("it",), None)
        return record.getMessage() if limit.filter(record) else ""

    assert [logged(1) for _ in range(6)] == ["it failed"] * 3 + [""] * 3
    assert logged(2) == "it failed"
    assert [logged(1, logging.INFO) for _ in range(9)] == ["it failed"] * 9
    now = 60.0
    assert [logged(1), logged(1)] == ["it failed (and 3 more like this before)", "it failed"]


def test_a_log_that_nobody_reads_drops_and_counts() -> None:
    """What there is room for is kept, and the next record has the number of those that were dropped."""
    handler = LogQueue(most=2)
    records = [logging.LogRecord("x", logging.INFO, "", 1, "request %d", (number,), None) for number in range(6)]
    for record in records[:5]:
        handler.handle(record)
    kept = [handler.queue.get() for _ in range(2)]
    handler.handle(records[5])
    kept.append(handler.queue.get())
    assert [record.getMessage() for record in kept] == [
        "request 0",
        "request 1",
        "request 5 (3 records before were dropped: nobody read them)",
    ]


def test_a_log_that_nobody_reads_stops_no_request(tmp_path: Path) -> None:
    """Standard error is a pipe that is full: requests are answered, and the server ends in time."""
    args = [sys.executable, "-m", "runspan", "serve", "--data", str(tmp_path), "--port", "0", "--access-log"]
    with subprocess.Popen(args, stderr=subprocess.PIPE, env=environment()) as child:
        assert child.stderr is not None
        try:
            url = child.stderr.readline().decode().rpartition(" at ")[2].strip()
            with httpx.Client(base_url=url, trust_env=False, timeout=5) as client:
                for _ in range(400):  # of more than 300 characters each; the pipe has 64 KiB
                    assert client.get("/" + "a" * 400).status_code == 404
                assert client.get("/healthz").status_code == 200
            child.send_signal(signal.SIGTERM)
            child.wait(12)
        finally:
            child.kill()


def test_the_access_log_is_bounded(tmp_path: Path) -> None:
    """A long path is cut, so that the status stays readable."""
    with server(tmp_path, "--access-log") as (url, child):
        assert get(url, "/" + "a" * 20_000).status_code == 404
        line = child.wait_for(r"runspan.access 127.0.0.1 GET '/a+' 404 [0-9.]+ ms")[0]
        assert len(line) < 500


def test_names_that_are_allowed(tmp_path: Path) -> None:
    """--allow-host and its variable add names under which a server without keys answers; others are refused, and an
    export says what to do."""
    with server(tmp_path, RUNSPAN_ALLOW_HOST="host.docker.internal my-box") as (url, _):
        statuses = {
            name: named(url, name) for name in ("localhost", "host.docker.internal:1", "my-box", "evil.example")
        }
    assert statuses == {"localhost": 200, "host.docker.internal:1": 200, "my-box": 200, "evil.example": 403}
    with server(tmp_path, "--allow-host", "my-box", "--allow-host", "192.0.2.7") as (url, _):
        assert [named(url, name) for name in ("my-box", "192.0.2.7", "host.docker.internal")] == [200, 200, 403]
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": "host=evil.example"}
        refused = runspan(
            "export", SAMPLES / "agent-invoice-extraction-openai.json", "--endpoint", url, code=1, **headers
        )
        assert "hint: address it as 127.0.0.1, or start it with: runspan serve --allow-host NAME" in refused.stderr
    refused = runspan("serve", "--data", tmp_path, "--allow-host", "http://my-box", "--port", 0, code=2)
    assert "allowed host: expected a name or an address without a port" in refused.stderr


def named(url: str, name: str) -> int:
    return httpx.get(f"{url}/api/v1/runs", headers={"Host": name}, trust_env=False).status_code


def test_behind_a_proxy_the_log_names_the_client(tmp_path: Path) -> None:
    """--trusted-proxy believes the last entry of that address's X-Forwarded-For; without it the header is nothing."""
    headers = {"X-Forwarded-For": "198.51.100.9, 192.0.2.7"}
    for options, address in ((("--trusted-proxy", "127.0.0.1"), "192.0.2.7"), ((), "127.0.0.1")):
        with server(tmp_path, "--access-log", *options) as (url, child):
            httpx.get(f"{url}/api/v1/runs", headers=headers, trust_env=False)
            assert child.wait_for(r"runspan.access (\S+) GET")[1] == address
    refused = runspan("serve", "--data", tmp_path, "--trusted-proxy", "*", "--port", 0, code=2)
    assert "trusted proxy: expected the address that the proxy's connections come from" in refused.stderr


def test_a_store_elsewhere(tmp_path: Path) -> None:
    """--backend names the store, and the keys stay in --data."""
    with server(tmp_path / "keys", "--backend", f"sqlite:{tmp_path / 'store'}") as (url, _):
        assert get(url).status_code == 200
    assert (tmp_path / "store" / "runspan.sqlite3").exists()
    assert not (tmp_path / "keys" / "runspan.sqlite3").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_beyond_this_machine_it_refuses_without_keys(tmp_path: Path, host: str) -> None:
    """The message says how to make one."""
    result = runspan("serve", "--data", tmp_path, "--host", host, "--port", 0, code=2)
    assert "refusing to listen beyond this machine without API keys" in result.stderr
    assert f"hint: create one first: runspan keys create --data {tmp_path} --name NAME" in result.stderr


def test_beyond_this_machine_it_serves_with_keys(tmp_path: Path) -> None:
    """Requests without a key are refused."""
    key = runspan("keys", "create", "--data", tmp_path, "--name", "x").stdout.strip()
    with server(tmp_path, "--host", "0.0.0.0") as (url, child):
        assert (get(url).status_code, get(url, key=key).status_code) == (401, 200)
        assert child.end(signal.SIGINT) == 0
    assert not any("no API key was made" in line for line in child.lines)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("http://127.0.0.1:8321", "a server cannot be served again"),
        ("mysql://x", "backend: expected sqlite:DIR"),
        ("sqlite:", "backend: expected sqlite:DIR"),
    ],
)
def test_a_backend_that_cannot_be_written_is_refused(tmp_path: Path, backend: str, message: str) -> None:
    """Told in two lines, before anything listens."""
    lines = runspan("serve", "--data", tmp_path, "--backend", backend, "--port", 0, code=2).stderr.splitlines()
    assert message in lines[0]
    assert lines[1].startswith("  hint: ")
    assert len(lines) == 2


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    """Two lines, exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = process("serve", "--data", tmp_path, "--port", port, code=2)
    first, second = done.stderr.decode().splitlines()
    assert first.startswith(f"runspan: 127.0.0.1:{port}: cannot listen, got ")
    assert second.startswith("  hint: choose another")


def test_a_directory_that_cannot_be_made_ends_with_10(tmp_path: Path) -> None:
    """A file is where the directory should be."""
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "data"):
        first, second = runspan("serve", "--data", data, "--port", 0, code=10).stderr.splitlines()
        assert first.startswith(f"runspan: {data}: cannot create the data directory, got ")
        assert "--data" in second


def logged(child: Running, text: str) -> str:
    """The first line with this text, also when it was printed before the address of the server."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in child.lines:
            if text in line:
                return line
        time.sleep(0.01)
    raise AssertionError(f"{text!r} is not in {child.lines}")


def test_retention_does_not_delete_most_runs_unless_told(tmp_path: Path) -> None:
    """After a start with a wrong clock, or a wrong retention, the runs stay, and the log and a metric say so."""
    with SqliteStore(tmp_path) as store:
        for number in range(30):
            store.put(Run.from_dict(document(f"run_{number}")), observed_at=1)
    with server(tmp_path, "--retention", "free") as (url, child):
        refusal = logged(child, "ERROR runspan.retention")
        assert "expected at most 50% of 30 runs, got 30 runs that ended more than 7 days before 20" in refusal
        assert "restart with --max-expire-share 100" in refusal
        assert "\nrunspan_store_overdue 30.0\n" in httpx.get(f"{url}/metrics", trust_env=False).text
        late = httpx.post(f"{url}/api/v1/runs", json=document("late"), trust_env=False)
        assert late.status_code == 201, "what is not deleted is not rejected either"
    with server(tmp_path, "--retention", "free", "--max-expire-share", 100) as (url, child):
        assert logged(child, "deleted 31 runs")
        assert "\nrunspan_store_overdue 0.0\n" in httpx.get(f"{url}/metrics", trust_env=False).text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written_ends_with_10(tmp_path: Path) -> None:
    """The keys are the first file that is opened."""
    tmp_path.chmod(0o500)
    assert "keys.sqlite3: Permission denied" in runspan("serve", "--data", tmp_path, "--port", 0, code=10).stderr


@pytest.mark.parametrize("value", ["0", "-1", "soon", "30h", "nan", "1e3"])
def test_an_invalid_retention_is_refused(tmp_path: Path, value: str) -> None:
    """Days, or a plan's name."""
    result = runspan("serve", "--data", tmp_path, "--retention", value, code=2)
    assert "expected days such as 90, or one of free, pro, enterprise" in result.stderr


def test_retention_deletes_and_gives_the_disk_back(tmp_path: Path) -> None:
    """Runs past it are gone after the start, others stay, and the file shrinks."""
    file = tmp_path / "runspan.sqlite3"
    with SqliteStore(tmp_path) as store:
        for number in range(600):
            noise = os.urandom(4000).hex()
            store.put(Run.from_dict(document(f"old_{number}", input=noise)), observed_at=1)
        now = datetime.now(UTC).isoformat()
        store.put(Run.from_dict(document("new", completedAt=now)), observed_at=1)
    before = file.stat().st_size
    with server(tmp_path, "--retention", "free", "--max-expire-share", 100) as (url, child):
        assert child.wait_for(r"deleted (\d+) runs past their retention of (\d+) days").groups() == ("600", "7")
        kept = {run["id"] for run in get(url).json()["data"]}
        assert child.end() == 0
    assert kept == {"new"}
    assert file.stat().st_size < before / 4


def test_its_end_during_an_export_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGTERM while requests arrive: what the exporter counts as accepted is in the store, and a second export, to a
    server that was started again, completes it."""
    texts = generated(2000, seed=3)
    path = write_ndjson(tmp_path / "runs.ndjson", texts)
    args = ("--batch-spans", 40, "--retry-max-time", 0, "--json")
    with (
        server(tmp_path / "data") as (url, child),
        running("export", path, "--endpoint", url, *args, prints_on="stdout") as exporting,
    ):
        until_stored(tmp_path / "data", 200, exporting)
        assert child.end() == 0
        assert exporting.process.wait(60) == 1
        report = json.loads(exporting.wait_for("{").string)
    assert 200 <= report["runs_accepted"] < len(texts)
    stored = {json.loads(line)["id"] for line in listed(tmp_path / "data")}
    assert len(stored) >= report["runs_accepted"]
    assert list(texts)[: report["runs_accepted"] // 2][-1] in stored
    with server(tmp_path / "data") as (url, _):
        runspan("export", path, "--endpoint", url)
    assert {json.loads(line)["id"] for line in listed(tmp_path / "data")} == texts.keys()


def listed(data: Path) -> list[str]:
    return runspan("list", "--data", data, "--limit", 10_000, "--json").stdout.splitlines()


_GARBAGE = """
import gc, sys, weakref
from runspan.cli import main
from runspan.web.server import WebServer

class Cycle:
    def __init__(self):
        self.itself = self

def run(server, grace=0.0):
    garbage = weakref.ref(Cycle())
    kept = [[] for _ in range(2 * gc.get_threshold()[0])]
    print(gc.get_threshold(), gc.get_freeze_count() > 50_000, garbage() is None)

WebServer.run = run
main(["serve", "--data", sys.argv[1], "--port", "0"])
"""


def test_garbage_is_collected_rarely_and_none_is_kept(tmp_path: Path) -> None:
    """What exists at the start is never looked at again, and a cycle that a request leaves is still freed."""
    done = subprocess.run(
        [sys.executable, "-c", _GARBAGE, str(tmp_path)], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout == "(50000, 10, 10) True True\n"


def test_the_retention_survives_every_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next attempt deletes what is due."""
    errors = iter([ZeroDivisionError, StoreError, MemoryError])
    ended = threading.Event()
    real = SqliteStore.expire
    done = []

    def expire(self: SqliteStore, now: int) -> int:
        if error := next(errors, None):
            raise error("a defect")
        done.append(real(self, now))
        ended.set()
        return done[-1]

    monkeypatch.setattr(SqliteStore, "expire", expire)
    monkeypatch.setattr(serve, "_EXPIRE_EVERY", 0.01)
    with SqliteStore(tmp_path) as store:
        serve._expire_regularly(store, 1.0, ended)
    assert len(done) == 1
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 3
