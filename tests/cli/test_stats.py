"""``runspan stats``: over a store's directory and over a server, with the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.web.app import create_app
from support.cli import generated, runspan
from support.web import document, serving

RUNS = [Run.from_json(text) for text in generated(200, seed=4, unfinished=True).values()]
USAGE = {"model": "m\x1b[31m", "promptTokens": 1234, "completionTokens": 5, "estimatedCostUsd": 0.25}
ODD = document(
    "odd",
    workflowId="w\n<x>",
    status="failed",
    error={"code": "E\x07", "message": "m"},
    steps=[{"id": "s", "type": "agent", "status": "failed", "durationMs": 90_000, "output": {"usage": USAGE}}],
)
Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with generated runs, and an odd one as another tenant's."""
    folder = tmp_path_factory.mktemp("data")
    with SqliteStore(folder, index=True) as store:
        for run in RUNS:
            store.put(run, observed_at=1)
        store.put(Run.from_dict(ODD), tenant="acme", observed_at=1)
    return folder


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with SqliteStore(data) as store, serving(create_app(store, store)) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(params=["data", "server"])
def ask(request: pytest.FixtureRequest, data: Path) -> Ask:
    """The command with the store named in both ways."""
    place = ["--data", str(data)] if request.param == "data" else ["--backend", request.getfixturevalue("url")]
    return lambda *args, **more: runspan("stats", *args, *place, **more)


def rows(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_what_did_the_agents_spend_by_workflow(ask: Ask) -> None:
    table = rows(ask())
    assert " ".join(table[0].split()) == "WORKFLOW RUNS FAILED SUCCESS P50 P95 INPUT TOKENS OUTPUT TOKENS COST"
    assert {row.split()[0] for row in table[1:]} == {run.workflow_id for run in RUNS}
    groups = [json.loads(line) for line in rows(ask("--json"))]
    assert sum(group["runs"] for group in groups) == len(RUNS)
    assert [group["workflowId"] for group in groups] == [row.split()[0] for row in table[1:]]
    spent = max(groups, key=lambda group: group["usage"]["costUsd"])
    row = next(row for row in table if row.split()[0] == spent["workflowId"])
    assert row.endswith(f"${spent['usage']['costUsd']:,.4f}")
    assert f"{spent['usage']['inputTokens']:,}" in row.split()


def test_days_and_models(ask: Ask) -> None:
    by = ["--by", "day", "--by", "model", "--from", "2026-09-30", "--to", "2027-01-02", "--limit", "1000"]
    table = rows(ask(*by, "--time-zone", "America/New_York"))
    assert " ".join(table[0].split()) == "DAY MODEL STEPS INPUT TOKENS OUTPUT TOKENS COST"
    assert all(row.startswith("2026-") for row in table[1:])
    groups = [json.loads(line) for line in rows(ask(*by, "--json"))]
    total = [json.loads(line) for line in rows(ask("--by", "model", "--json"))]
    assert sum(group["usage"]["steps"] for group in groups) == sum(group["usage"]["steps"] for group in total)


def test_errors_and_steps_of_a_workflow(ask: Ask) -> None:
    errors = rows(ask("--by", "error"))
    assert " ".join(errors[0].split()) == "ERROR FAILED STEP RUNS NEWEST RUN STARTED"
    assert all(" run_" in row for row in errors[1:])
    workflow_id = RUNS[0].workflow_id or ""
    steps = rows(ask("--by", "step", "--workflow", workflow_id))
    assert " ".join(steps[0].split()) == "STEP TYPE EXECUTIONS FAILED MEAN TOTAL"
    assert any(row.startswith(str(RUNS[0].steps[0].name)) for row in steps)


def test_what_is_cut_off_is_said(ask: Ask) -> None:
    result = ask("--by", "step", "--limit", "2")
    assert len(rows(result)) == 3
    assert "more groups than --limit 2" in result.stderr
    empty = ask("--from", "2030-01-01T00:30:00Z")
    assert (rows(empty), empty.stderr.splitlines()[-1]) == ([], "no runs match")
    assert "from 2030-01-01T00:00:00.000Z to the last one" in empty.stderr


def test_texts_of_documents_cannot_steer_the_terminal(data: Path) -> None:
    for by, expected in [("workflow", r"w\n<x>"), ("model", r"m\x1b[31m"), ("error", r"E\x07"), ("step", "90.0 s")]:
        table = rows(runspan("stats", "--data", str(data), "--tenant", "acme", "--by", by))
        assert len(table) == 2
        assert expected in table[1]


def test_what_cannot_be_answered(ask: Ask, tmp_path: Path) -> None:
    ask("--by", "step", "--by", "error", code=2)
    ask("--by", "day", "--time-zone", "Mars/Base", code=2)
    with SqliteStore(tmp_path, index=False):
        pass
    result = runspan("stats", "--data", tmp_path, code=6)
    assert "--no-search" in result.stderr
    runspan("stats", "--backend", "jaeger+http://127.0.0.1:1", code=6)
