"""The flows that people follow through the code pass through few files: ARCHITECTURE.md states how many, and why."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import runspan as package
from runspan import Recorder, connect
from runspan.backends.sqlite import SqliteStore
from runspan.otlp.bulk_reader import COMPILED
from runspan.web.app import create_app
from support.cli import generated, runspan, server, write_ndjson
from support.servers.finding import missing
from support.servers.tempo import Tempo
from support.web import PROTOBUF, document, otlp

SOURCE = Path(package.__file__).parent
ARCHITECTURE = SOURCE.parents[1] / "ARCHITECTURE.md"

LIMITS = {
    "GET /api/v1/runs/{id}, embedded store": 13,
    "GET /api/v1/runs, embedded store": 11,
    "GET /api/v1/runs/{id} over Tempo": 15,
    "POST /v1/traces, embedded store": 16,
    "Recorder: one run, one step, delivered": 20,
    "export of one file": 24,
    "sync of one run": 37,
}
"""By flow: in how many files of the package a function runs, at most."""


class Files:
    """The files of the package in which a function ran while the block was open, in any thread started inside.

    Bodies of modules and classes do not count: they run once, when a module is imported.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            self.seen.add(frame.f_code.co_filename)

    def stop(self) -> None:
        """Follow no further."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        paths = [Path(name) for name in self.seen if name.startswith(str(SOURCE))]
        return sorted(path.relative_to(SOURCE).as_posix() for path in paths)


@contextmanager
def followed(flow: str) -> Iterator[Files]:
    """Follow a flow, and hold it to its limit and to the number that ARCHITECTURE.md gives."""
    files = Files()
    threading.setprofile(files.profile)
    sys.setprofile(files.profile)
    try:
        yield files
    finally:
        files.stop()
    assert len(files.names) <= LIMITS[flow], "\n".join(files.names)
    row = re.search(rf"^\| {re.escape(flow)} \| (\d+) \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert row, f"ARCHITECTURE.md has no row of the flow {flow!r}"
    assert int(row[1]) == len(files.names), "\n".join(files.names)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def native() -> None:
    """Without the native part, Python does more of some flows."""
    if not COMPILED:
        missing("compiled", "the package was built without its native part")


def test_reading_a_run_from_the_embedded_store(store: SqliteStore) -> None:
    """A document by id leaves the store as it was stored, so few files take part."""
    client = create_app(store, store).test_client()
    assert client.post("/v1/traces", data=otlp(document()), headers=PROTOBUF).status_code == 200
    assert client.get("/api/v1/runs/run_1").status_code == 200
    with followed("GET /api/v1/runs/{id}, embedded store"):
        assert client.get("/api/v1/runs/run_1").json["data"]["id"] == "run_1"


def test_listing_runs_of_the_embedded_store(store: SqliteStore) -> None:
    """A list is one query and its rows."""
    client = create_app(store, store).test_client()
    assert client.post("/v1/traces", data=otlp(document()), headers=PROTOBUF).status_code == 200
    assert client.get("/api/v1/runs").status_code == 200
    with followed("GET /api/v1/runs, embedded store"):
        assert len(client.get("/api/v1/runs").json["data"]) == 1


@pytest.mark.usefixtures("native")
def test_receiving_a_request(tmp_path: Path) -> None:
    """From protobuf to a durable row, in a store that opens inside the block."""
    with followed("POST /v1/traces, embedded store") as files, SqliteStore(tmp_path / "store") as store:
        client = create_app(store, store).test_client()
        assert client.post("/v1/traces", data=otlp(document("run_0")), headers=PROTOBUF).status_code == 200
        body = otlp(document("run_1"))
        files.seen.clear()
        assert client.post("/v1/traces", data=body, headers=PROTOBUF).status_code == 200
        files.stop()


def test_reading_a_run_over_tempo(tempo: Tempo, tmp_path: Path) -> None:
    """One request to Tempo, decoded and proved."""
    with httpx.Client() as http:
        body = otlp(document("run_flow"))
        assert http.post(f"{tempo.otlp}/v1/traces", content=body, headers=PROTOBUF).status_code == 200
    reader = connect(f"tempo+{tempo.url}")
    client = create_app(reader).test_client()
    assert client.get("/api/v1/runs/run_flow").status_code == 200
    with followed("GET /api/v1/runs/{id} over Tempo"):
        assert client.get("/api/v1/runs/run_flow").json["data"]["id"] == "run_flow"
    reader.close()


def test_recording_a_run(tmp_path: Path) -> None:
    """A run of one step reaches a real server; the recorder itself is created before."""
    with server(tmp_path / "store") as (url, _):
        recorder = Recorder(endpoint=url)
        with followed("Recorder: one run, one step, delivered"):
            with recorder.run("wf_1") as run, run.step("fetch", type="action") as step:
                step.set_output({"count": 12})
            assert recorder.flush()
        assert recorder.shutdown()


@pytest.mark.usefixtures("native")
def test_exporting_a_file(tmp_path: Path) -> None:
    """The command, from its options to its report. The first export only imports what it needs."""
    file = write_ndjson(tmp_path / "runs.ndjson", generated(1))
    with server(tmp_path / "store") as (url, _):
        runspan("export", file, "--endpoint", url)
        with followed("export of one file"):
            runspan("export", file, "--endpoint", url)


@pytest.mark.usefixtures("native")
def test_syncing_a_run(tmp_path: Path) -> None:
    """The command between two real servers, from its options to its report; the first sync only imports."""
    file = write_ndjson(tmp_path / "runs.ndjson", generated(1))
    with server(tmp_path / "source") as (source, _), server(tmp_path / "target") as (target, _):
        runspan("sync", source, "--endpoint", target, "--state-file", tmp_path / "first")
        runspan("export", file, "--endpoint", source)
        with followed("sync of one run"):
            runspan("sync", source, "--endpoint", target, "--state-file", tmp_path / "second")
