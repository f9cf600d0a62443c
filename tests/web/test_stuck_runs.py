"""Stuck runs in the store, the REST API, the reader of another server, the command line and the metrics."""

from __future__ import annotations

import json
import re
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
from runspan.backends.sqlite.counts import _SUSPENDED, MAX_STUCK_WORKFLOWS, Stuck
from runspan.backends.sqlite.lists import statements
from runspan.codec.fields import ROOT_REVISION, observed_time
from runspan.contracts import RunQuery, heartbeat_due
from runspan.errors import NotFound, QueryError, QueryUnsupported
from runspan.model.document import LIVE_RUN_STATUSES, RUN_STATUSES
from runspan.model.span import run_ids
from runspan.model.timestamps import parse_ns
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.cli import runspan
from support.web import error_of, serving

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = T0 + 60 * MINUTE
DUE = {"fresh": NOW - MINUTE, "edge": NOW - 15 * MINUTE, "silent": NOW - 16 * MINUTE, "old": NOW - 50 * MINUTE}
"""When the next heartbeat of each running run was due."""


def fill(store: SqliteStore, now: int = NOW) -> None:
    """Store running runs whose heartbeats were due at different times, and others that are never stuck."""
    shift = now - NOW
    for number, (run_id, due) in enumerate(DUE.items()):
        workflow, start = "wf_1" if number % 2 else "wf_2", T0 + number * SECOND + shift
        observed_at = start + (due + shift - start) * 16 // 17
        observed_at += due + shift - heartbeat_due(observed_at, start)
        assert heartbeat_due(observed_at, start) == due + shift
        store.put(running(run_id, start, workflowId=workflow), observed_at=observed_at)
    store.put(running("waits", status="suspended"), observed_at=now - 50 * MINUTE)
    store.put(make_run("done"), observed_at=now - 50 * MINUTE)


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    """A client of a server over a filled store, with a fixed clock."""
    fill(store)
    with serving(create_app(store, store, clock=lambda: NOW)) as client:
        yield client


def list_ids(client: httpx.Client, **parameters: object) -> list[str]:
    response = client.get("/api/v1/runs", params=parameters)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["data"]]


# The contract.


def test_a_revision_contains_its_observation_time() -> None:
    """The revision number of a snapshot is the time itself, or after the end the time above that of the run span."""
    assert [observed_time(T0), observed_time(ROOT_REVISION), observed_time(ROOT_REVISION + T0)] == [T0, 0, T0]


@pytest.mark.parametrize("status", sorted(set(RUN_STATUSES) - set(LIVE_RUN_STATUSES)))
def test_a_status_at_rest_cannot_be_combined_with_stuck(status: str) -> None:
    """An empty list would be misleading; the error says what to request instead."""
    with pytest.raises(QueryError) as caught:
        RunQuery(status=status, stuck_before=NOW)
    assert "filter by the status alone" in caught.value.hint


# The embedded store.


def test_the_same_document_put_again_is_a_heartbeat(store: SqliteStore) -> None:
    """The run is no longer stuck; an earlier observation time changes nothing."""
    run = running("beats")
    for observed_at in (T0, T0 + MINUTE, T0 + MINUTE // 2):
        store.put(run, observed_at=observed_at)
    due = T0 + MINUTE + 30 * SECOND
    assert ids(store.search(RunQuery(stuck_before=due))) == []
    assert ids(store.search(RunQuery(stuck_before=due + 1))) == ["beats"]
    assert store.stuck(due, MINUTE) == []
    assert store.stuck(due + 1, MINUTE) == [Stuck("wf_billing", 1, T0 + MINUTE)]


def test_retention_counts_from_the_last_observation(tmp_path: Path) -> None:
    """This holds for an unfinished run, changed or not."""
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


def test_a_late_snapshot_does_not_change_the_observation_time(store: SqliteStore) -> None:
    """A document put at two times, and a snapshot from between over OTLP: the last time counts."""
    store.put(running("mixed", done=1), observed_at=T0)
    store.put(running("mixed", done=1), observed_at=T0 + MINUTE)
    store.write(read_protobuf(otlp(encode(running("mixed", done=2), observed_at=T0 + SECOND))))
    assert store.document("mixed").text == running("mixed", done=1).text
    assert ids(store.search(RunQuery(stuck_before=T0 + MINUTE))) == []


def test_stuck_lists_read_only_the_index_of_live_runs(store: SqliteStore) -> None:
    """A search for stuck runs does not read the runs that have ended."""
    fill(store)
    connection = sqlite3.connect(store.path)
    for status in (None, "running"):
        for workflow in (None, "wf_1"):
            ((statement, values, _),) = statements(RunQuery(workflow_id=workflow, status=status, stuck_before=NOW))
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            assert [line for line in plan if "live_runs" in line], plan
            assert not [line for line in plan if "TEMP B-TREE" in line], plan
    assert connection.execute("SELECT count(*) FROM runs INDEXED BY live_runs WHERE observed_at > 0").fetchone() == (4,)
    connection.close()


# The REST API.


def test_the_api_lists_stuck_runs(client: httpx.Client) -> None:
    """Summaries, newest start first, with other parameters; a run whose heartbeat was due just then is not stuck."""
    assert list_ids(client, stuckAfter="15m") == ["old", "silent"]
    assert list_ids(client, stuckAfter="899s") == ["old", "silent", "edge"]
    assert list_ids(client, stuckAfter="1h") == []
    assert list_ids(client, stuckAfter="15m", workflowId="wf_1") == ["old"]
    assert list_ids(client, stuckAfter="30s", status="running", limit=3) == ["old", "silent", "edge"]
    assert list_ids(client, stuckAfter="30s", status="pending") == []
    first = client.get("/api/v1/runs", params={"stuckAfter": "15m", "limit": 1}).json()
    assert first["meta"]["stuckAfter"] == "15m"
    assert list_ids(client, stuckAfter="15m", limit=1, cursor=first["meta"]["cursor"]) == ["silent"]
    (item,) = client.get("/api/v1/runs", params={"stuckAfter": "40m"}).json()["data"]
    assert item == json.loads(running("old", T0 + 3 * SECOND, workflowId="wf_1").summary())


def test_without_the_parameter_nothing_changes(client: httpx.Client) -> None:
    """As on the platform: every run, and only documented members of meta."""
    response = client.get("/api/v1/runs").json()
    assert len(response["data"]) == 6
    assert set(response["meta"]) == {"cursor", "hasMore"}


@pytest.mark.parametrize("duration", ["", "0m", "15", "m", "-1m", "1w", "1.5h", "15 m"])
def test_an_invalid_duration_is_refused(client: httpx.Client, duration: str) -> None:
    """The error names the parameter."""
    error = error_of(client.get("/api/v1/runs", params={"stuckAfter": duration}), 400, "VALIDATION_ERROR")
    assert error["details"][0]["field"] == "stuckAfter"


def test_the_api_refuses_stuck_with_a_status_at_rest(client: httpx.Client) -> None:
    """The same rule as in ``RunQuery``."""
    response = client.get("/api/v1/runs", params={"stuckAfter": "15m", "status": "suspended"})
    assert "not stuck" in error_of(response, 400, "VALIDATION_ERROR")["message"]


def test_the_parameter_is_documented(client: httpx.Client) -> None:
    """The OpenAPI document explains what it means for suspended runs."""
    parameters = client.get("/api/v1/openapi.json").json()["paths"]["/api/v1/runs"]["get"]["parameters"]
    (parameter,) = [item for item in parameters if item["name"] == "stuckAfter"]
    assert "Suspended" in parameter["description"]
    assert not parameter.get("required")


def test_a_run_may_be_called_stuck(client: httpx.Client, store: SqliteStore) -> None:
    """Run ids and routes do not collide."""
    store.put(make_run("stuck"), observed_at=T0)
    assert client.get("/api/v1/runs/stuck").json()["data"]["id"] == "stuck"


def test_the_reader_of_another_server_finds_its_stuck_runs(client: httpx.Client, store: SqliteStore) -> None:
    """The reader returns the same pages as the store."""
    reader = RunspanApiReader(str(client.base_url), clock=lambda: NOW)
    for before in (NOW - 20 * MINUTE, NOW - 15 * MINUTE, NOW - SECOND):
        for limit in (1, 50):
            query = RunQuery(stuck_before=before, limit=limit)
            assert all_pages(reader, query) == all_pages(store, query)
    reader.close()


def test_a_server_without_support_for_stuck_runs_is_detected() -> None:
    """A server that ignores the parameter returns all runs, so the reader raises QueryUnsupported."""
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
    """``--stuck`` alone means 15 minutes; it accepts another duration."""
    with SqliteStore(tmp_path) as store, serving(create_app(store, store)) as client:
        fill(store, time.time_ns() // SECOND * SECOND)
        backend = ("--backend", str(client.base_url)) if over_http else ("--data", str(tmp_path))

        def list_command(*options: str) -> list[str]:
            lines = runspan("list", "--json", *backend, *options).stdout.splitlines()
            return [json.loads(line)["id"] for line in lines]

        assert list_command("--stuck") == ["old", "silent", "edge"]
        assert list_command("--stuck", "20m") == ["old"]
        assert list_command("--stuck", "--workflow", "wf_2") == ["silent"]
        assert list_command("--stuck=10s", "--limit", "2") == ["old", "silent"]
        assert "not stuck" in runspan("list", *backend, "--stuck", "--status", "suspended", code=2).output


def test_metrics_count_the_stuck_runs_of_each_workflow(store: SqliteStore) -> None:
    """``runspan_runs_stuck`` follows the clock, with the configured threshold; the age is that of the oldest."""
    fill(store)
    now = NOW
    config = WebConfig(stuck_after=60 * 20)

    def counted(client: httpx.Client, name: str) -> dict[str, float]:
        pattern = rf'^{name}{{runspan_workflow_id="(\w+)"}} (\S+)$'
        found = re.findall(pattern, client.get("/metrics").text, flags=re.MULTILINE)
        return {workflow: float(value) for workflow, value in found}

    with serving(create_app(store, store, config=config, clock=lambda: now)) as client:
        assert counted(client, "runspan_runs_stuck") == {"wf_1": 1}
        age = counted(client, "runspan_runs_stuck_age_seconds")["wf_1"]
        assert 50 * 60 < age < 60 * 60
        now += 10 * MINUTE
        assert counted(client, "runspan_runs_stuck") == {"wf_1": 2, "wf_2": 1}
        assert counted(client, "runspan_runs_stuck_age_seconds")["wf_1"] == pytest.approx(age + 600)
        store.put(Run.from_json(store.document("old").text), observed_at=now)
        assert counted(client, "runspan_runs_stuck") == {"wf_1": 1, "wf_2": 1}


def test_metrics_have_the_age_of_the_oldest_suspended_run_of_each_workflow(store: SqliteStore) -> None:
    """Of all tenants, until the run goes on, or is so old that it may be a backfill."""
    for run_id, workflow, start in (("a", "wf_1", T0), ("b", "wf_1", T0 - HOUR), ("c", "wf_2", T0 - 8 * DAY)):
        store.put(running(run_id, start, workflowId=workflow, status="suspended"), observed_at=T0)
    store.put(running("d", T0 - 2 * HOUR, workflowId="wf_3", status="suspended"), tenant="acme", observed_at=T0)
    store.put(running("e", T0 - 3 * HOUR, workflowId="wf_4"), observed_at=T0)

    def ages(client: httpx.Client) -> dict[str, float]:
        pattern = r'^runspan_runs_suspended_age_seconds{runspan_workflow_id="(\w*)"} (\S+)$'
        found = re.findall(pattern, client.get("/metrics").text, flags=re.MULTILINE)
        return {workflow: float(value) for workflow, value in found}

    with serving(create_app(store, store, clock=lambda: T0 + HOUR)) as client:
        assert ages(client) == {"wf_1": 7200, "wf_3": 10_800}
        store.put(running("b", T0 - HOUR, workflowId="wf_1"), observed_at=T0 + MINUTE)
        assert ages(client) == {"wf_1": 3600, "wf_3": 10_800}


def test_suspended_runs_of_many_workflows_share_a_series(store: SqliteStore) -> None:
    """A series for each workflow would make a scrape as large as the store; the oldest stands for the others."""
    for number in range(MAX_STUCK_WORKFLOWS + 2):
        run = running(f"r{number}", T0 + number * SECOND, workflowId=f"wf_{number}", status="suspended")
        store.put(run, observed_at=T0 + HOUR)
    found = store.suspended(T0)
    assert len(found) == MAX_STUCK_WORKFLOWS + 1
    assert found["wf_0"] == T0
    assert found[""] == T0 + MAX_STUCK_WORKFLOWS * SECOND


def test_suspended_runs_are_found_without_reading_the_others(store: SqliteStore) -> None:
    """A scrape of a large store reads the index of statuses from tenant to tenant."""
    fill(store)
    connection = sqlite3.connect(store.path)
    plan = [line for *_, line in connection.execute(f"EXPLAIN QUERY PLAN {_SUSPENDED}", (0, b"", 0))]
    connection.close()
    assert any("runs_by_status (tenant=? AND status_key=? AND time>?)" in line for line in plan), plan
    assert not any(line.startswith("SCAN runs") for line in plan), plan


def test_a_run_that_was_sent_long_after_its_start_is_not_counted(store: SqliteStore) -> None:
    """A backfill contains runs that never ended. They are listed as stuck, and raise no alert."""
    store.put(running("left", T0), observed_at=T0 + 8 * DAY)
    store.put(running("watched", T0 + 7 * DAY), observed_at=T0 + 8 * DAY)
    late = T0 + 30 * DAY
    assert ids(store.search(RunQuery(stuck_before=late))) == ["watched", "left"]
    assert store.stuck(late, 7 * DAY) == [Stuck("wf_billing", 1, T0 + 8 * DAY)]


def test_the_series_of_many_workflows_are_bounded(store: SqliteStore) -> None:
    """Those that are stuck the longest have a series of their own, and the others one together."""
    for number in range(MAX_STUCK_WORKFLOWS + 3):
        store.put(running(f"run-{number}", workflowId=f"wf-{number}"), observed_at=T0 + number * SECOND)
    store.put(running("none", workflowId=...), observed_at=T0)
    found = {item.workflow_id: item for item in store.stuck(NOW, MINUTE * 60)}
    assert len(found) == MAX_STUCK_WORKFLOWS
    assert found["wf-0"] == Stuck("wf-0", 1, T0)
    assert found[""] == Stuck("", 5, T0)


def test_only_the_newest_state_is_stuck(store: SqliteStore) -> None:
    """A snapshot that arrives after the end does not bring the run back."""
    store.write(read_protobuf(otlp(encode(make_run("ended")))))
    store.write(read_protobuf(otlp(encode(running("ended"), observed_at=T0))))
    assert store.stuck(NOW, NOW) == []
    assert store.spans(run_ids("ended").trace_id)


def test_a_run_says_when_it_was_last_observed(client: httpx.Client) -> None:
    """In a header, also of a response without the document. A run that has ended has none."""
    response = client.get("/api/v1/runs/silent")
    seen = response.headers["X-Runspan-Observed-At"]
    assert heartbeat_due(parse_ns(seen) or 0, sort_time_of(response)) == DUE["silent"]
    again = client.get("/api/v1/runs/silent", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.headers["X-Runspan-Observed-At"]) == (304, seen)
    assert "X-Runspan-Observed-At" in client.get("/api/v1/runs/waits").headers
    assert "X-Runspan-Observed-At" not in client.get("/api/v1/runs/done").headers


def sort_time_of(response: httpx.Response) -> int:
    return parse_ns(response.json()["data"]["startedAt"]) or 0
