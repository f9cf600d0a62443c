"""Lists of the embedded store that its index finds: every filter, order and page, as a plain comparison of all runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.index import facts_index
from runspan.codec.facts import run_facts
from runspan.contracts import Cursor, RunQuery
from runspan.errors import QueryError
from runspan.model.document import sort_time
from runspan.model.timestamps import MILLISECOND, SECOND, rfc3339

T0 = 1_790_000_000 * SECOND
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
TENANTS = ("acme", "globex")
STATUSES = ("completed", "failed", "running", "suspended", "odd")
TRIGGERS = ("webhook", "manual", "x" * 300 + "a", "x" * 300 + "b", None)
"""Two of them are alike as far as the index has them."""
ERRORS = ("RATE_LIMITED", "TIMEOUT", None)
MODELS = ("gpt-4o-mini", "claude-opus-4-6")
STEP_TYPES = ("agent", "email", "wait")


def make_runs(count: int, seed: int = 1) -> list[Run]:
    """Return runs of which many are alike in something, also in their time."""
    chance = random.Random(seed)
    return [make_run(chance, number) for number in range(count)]


def make_run(chance: random.Random, number: int) -> Run:
    """Return a run with random members."""
    begun = T0 + chance.choice([0, 0, 1, chance.randrange(10**6)]) * MILLISECOND + chance.choice([0, 5])
    status, code = chance.choice(STATUSES), chance.choice(ERRORS)
    members: dict[str, Any] = {
        "id": f"run-{number:03}",
        "workflowId": chance.choice(["wf_a", "wf_b", None]),
        "status": status,
        "triggerType": chance.choice(TRIGGERS),
        "startedAt": rfc3339(begun),
        "error": chance.choice([None, {"code": code, "message": "m"}, "text"]),
    }
    if status in ("completed", "failed"):
        members["completedAt"] = rfc3339(begun + chance.choice([0, 90, 3600]) * SECOND)
    if chance.random() < 0.5:
        members["durationMs"] = chance.choice([0, 90_000, 90_000.5, 3_600_000, None])
    members["steps"] = [make_step(chance, position) for position in range(chance.randrange(4))]
    return Run.from_dict(members)


def make_step(chance: random.Random, position: int) -> dict[str, Any]:
    """Return a step that may have used a model."""
    kind = chance.choice(STEP_TYPES)
    step: dict[str, Any] = {"id": f"s{position}", "type": kind, "status": "completed"}
    if kind == "agent":
        usage = {"promptTokens": 10, "completionTokens": 5, "estimatedCostUsd": chance.choice([0, 0.25, 0.5])}
        step["output"] = {"text": "", "model": chance.choice(MODELS), "usage": usage}
    return step


def expected(runs: list[Run], query: RunQuery) -> list[str]:
    """Return the ids of the runs in the list, each looked at by itself."""
    found = []
    for run in runs:
        facts = run_facts(run)
        started = sort_time(run.envelope) or 0
        values = {"start": started, "duration": facts.duration, "cost": facts.cost if facts.models else None}
        value = values[query.order]
        position = (-1 if value is None else value, run.id)
        is_in = (
            query.trigger in (None, facts.trigger)
            and query.error_code in (None, facts.error_code)
            and query.workflow_id in (None, facts.workflow_id)
            and (query.status is None or facts.status in query.statuses)
            and (query.min_duration is None or (facts.duration is not None and facts.duration >= query.min_duration))
            and (query.model is None or query.model in [use.model for use in facts.models])
            and (query.step_type is None or query.step_type in [step.type for step in facts.steps])
            and (query.since is None or started >= query.since)
            and (query.until is None or started < query.until)
            and (query.ended_since is None or (facts.ended is not None and facts.ended >= query.ended_since))
            and (query.ended_until is None or (facts.ended is not None and facts.ended < query.ended_until))
        )
        if is_in:
            found.append(position)
    return [run_id for _, run_id in sorted(found, reverse=True)]


def listed(store: SqliteStore, query: RunQuery) -> list[str]:
    """Return the ids on all pages, of which none is incomplete. Cursors are those that a client sends."""
    found: list[str] = []
    while True:
        page = store.search(query)
        assert page.partial == ()
        found += [json.loads(item)["id"] for item in page.items]
        if page.cursor is None:
            return found
        assert len(page.items) == query.limit
        query = replace(query, cursor=Cursor.parse(page.cursor.token()))


def random_query(chance: random.Random, tenant: str) -> RunQuery:
    """Return a query with any combination of filters, of which none or one mostly applies."""
    by_end = chance.random() < 0.15
    since = chance.choice([None, None, None, T0 + chance.randrange(10**6) * MILLISECOND])
    return RunQuery(
        tenant=tenant,
        trigger=chance.choice([None, None, None, *TRIGGERS, "absent"]),
        error_code=chance.choice([None, None, None, *ERRORS]),
        min_duration=chance.choice([None, None, None, 0, 90 * SECOND, 90 * SECOND + 1, HOUR, 2 * HOUR]),
        model=chance.choice([None, None, None, *MODELS]),
        step_type=chance.choice([None, None, None, *STEP_TYPES]),
        workflow_id=chance.choice([None, None, None, "wf_a"]),
        status=chance.choice(
            [None, "completed"] if by_end else [None, None, "odd", ("failed", "running"), "completed"]
        ),
        since=since,
        until=chance.choice([None, None, (since or T0) + chance.randrange(1, 10**6) * MILLISECOND]),
        ended_since=T0 + chance.randrange(10**6) * MILLISECOND if by_end else None,
        order=chance.choice(["start", "duration", "cost"]),
        limit=chance.choice([1, 3, 7, 200]),
    )


ALONE: list[dict[str, Any]] = [
    *({"trigger": value} for value in (*TRIGGERS, "absent", "") if value is not None),
    *({"error_code": value} for value in (*ERRORS, "absent") if value is not None),
    *({"min_duration": value} for value in (0, 1, 90 * SECOND, 90 * SECOND + 1, HOUR, HOUR + 1)),
    *({"model": value} for value in (*MODELS, "absent")),
    *({"step_type": value} for value in (*STEP_TYPES, "absent")),
    *({"order": "duration", "status": status} for status in (None, "running", ("completed", "odd"))),
    *({"order": "cost", "since": since} for since in (None, T0 + MILLISECOND, T0 + HOUR)),
    {"trigger": "manual", "stuck_before": T0 + 100 * MINUTE},
    {"order": "duration", "ended_since": T0 + MINUTE},
    {"order": "cost", "ended_until": T0 + HOUR},
]


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Run]]:
    """Return the runs of each tenant. Both have the same ids."""
    return {tenant: make_runs(150, seed) for seed, tenant in enumerate(TENANTS)}


@pytest.fixture(scope="module")
def store(runs: dict[str, list[Run]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    with SqliteStore(tmp_path_factory.mktemp("data"), index=True) as opened:
        for tenant, of_tenant in runs.items():
            for run in of_tenant:
                assert not opened.put(run, tenant=tenant, observed_at=T0 + HOUR).rejected
        yield opened


@pytest.fixture(params=["few runs match", "many runs match"])
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find runs as in a small store, and as in a large one."""
    monkeypatch.setattr(facts_index, "_FEW", 20_000 if request.param == "few runs match" else 1)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("limit", [2, 200])
@pytest.mark.parametrize("filters", ALONE, ids=str)
def test_each_filter_and_order(
    store: SqliteStore, runs: dict[str, list[Run]], filters: dict[str, Any], limit: int
) -> None:
    """A list has exactly the runs that meet the filter, in its order, on one page or many."""
    for tenant in TENANTS:
        query = RunQuery(tenant=tenant, limit=limit, **filters)
        those = runs[tenant]
        if query.stuck_before is not None:
            those = [run for run in those if run.to_dict()["status"] == "running"]
        assert listed(store, query) == expected(those, query)


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("seed", range(60))
def test_filters_together(store: SqliteStore, runs: dict[str, list[Run]], seed: int) -> None:
    """Any combination of the new filters with each other, and with those by status, workflow and time."""
    chance = random.Random(seed)
    for tenant in TENANTS:
        for _ in range(5):
            query = random_query(chance, tenant)
            assert listed(store, query) == expected(runs[tenant], query), query


def test_another_tenant_sees_nothing(store: SqliteStore) -> None:
    """Also where names and ids of its own are the same."""
    assert store.search(RunQuery(tenant="initech", order="cost")).items == []
    assert store.search(RunQuery(order="duration")).items == []


@pytest.mark.parametrize("order", ["start", "duration", "cost"])
def test_cursors_fit_one_order(order: Any) -> None:
    """The cursor of a list in another order is refused, by the name of the parameter."""
    for other in ("start", "duration", "cost"):
        cursor = Cursor.parse(Cursor(5, "run:1", other).token())
        assert cursor == Cursor(5, "run:1", other)
        if other != order:
            with pytest.raises(QueryError) as caught:
                RunQuery(order=order, cursor=cursor)
            assert (caught.value.where, caught.value.expected) == ("cursor", f"that of a list sorted by {order}")


def test_cursors_of_runs_without_a_value() -> None:
    """They are behind all others; a list by start has none of them."""
    assert Cursor.parse(Cursor(-1, "r", "cost").token()) == Cursor(-1, "r", "cost")
    for wrong in (Cursor(-1, "r"), Cursor(-2, "r", "duration")):
        with pytest.raises(QueryError):
            Cursor.parse(wrong.token())
