"""Runs by the time of their end: in the embedded store, the REST API, the reader of a server, the command line."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask, Response

from conformance.harness import SECOND, all_pages, ids, make_run, running
from runspan import Run
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore, lists
from runspan.backends.sqlite.queries import DAY
from runspan.contracts import RunQuery
from runspan.errors import QueryUnsupported
from runspan.model.timestamps import canonical_text
from runspan.web.app import create_app
from support.cli import runspan
from support.web import error_of, serving

MILLISECOND, MINUTE, HOUR = SECOND // 1000, 60 * SECOND, 3600 * SECOND
NOW = time.time_ns() // MINUTE * MINUTE


def ended(run_id: str, started: int, completed: int, status: str = "failed", workflow: str = "wf_1") -> Run:
    """A run that started and ended so many minutes ago."""
    return make_run(
        run_id,
        NOW - started * MINUTE,
        completedAt=canonical_text(NOW - completed * MINUTE),
        status=status,
        workflowId=workflow,
    )


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store with runs of other lengths, statuses and workflows."""
    with SqliteStore(tmp_path) as opened:
        for run in (
            ended("days", 4000, 10),
            ended("new", 5, 4),
            ended("edge", 90, 60),
            ended("old", 4000, 3900),
            ended("good", 4000, 9, "completed", "wf_2"),
        ):
            opened.put(run, observed_at=NOW)
        opened.put(running("going-on", NOW - 30 * MINUTE), observed_at=NOW)
        opened.put(ended("others", 4000, 10), tenant="acme", observed_at=NOW)
        yield opened


@pytest.fixture
def client(filled: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(filled, filled, clock=lambda: NOW)) as client:
        yield client


def list_ids(client: httpx.Client, **parameters: str | int) -> list[str]:
    response = client.get("/api/v1/runs", params=parameters)
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["data"]]


@pytest.mark.parametrize("most_sorted", [1, 10_000])
def test_few_ends_are_sorted_and_many_are_read_in_order(
    filled: SqliteStore, monkeypatch: pytest.MonkeyPatch, most_sorted: int
) -> None:
    """Both ways return the same list, with every filter and on pages."""
    monkeypatch.setattr(lists, "_MAX_SORTED", most_sorted)
    expected = ["new", "edge", "good", "days"]
    query = RunQuery(ended_since=NOW - HOUR)
    assert ids(filled.search(query)) == expected
    assert [*map(list, all_pages(filled, RunQuery(ended_since=NOW - HOUR, limit=3)))] == [expected[:3], expected[3:]]
    for status in ("failed", "completed"):
        for workflow in ("wf_1", "wf_2"):
            found = ids(filled.search(RunQuery(status=status, workflow_id=workflow, ended_since=NOW - HOUR)))
            assert found == {"wf_1failed": ["new", "edge", "days"], "wf_2completed": ["good"]}.get(
                workflow + status, []
            )
    assert ids(filled.search(RunQuery(ended_since=NOW - HOUR, since=NOW - HOUR))) == ["new"]


@pytest.mark.parametrize("most_sorted", [1, 10_000])
def test_every_bound_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_sorted: int) -> None:
    """The index of ends is sorted by the day alone."""
    monkeypatch.setattr(lists, "_MAX_SORTED", most_sorted)
    midnight = NOW // DAY * DAY
    ends = [day + rest for day in (midnight - DAY, midnight) for rest in (-MILLISECOND, 0, MILLISECOND)]
    with SqliteStore(tmp_path) as opened:
        for end in ends:
            times = {"startedAt": canonical_text(end), "completedAt": canonical_text(end)}
            opened.put(Run.from_dict({"id": f"r{end}", "status": "failed", "steps": [], **times}), observed_at=NOW)
        for number, since in enumerate(ends):
            for until in (*ends[number + 1 :], None):
                expected = {f"r{end}" for end in ends if since <= end and (until is None or end < until)}
                assert set(ids(opened.search(RunQuery(ended_since=since, ended_until=until)))) == expected


def test_recent_ends_come_from_their_index(filled: SqliteStore) -> None:
    """The list of an alert does not read the runs that ended before."""
    connection = sqlite3.connect(filled.path)
    ((statement, values, _),) = lists.statements(RunQuery(status="failed", ended_since=NOW - HOUR), few_ended=True)
    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values))
    assert "runs_by_end (<expr>>? AND <expr><?)" in plan
    connection.close()


def test_the_api_lists_runs_by_their_end(client: httpx.Client) -> None:
    """The parameter works with the others, and is repeated in meta."""
    assert list_ids(client, endedFrom="1h") == ["new", "edge", "good", "days"]
    assert list_ids(client, endedFrom="15m", status="failed") == ["new", "days"]
    first = client.get("/api/v1/runs", params={"endedFrom": "1h", "limit": 2}).json()
    assert first["meta"]["endedFrom"] == "1h"
    assert list_ids(client, endedFrom="1h", limit=2, cursor=first["meta"]["cursor"]) == ["good", "days"]
    assert "endedFrom" not in client.get("/api/v1/runs").json()["meta"]


@pytest.mark.parametrize("parameters", [{"endedFrom": "soon"}, {"endedFrom": "1h", "status": "running"}])
def test_a_query_that_makes_no_sense_is_refused(client: httpx.Client, parameters: dict[str, str]) -> None:
    """A duration that is none, and the end of runs that go on."""
    error_of(client.get("/api/v1/runs", params=parameters), 400, "VALIDATION_ERROR")


def test_the_reader_of_another_server_finds_the_same(client: httpx.Client, filled: SqliteStore) -> None:
    """The reader returns the same pages as the store."""
    reader = RunspanApiReader(str(client.base_url), clock=lambda: NOW)
    for minutes in (5, 30, 60, 10_000):
        query = RunQuery(ended_since=NOW - minutes * MINUTE, limit=2)
        assert all_pages(reader, query) == all_pages(filled, query)
    reader.close()


def test_a_server_that_ignores_the_parameter_is_detected() -> None:
    """It returns all runs, so the reader raises QueryUnsupported."""
    app = Flask("platform")

    @app.get("/api/v1/runs")
    def runs() -> Response:
        body = b'{"success":true,"data":[{"id":"r"}],"meta":{"cursor":null,"hasMore":false}}'
        return Response(body, content_type="application/json")

    with serving(app) as client:
        reader = RunspanApiReader(str(client.base_url), clock=lambda: NOW)
        with pytest.raises(QueryUnsupported, match="endedFrom"):
            reader.search(RunQuery(ended_since=NOW - MINUTE))
        reader.close()


@pytest.mark.parametrize("over_http", [False, True])
def test_the_command_lists_runs_by_their_end(tmp_path: Path, over_http: bool) -> None:
    """``list --ended-from`` on a directory and on a server."""
    with SqliteStore(tmp_path) as opened:
        for run_id, minutes in (("days", 10), ("old", 3900)):
            opened.put(ended(run_id, 4000, minutes), observed_at=NOW)
        with serving(create_app(opened, opened)) as client:
            place = ("--backend", str(client.base_url)) if over_http else ("--data", str(tmp_path))
            lines = runspan("list", "--json", "--ended-from", "1h", *place).stdout.splitlines()
            assert [json.loads(line)["id"] for line in lines] == ["days"]
            runspan("list", "--ended-from", "1h", "--stuck", *place, code=2)
