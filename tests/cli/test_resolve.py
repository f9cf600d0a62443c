"""``runspan resolve``: a dead run gets an end, in a store, through a server and over OTLP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from support.cli import runspan, server
from support.servers.tempo import Tempo

DEAD = b'{"id":"run_dead","workflowId":"wf","status":"running","startedAt":"2026-11-28T10:00:00.000Z","steps":[]}'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with SqliteStore(tmp_path / "data") as store:
        for run_id in (b"run_dead", b"run_other"):
            store.put(Run.from_json(DEAD.replace(b"run_dead", run_id)), observed_at=1_800_000_000_000_000_000)
    return tmp_path / "data"


@pytest.fixture(params=["data", "server"])
def place(request: pytest.FixtureRequest, data: Path) -> Iterator[tuple[object, ...]]:
    """The options that name the store, or a server over it."""
    if request.param == "data":
        yield "--data", data
        return
    with server(data) as (url, _):
        yield "--backend", url


def found(run_id: str, *place: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(runspan("get", run_id, *place).stdout)
    return document


def test_the_end_is_written_and_says_who_wrote_it(place: tuple[object, ...]) -> None:
    """The command names a reason and a person; only the run that it names changes, and only once."""
    done = runspan("resolve", "run_dead", "--status", "timed_out", "--why", "host died", "--by", "ann", *place)
    assert "run run_dead ended as timed_out" in done.output
    document = found("run_dead", *place)
    assert document["status"] == "timed_out"
    assert document["error"]["message"] == "ended as timed_out by ann with runspan resolve: host died"
    assert document["durationMs"] > 0
    assert found("run_other", *place)["status"] == "running"
    refused = runspan("resolve", "run_dead", "--status", "cancelled", *place, code=2)
    assert "has not ended" in refused.output
    assert "--force" in refused.output
    runspan("resolve", "run_dead", "--status", "cancelled", "--force", *place)
    again = found("run_dead", *place)
    assert (again["status"], again["error"]["error"]) == ("cancelled", document["error"])
    assert "@" in again["error"]["resolvedBy"]


def test_a_run_that_is_not_there_is_an_error(place: tuple[object, ...]) -> None:
    """Nothing is made up for an unknown id."""
    runspan("resolve", "run_none", "--status", "cancelled", *place, code=5)


def test_over_otlp_the_end_is_sent_to_the_receiver(tempo: Tempo, tmp_path: Path) -> None:
    """Tempo is read by its own URL, and written at its receiver, which has to be named."""
    file = tmp_path / "run.json"
    file.write_bytes(DEAD)
    backend = ("--backend", f"tempo+{tempo.url}", "--tenant", "resolve")
    runspan("export", file, "--endpoint", tempo.otlp, "--tenant", "resolve", "--quiet")
    missing = runspan("resolve", "run_dead", "--status", "cancelled", *backend, code=2)
    assert "--endpoint" in missing.output
    runspan("resolve", "run_dead", "--status", "cancelled", "--endpoint", tempo.otlp, *backend)
    assert found("run_dead", *backend)["status"] == "cancelled"


def test_a_server_with_keys_takes_the_end_from_a_key_that_may_write(data: Path) -> None:
    """A key that only reads is refused, and the run stays as it was."""
    reader, writer = (key_for(data, *permissions) for permissions in (("runs:read",), ("runs:read", "runs:write")))
    with server(data) as (url, _):
        place = ("--backend", url)
        command = ("resolve", "run_dead", "--status", "cancelled", *place)
        refused = runspan(*command, code=9, RUNSPAN_API_KEY=reader)
        assert "runs:write" in refused.output
        runspan(*command, RUNSPAN_API_KEY=writer)
        assert json.loads(runspan("get", "run_dead", *place, RUNSPAN_API_KEY=reader).stdout)["status"] == "cancelled"


def key_for(data: Path, *permissions: str) -> str:
    """The secret of a new key."""
    options = [part for permission in permissions for part in ("--permission", permission)]
    return runspan("keys", "create", "--data", data, "--name", "test", *options).stdout.strip()
