"""Runs that nobody saw go on: told by the store, the REST API, another server's reader, the command line, metrics."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flask import Flask, Response

from conformance.harness import SECOND, T0, all_pages, ids, make_run, otlp, running
from runspan import Run, encode
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.reader import _statement
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.codec.fields import ROOT_REVISION, observed_time
from runspan.contracts import RunQuery
from runspan.errors import NotFound, QueryError, QueryUnsupported
from runspan.model.document import LIVE_RUN_STATUSES, RUN_STATUSES
from runspan.model.ids import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import runspan
from support.web import error_of, serving

MINUTE = 60 * SECOND
NOW = T0 + 60 * MINUTE
SEEN = {"fresh": NOW - MINUTE, "edge": NOW - 15 * MINUTE, "silent": NOW - 16 * MINUTE, "old": NOW - 50 * MINUTE}
"""When each running run was last seen."""


def fill(store: SqliteStore, now: int = NOW) -> None:
    """Running runs that were last seen at different times, and others that are never stuck."""
    for number, (run_id, seen_at) in enumerate(SEEN.items()):
        workflow = "wf_odd" if number % 2 else "wf_even"
        run = running(run_id, T0 + number * SECOND, workflowId=workflow)
        store.put(run, observed_at=now - NOW + seen_at)
    store.put(running("waits", status="suspended"), observed_at=now - 50 * MINUTE)
    store.put(make_run("done"), observed_at=now - 50 * MINUTE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path) as opened:
        yield opened


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    """A server on a filled store whose clock stands still."""
    fill(store)
    with serving(create_app(store, store, clock=lambda: NOW)) as client:
        yield client


def listed(client: httpx.Client, **parameters: object) -> list[str]:
    answer = client.get("/api/v1/runs", params=parameters)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["data"]]


# The contract.


def test_a_revision_tells_when_it_was_seen() -> None:
    """A snapshot before the end has the time itself, one after the end the time above the root's revision."""
    assert [observed_time(T0), observed_time(ROOT_REVISION), observed_time(ROOT_REVISION + T0)] == [T0, 0, T0]


@pytest.mark.parametrize("status", sorted(set(RUN_STATUSES) - set(LIVE_RUN_STATUSES)))
def test_a_status_that_is_at_rest_is_refused_beside_stuck(status: str) -> None:
    """An empty list would look like good news; the error says what to ask instead."""
    with pytest.raises(QueryError) as caught:
        RunQuery(status=status, stuck_before=NOW)
    assert "filter by the status alone" in caught.value.hint


# The embedded store.


def test_the_same_document_put_again_is_a_heartbeat(store: SqliteStore) -> None:
    """The run is not stuck any more; an earlier clock takes nothing back."""
    run = running("beats")
    for observed_at in (T0, T0 + MINUTE, T0 + MINUTE // 2):
        store.put(run, observed_at=observed_at)
    assert ids(store.search(RunQuery(stuck_before=T0 + MINUTE))) == []
    assert ids(store.search(RunQuery(stuck_before=T0 + MINUTE + 1))) == ["beats"]
    assert store.stuck(T0 + MINUTE) == 0
    assert store.stuck(T0 + MINUTE + 1) == 1


def test_a_run_that_is_seen_again_is_kept_from_then_on(tmp_path: Path) -> None:
    """Retention counts from the last time that an unfinished run was seen, changed or not."""
    now = T0
    with SqliteStore(tmp_path, retention_days=1, clock=lambda: now) as store:
        for status in ("suspended", "running"):
            store.put(running(f"is-{status}", status=status), observed_at=now)
        now = T0 + 20 * 3600 * SECOND
        store.put(running("is-suspended", status="suspended"), observed_at=now)
        assert store.expire(T0 + 30 * 3600 * SECOND) == 1
        assert store.document("is-suspended").text
        with pytest.raises(NotFound):
            store.document("is-running")


def test_a_snapshot_that_came_late_takes_no_observation_back(store: SqliteStore) -> None:
    """A document put at two times and a snapshot of between over OTLP: the run was last seen as it was put."""
    store.put(running("mixed", done=1), observed_at=T0)
    store.put(running("mixed", done=1), observed_at=T0 + MINUTE)
    store.write(read_protobuf(otlp(encode(running("mixed", done=2), observed_at=T0 + SECOND))))
    assert store.document("mixed").text == running("mixed", done=1).text
    assert ids(store.search(RunQuery(stuck_before=T0 + MINUTE))) == []


def test_stuck_lists_read_the_index_of_live_runs_alone(store: SqliteStore) -> None:
    """However many runs have ended, a search for stuck ones looks at the others."""
    fill(store)
    connection = sqlite3.connect(store.path)
    for status in (None, "running"):
        for workflow in (None, "wf_odd"):
            statement, values = _statement(RunQuery(workflow_id=workflow, status=status, stuck_before=NOW))
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert [line for line in plan if "live_runs" in line], plan
            assert not [line for line in plan if "TEMP B-TREE" in line], plan
    assert connection.execute("SELECT count(*) FROM runs INDEXED BY live_runs WHERE observed_at > 0").fetchone() == (4,)
    connection.close()


def test_a_store_of_the_format_before_learns_when_runs_were_seen(tmp_path: Path) -> None:
    """Migration takes the observations from the revisions, those of reopened runs too."""
    with SqliteStore(tmp_path) as store:
        fill(store)
        store.put(make_run("again"), observed_at=T0)
        store.put(running("again"), observed_at=T0 + SECOND)
        before = [ids(store.search(RunQuery(stuck_before=at))) for at in (T0 + 2 * SECOND, NOW)]
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    connection.execute("DROP INDEX live_runs")
    connection.execute("ALTER TABLE runs DROP COLUMN observed_at")
    connection.execute("ALTER TABLE runs DROP COLUMN superseded")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with SqliteStore(tmp_path) as store:
        assert [ids(store.search(RunQuery(stuck_before=at))) for at in (T0 + 2 * SECOND, NOW)] == before
        assert "again" in before[0]


# The REST API.


def test_the_api_lists_stuck_runs(client: httpx.Client) -> None:
    """Newest start first, as summaries, with the other parameters; one seen exactly that long ago is not stuck yet."""
    assert listed(client, stuckAfter="15m") == ["old", "silent"]
    assert listed(client, stuckAfter="899s") == ["old", "silent", "edge"]
    assert listed(client, stuckAfter="1h") == []
    assert listed(client, stuckAfter="15m", workflowId="wf_odd") == ["old"]
    assert listed(client, stuckAfter="30s", status="running", limit=3) == ["old", "silent", "edge"]
    assert listed(client, stuckAfter="30s", status="pending") == []
    first = client.get("/api/v1/runs", params={"stuckAfter": "15m", "limit": 1}).json()
    assert first["meta"]["stuckAfter"] == "15m"
    assert listed(client, stuckAfter="15m", limit=1, cursor=first["meta"]["cursor"]) == ["silent"]
    (item,) = client.get("/api/v1/runs", params={"stuckAfter": "40m"}).json()["data"]
    assert item == json.loads(running("old", T0 + 3 * SECOND, workflowId="wf_odd").summary())


def test_without_the_parameter_nothing_changes(client: httpx.Client) -> None:
    """The platform's own list: every run, and no member of meta that it does not document."""
    answer = client.get("/api/v1/runs").json()
    assert len(answer["data"]) == 6
    assert set(answer["meta"]) == {"cursor", "hasMore"}


@pytest.mark.parametrize("length", ["", "0m", "15", "m", "-1m", "1w", "1.5h", "15 m"])
def test_a_length_that_is_none_is_refused(client: httpx.Client, length: str) -> None:
    """The error names the parameter."""
    error = error_of(client.get("/api/v1/runs", params={"stuckAfter": length}), 400, "VALIDATION_ERROR")
    assert error["details"][0]["field"] == "stuckAfter"


def test_stuck_beside_a_status_at_rest_is_refused(client: httpx.Client) -> None:
    """Over HTTP as in Python."""
    answer = client.get("/api/v1/runs", params={"stuckAfter": "15m", "status": "suspended"})
    assert "not stuck" in error_of(answer, 400, "VALIDATION_ERROR")["message"]


def test_the_parameter_is_documented(client: httpx.Client) -> None:
    """OpenAPI has it, with what it means for suspended runs."""
    described = client.get("/api/v1/openapi.json").json()["paths"]["/api/v1/runs"]["get"]["parameters"]
    (parameter,) = [item for item in described if item["name"] == "stuckAfter"]
    assert "Suspended" in parameter["description"]
    assert not parameter.get("required")


def test_a_run_may_be_called_stuck(client: httpx.Client, store: SqliteStore) -> None:
    """No path is taken from run ids."""
    store.put(make_run("stuck"), observed_at=T0)
    assert client.get("/api/v1/runs/stuck").json()["data"]["id"] == "stuck"


def test_another_server_answers_for_its_stuck_runs(client: httpx.Client, store: SqliteStore) -> None:
    """A reader of the server gives what the store gives."""
    reader = RunspanApiReader(str(client.base_url), clock=lambda: NOW)
    for before in (NOW - 20 * MINUTE, NOW - 15 * MINUTE, NOW - SECOND):
        for limit in (1, 50):
            query = RunQuery(stuck_before=before, limit=limit)
            assert all_pages(reader, query) == all_pages(store, query)
    reader.close()


def test_a_server_that_knows_no_stuck_runs_is_not_believed() -> None:
    """Whoever ignores the parameter answers with all runs; that is no list of stuck ones."""
    app = Flask("platform")
    body = b'{"success":true,"data":[{"id":"r"}],"meta":{"cursor":null,"hasMore":false}}'

    @app.get("/api/v1/runs")
    def runs() -> Response:
        return Response(body, content_type="application/json")

    with serving(app) as client:
        reader = RunspanApiReader(str(client.base_url), clock=lambda: NOW)
        assert ids(reader.search(RunQuery())) == ["r"]
        with pytest.raises(QueryUnsupported, match="stuckAfter"):
            reader.search(RunQuery(stuck_before=NOW - MINUTE))
        reader.close()


# The command line and metrics.


@pytest.mark.parametrize("over_http", [False, True], ids=["data", "server"])
def test_the_command_line_lists_stuck_runs(tmp_path: Path, over_http: bool) -> None:
    """``--stuck`` alone means a quarter of an hour; with a length of time it means that."""
    with SqliteStore(tmp_path) as store, serving(create_app(store, store)) as client:
        fill(store, time.time_ns())
        place = ("--backend", str(client.base_url)) if over_http else ("--data", str(tmp_path))

        def shown(*options: str) -> list[str]:
            lines = runspan("list", "--json", *place, *options).stdout.splitlines()
            return [json.loads(line)["id"] for line in lines]

        assert shown("--stuck") == ["old", "silent", "edge"]
        assert shown("--stuck", "20m") == ["old"]
        assert shown("--stuck", "--workflow", "wf_even") == ["silent"]
        assert shown("--stuck=10s", "--limit", "2") == ["old", "silent"]
        assert "not stuck" in runspan("list", *place, "--stuck", "--status", "suspended", code=2).output


def test_metrics_count_stuck_runs(store: SqliteStore) -> None:
    """``runspan_runs_stuck`` follows the clock, with the threshold of the settings."""
    fill(store)
    now = NOW
    settings = WebConfig(stuck_after=60 * 20)
    with serving(create_app(store, store, settings=settings, clock=lambda: now)) as client:
        assert "\nrunspan_runs_stuck 1.0\n" in client.get("/metrics").text
        now += 10 * MINUTE
        assert "\nrunspan_runs_stuck 3.0\n" in client.get("/metrics").text
        store.put(Run.from_json(store.document("old").text), observed_at=now)
        assert "\nrunspan_runs_stuck 2.0\n" in client.get("/metrics").text


def test_only_the_newest_state_is_stuck(store: SqliteStore) -> None:
    """A snapshot that arrives after the end does not bring the run back."""
    store.write(read_protobuf(otlp(encode(make_run("ended")))))
    store.write(read_protobuf(otlp(encode(running("ended"), observed_at=T0))))
    assert store.stuck(NOW) == 0
    assert store.spans(run_ids("ended").trace_id)
