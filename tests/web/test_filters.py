"""Filters and orders of lists: the parameters of the REST API, the reader of a server, the options in a shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.sqlite.index.test_filters import HOUR, T0, expected, make_runs
from conformance.harness import all_pages, ids
from runspan import Run
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Cursor, RunQuery
from runspan.errors import QueryUnsupported
from runspan.model.timestamps import SECOND
from runspan.web.app import create_app
from support.cli import runspan
from support.web import error_of, serving

RUNS = make_runs(60)
CASES: list[tuple[dict[str, str], tuple[str, ...], dict[str, Any]]] = [
    ({"triggerType": "webhook"}, ("--trigger", "webhook"), {"trigger": "webhook"}),
    ({"errorCode": "TIMEOUT"}, ("--error-code", "TIMEOUT"), {"error_code": "TIMEOUT"}),
    ({"minDuration": "90s"}, ("--min-duration", "90s"), {"min_duration": 90 * SECOND}),
    ({"minDuration": "90.001s"}, ("--min-duration", "90.001s"), {"min_duration": 90_001_000_000}),
    ({"minDuration": "1h"}, ("--min-duration", "1h"), {"min_duration": HOUR}),
    ({"model": "gpt-4o-mini"}, ("--model", "gpt-4o-mini"), {"model": "gpt-4o-mini"}),
    ({"stepType": "email"}, ("--step-type", "email"), {"step_type": "email"}),
    ({"sort": "start", "triggerType": "manual"}, ("--trigger", "manual"), {"trigger": "manual"}),
    ({"sort": "duration"}, ("--sort", "duration"), {"order": "duration"}),
    (
        {"sort": "cost", "status": "running"},
        ("--sort", "cost", "--status", "running"),
        {"order": "cost", "status": "running"},
    ),
    (
        {"sort": "cost", "status": "completed,failed", "stepType": "agent"},
        ("--sort", "cost", "--status", "completed", "--status", "failed", "--step-type", "agent"),
        {"order": "cost", "status": ("completed", "failed"), "step_type": "agent"},
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def store(data: Path) -> Iterator[SqliteStore]:
    with SqliteStore(data, index=True) as opened:
        for run in RUNS:
            opened.put(run, observed_at=T0 + HOUR)
        opened.put(Run.from_dict(RUNS[0].to_dict() | {"id": "others"}), tenant="acme", observed_at=T0 + HOUR)
        yield opened


@pytest.fixture(scope="module")
def client(store: SqliteStore) -> Iterator[httpx.Client]:
    with serving(create_app(store, store)) as client:
        yield client


@pytest.mark.parametrize(("parameters", "_", "filters"), CASES, ids=str)
def test_parameters(client: httpx.Client, parameters: dict[str, str], _: object, filters: dict[str, Any]) -> None:
    """The list has what the parameters say, page by page, and meta repeats them."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        response = client.get("/api/v1/runs", params=parameters | cursor | {"limit": "7"})
        assert response.status_code == 200, response.text
        body = response.json()
        assert {name: body["meta"][name] for name in parameters if name != "status"} == {
            name: value for name, value in parameters.items() if name != "status"
        }
        found += [item["id"] for item in body["data"]]
        if not body["meta"]["hasMore"]:
            break
        cursor = {"cursor": body["meta"]["cursor"]}
    assert found == expected(RUNS, RunQuery(**filters))


@pytest.mark.parametrize(
    ("field", "parameters"),
    [
        ("minDuration", {"minDuration": "5"}),
        ("minDuration", {"minDuration": "-5s"}),
        ("minDuration", {"minDuration": "five minutes"}),
        ("minDuration", {"minDuration": ""}),
        ("sort", {"sort": "status"}),
        ("sort", {"sort": ""}),
        ("triggerType", {"triggerType": ""}),
        ("errorCode", {"errorCode": ""}),
        ("model", {"model": ""}),
        ("stepType", {"stepType": ""}),
        ("cursor", {"sort": "cost", "cursor": Cursor(T0, "run-001").token()}),
        ("cursor", {"cursor": Cursor(5, "run-001", "duration").token()}),
        ("cursor", {"sort": "duration", "cursor": Cursor(5, "run-001", "cost").token()}),
    ],
    ids=str,
)
def test_wrong_values_are_refused(client: httpx.Client, field: str, parameters: dict[str, str]) -> None:
    """The response names the parameter."""
    response = client.get("/api/v1/runs", params=parameters)
    error = error_of(response, 400, "VALIDATION_ERROR")
    assert field in json.dumps(error)


def test_a_server_without_an_index(tmp_path: Path) -> None:
    """It refuses what needs one, with the reason, and lists runs as before."""
    with SqliteStore(tmp_path, index=False) as opened, serving(create_app(opened, opened)) as client:
        opened.put(RUNS[0], observed_at=T0)
        for parameters, _, _ in CASES:
            error = error_of(client.get("/api/v1/runs", params=parameters), 400, "QUERY_UNSUPPORTED")
            assert "--no-search" in error["message"]
        assert len(client.get("/api/v1/runs").json()["data"]) == 1
        for place in (("--data", str(tmp_path)), ("--backend", str(client.base_url))):
            assert "--no-search" in runspan("list", "--sort", "cost", *place, code=6).stderr


def test_the_reader_of_another_server_finds_the_same(client: httpx.Client, store: SqliteStore) -> None:
    """The reader returns the same pages as the store."""
    reader = RunspanApiReader(str(client.base_url))
    for _, _, filters in CASES:
        query = RunQuery(limit=7, **filters)
        assert all_pages(reader, query) == all_pages(store, query)
    assert ids(reader.search(RunQuery(min_duration=1 << 62))) == []
    reader.close()


@pytest.mark.parametrize("name", ["trigger", "error_code", "min_duration", "model", "step_type", "order"])
def test_a_server_that_ignores_a_parameter_is_detected(tmp_path: Path, name: str) -> None:
    """The platform's own API has none of them: a list of all runs is no answer."""
    from flask import Flask, Response

    app = Flask("platform")

    @app.get("/api/v1/runs")
    def runs() -> Response:
        body = b'{"success":true,"data":[{"id":"r"}],"meta":{"cursor":null,"hasMore":false}}'
        return Response(body, content_type="application/json")

    value: Any = {"min_duration": 5, "order": "cost"}.get(name, "x")
    with serving(app) as client:
        reader = RunspanApiReader(str(client.base_url))
        with pytest.raises(QueryUnsupported, match="ignores it"):
            reader.search(RunQuery(**{name: value}))
        reader.close()


@pytest.mark.parametrize("over_http", [False, True])
def test_options(store: SqliteStore, client: httpx.Client, data: Path, over_http: bool) -> None:
    """``list`` on a directory beside its server, and on the server."""
    place = ("--backend", str(client.base_url)) if over_http else ("--data", str(data))
    for _, options, filters in CASES:
        lines = runspan("list", "--json", *options, *place).stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == expected(RUNS, RunQuery(**filters))[:50]


def test_a_directory_without_a_server(tmp_path: Path) -> None:
    """The command brings the index up to date itself."""
    with SqliteStore(tmp_path, index=True):
        pass
    with SqliteStore(tmp_path) as opened:
        for run in RUNS:
            opened.put(run, observed_at=T0 + HOUR)
    lines = runspan("list", "--json", "--sort", "cost", "--data", str(tmp_path)).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == expected(RUNS, RunQuery(order="cost"))[:50]
