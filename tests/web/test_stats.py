"""``GET /api/v1/stats``: what it answers, to whom, what it refuses, and how the reader of another server reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.backends.tempo import TempoReader
from runspan.contracts import StatsQuery
from runspan.errors import Forbidden, QueryUnsupported
from runspan.model.document import Run
from runspan.model.timestamps import parse_ns
from runspan.web.api_keys import RUNS_WRITE, ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import WebConfig
from support.jaeger import serving as answering
from support.web import JSON, document, error_of, serving

NOW = parse_ns("2024-01-16T12:34:56Z") or 0
USAGE = {"model": "m", "promptTokens": 30, "completionTokens": 5, "estimatedCostUsd": 0.25}
AGENT = {"id": "ask", "name": "Ask", "type": "agent", "status": "completed", "output": {"usage": USAGE}}
FAILED = {
    "status": "failed",
    "workflowId": "wf/2 <b>",
    "startedAt": "2024-01-16T10:00:00Z",
    "error": {"code": "LIMIT", "message": "Too many"},
    "steps": [{"id": "x", "status": "failed"}],
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store with an index and three runs of two workflows, and one of another tenant."""
    with SqliteStore(tmp_path, index=True) as store:
        for tenant, run in [
            ("", document("run_1", steps=[AGENT])),
            ("", document("run_2", durationMs=7000)),
            ("", document("run_3", **FAILED)),
            ("acme", document("run_4", workflowId="secret")),
        ]:
            store.put(Run.from_dict(run), tenant=tenant, observed_at=NOW)
        yield store


@pytest.fixture
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store, clock=lambda: NOW)) as client:
        yield client


def stats(client: httpx.Client, **parameters: str) -> tuple[list[Any], dict[str, Any]]:
    response = client.get("/api/v1/stats", params=parameters)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["success"] is True
    return body["data"], body["meta"]


def test_workflows(client: httpx.Client) -> None:
    data, meta = stats(client, groupBy="workflow")
    assert meta == {"from": None, "to": None, "hasMore": False}
    assert data == [
        {
            "workflowId": "wf_1",
            "runs": 2,
            "statuses": {"completed": 2},
            "durationMs": {"count": 2, "mean": 5250.0, "p50": 3506.0, "p95": 7013.0},
            "usage": {"steps": 1, "inputTokens": 30, "outputTokens": 5, "costUsd": 0.25},
            "newestFailure": None,
        },
        {
            "workflowId": "wf/2 <b>",
            "runs": 1,
            "statuses": {"failed": 1},
            "durationMs": {"count": 1, "mean": 3500.0, "p50": 3506.0, "p95": 3506.0},
            "usage": {"steps": 0, "inputTokens": 0, "outputTokens": 0, "costUsd": 0.0},
            "newestFailure": {"id": "run_3", "time": "2024-01-16T10:00:00.000Z", "errorMessage": "Too many"},
        },
    ]


def test_times_are_whole_hours(client: httpx.Client) -> None:
    data, meta = stats(client, groupBy="day", **{"from": "27h"}, timeZone="Europe/Berlin")
    assert (meta["from"], meta["to"]) == ("2024-01-15T09:00:00.000Z", "2024-01-16T13:00:00.000Z")
    assert [(group["from"], group["to"], group["runs"]) for group in data] == [
        ("2024-01-15T09:00:00.000Z", "2024-01-15T23:00:00.000Z", 2),
        ("2024-01-15T23:00:00.000Z", "2024-01-16T13:00:00.000Z", 1),
    ]
    data, meta = stats(client, **{"from": "2024-01-16T10:30:00Z", "to": "2024-01-16T10:31:00+00:00"})
    assert (meta["from"], meta["to"]) == ("2024-01-16T10:00:00.000Z", "2024-01-16T11:00:00.000Z")
    assert [group["runs"] for group in data] == [1]


def test_one_workflow(client: httpx.Client) -> None:
    assert stats(client, workflowId="wf/2 <b>", groupBy="error")[0] == [
        {
            "errorCode": "LIMIT",
            "failedStep": "x",
            "runs": 1,
            "newestFailure": {"id": "run_3", "time": "2024-01-16T10:00:00.000Z", "errorMessage": "Too many"},
        }
    ]
    assert stats(client, workflowId="secret") == ([], {"from": None, "to": None, "hasMore": False})


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ("groupBy=workflow,colour", "groupBy"),
        ("groupBy=day,hour&from=1h", "groupBy"),
        ("groupBy=step,error", "groupBy"),
        ("groupBy=", "groupBy"),
        ("groupBy=day", "from"),
        ("groupBy=hour&from=2000-01-01", "groupBy"),
        ("from=yesterday", "from"),
        ("from=1h&to=2h", "to"),
        ("groupBy=day&from=1d&timeZone=Mars/Base", "timeZone"),
        ("timeZone=..%00", "timeZone"),
        ("limit=0", "limit"),
        ("limit=2001", "limit"),
        ("limit=5&limit=6", "limit"),
    ],
)
def test_invalid_parameters_are_refused(client: httpx.Client, parameters: str, field: str) -> None:
    error = error_of(client.get(f"/api/v1/stats?{parameters}"), 400, "VALIDATION_ERROR")
    assert [detail["field"] for detail in error["details"]] == [field]


def test_a_key_sees_the_statistics_of_its_tenant(store: SqliteStore, tmp_path: Path) -> None:
    keys = ApiKeyStore(tmp_path / "keys.sqlite3")
    acme = keys.create("acme", tenant="acme")[0]
    writer = keys.create("writer", permissions=(RUNS_WRITE,))[0]
    config = WebConfig(reads_per_minute=2)
    with serving(create_app(store, store, keys=keys, config=config, clock=lambda: NOW)) as client:
        error_of(client.get("/api/v1/stats"), 401, "UNAUTHORIZED")
        error_of(client.get("/api/v1/stats", headers={"x-api-key": writer}), 403, "FORBIDDEN")
        for _ in range(2):
            found = client.get("/api/v1/stats?groupBy=workflow", headers={"x-api-key": acme}).json()["data"]
            assert [group["workflowId"] for group in found] == ["secret"]
        error_of(client.get("/api/v1/stats", headers={"x-api-key": acme}), 429, "RATE_LIMITED")
    keys.close()


@pytest.mark.parametrize("reader", [TempoReader, JaegerReader])
def test_backends_that_cannot_count_exactly_say_so(reader: Any) -> None:
    kind = "tempo" if reader is TempoReader else "jaeger"
    backend = reader(remote_config(f"{kind}+http://127.0.0.1:1", {}))
    with serving(create_app(backend)) as client:
        error = error_of(client.get("/api/v1/stats?groupBy=workflow"), 400, "QUERY_UNSUPPORTED")
    assert "runspan serve --data" in error["message"]
    backend.close()


def test_a_store_without_index_says_so(tmp_path: Path) -> None:
    with SqliteStore(tmp_path, index=False) as store, serving(create_app(store, store)) as client:
        client.post("/api/v1/runs", content=json.dumps(document()), headers=JSON)
        error = error_of(client.get("/api/v1/stats"), 400, "QUERY_UNSUPPORTED")
    assert "--no-search" in error["message"]


@pytest.mark.parametrize(
    "query",
    [
        StatsQuery(group_by=("workflow",)),
        StatsQuery(group_by=("workflow", "error"), workflow_id="wf/2 <b>"),
        StatsQuery(group_by=("day", "model"), since=NOW - 10**15, until=NOW, time_zone="Asia/Tokyo"),
        StatsQuery(group_by=("step",), limit=1),
        StatsQuery(workflow_id="none", since=NOW - 10**15),
    ],
)
def test_the_reader_of_a_server_returns_what_its_store_does(
    client: httpx.Client, store: SqliteStore, query: StatsQuery
) -> None:
    reader = RunspanApiReader(str(client.base_url))
    assert reader.run_stats(query) == store.run_stats(query)
    with pytest.raises(Forbidden):
        reader.run_stats(StatsQuery(tenant="acme"))
    reader.close()


def test_a_server_without_statistics_is_named() -> None:
    """The platform's own API, which answers 404, has none."""
    missing = {"success": False, "error": {"code": "NOT_FOUND", "message": "no such route"}}
    for body in (json.dumps(missing), "<h1>Not found</h1>"):
        with answering(lambda _, body=body: (404, "application/json", body.encode())) as url:  # type: ignore[misc]
            reader = RunspanApiReader(url)
            with pytest.raises(QueryUnsupported):
                reader.run_stats(StatsQuery())
            reader.close()
