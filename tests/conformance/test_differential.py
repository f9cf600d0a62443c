"""Every backend answers the same queries alike: random runs, random queries, followed to the end of their cursors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.harness import MS, SECOND, T0, Harness, StoreByOtlp, make_run, running
from conformance.jaeger import jaeger_by_otlp
from conformance.remote import tempo_by_otlp
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Cursor, RunQuery, TraceReader
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES

RUNS = 600
QUERIES = 300
SEED = 20261128
DAY = 86_400 * SECOND
MODELS = ("small", "large")

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(2400)]


def random_runs(chance: random.Random) -> list[Run]:
    """Return runs of a few workflows and all statuses over ten days, some at the same moment, some without times."""
    runs = []
    for number in range(RUNS):
        at = T0 + chance.choice([chance.randrange(10 * DAY) // MS * MS, chance.randrange(20) * SECOND])
        status = chance.choice(RUN_STATUSES)
        members = {"workflowId": chance.choice(["wf_a", "wf_b", f"wf_{number % 7}", "wf " + "x" * 600, ...])}
        members["triggerType"] = chance.choice(["webhook", "manual", "t" * 600, ...])
        members["durationMs"] = chance.choice([1000, 60_000, 60_000.5, ...])
        if chance.random() < 0.1:
            members["error"] = {"code": "E", "message": "m" * chance.choice([10, 5000])}
        if chance.random() < 0.05:
            members["startedAt"] = chance.choice([None, ..., "9999-12-31T00:00:00Z", "0001-01-01T00:00:00Z"])
        make = make_run if status in TERMINAL_RUN_STATUSES else running
        run = make(f"run-{number:03}", at, **{"status": status} | members).to_dict()
        if chance.random() < 0.3:
            usage = {"model": chance.choice(MODELS), "promptTokens": 5, "estimatedCostUsd": 0.5}
            run["steps"][0] |= {"type": "agent", "output": {"usage": usage}}
        runs.append(Run.from_dict(run))
    return runs


def random_query(chance: random.Random, tenant: str) -> RunQuery:
    """Return a query with any combination of filters."""
    since = chance.choice([None, T0 + chance.randrange(10 * DAY)])
    several = tuple(chance.sample(RUN_STATUSES, 2))
    is_by_end = chance.random() < 0.2
    ended_since = T0 + chance.randrange(10 * DAY) if is_by_end else None
    return RunQuery(
        tenant=tenant,
        workflow_id=chance.choice([None, None, "wf_a", "wf_3", "wf " + "x" * 600, "wf_absent"]),
        status=chance.choice([None, *TERMINAL_RUN_STATUSES] if is_by_end else [None, None, several, *RUN_STATUSES]),
        since=since,
        until=chance.choice([None, None, (since or T0) + chance.randrange(1, 5 * DAY)]),
        ended_since=ended_since,
        ended_until=None if ended_since is None else chance.choice([None, ended_since + chance.randrange(1, 5 * DAY)]),
        limit=chance.choice([3, 7, 50, 200]),
        trigger=chance.choice([*[None] * 8, "webhook", "t" * 600]),
        error_code=chance.choice([*[None] * 8, "E", "absent"]),
        min_duration=chance.choice([*[None] * 8, 60 * SECOND, 60 * SECOND + 1]),
        model=chance.choice([*[None] * 8, *MODELS]),
        step_type=chance.choice([*[None] * 8, "agent", "action"]),
        cursor=chance.choice([None, None, None, Cursor(T0 + chance.randrange(10 * DAY), "run-300")]),
    )


def items(reader: TraceReader, query: RunQuery) -> list[bytes]:
    """Return the items of all pages."""
    found: list[bytes] = []
    while True:
        page = reader.search(query)
        found += page.items
        assert not page.partial
        if page.cursor is None:
            return found
        query = replace(query, cursor=page.cursor)


@pytest.fixture
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Harness]]:
    """All backends at once, the embedded store first."""
    with SqliteStore(tmp_path, index=True) as store:
        remote = {
            "tempo": tempo_by_otlp(request.getfixturevalue("tempo")),
            "jaeger-memory": jaeger_by_otlp(request.getfixturevalue("jaeger_memory")),
            "jaeger-badger": jaeger_by_otlp(request.getfixturevalue("jaeger_badger")),
        }
        yield {"store": StoreByOtlp(store), **remote}
        for harness in remote.values():
            harness.close()


def test_all_backends_answer_alike(backends: dict[str, Harness], tenant: str) -> None:
    """The same ids and summaries in the same order, for every query."""
    chance = random.Random(SEED)
    runs = random_runs(chance)
    queries = [random_query(chance, tenant) for _ in range(QUERIES)]
    expected: list[list[bytes]] = []
    for name, harness in backends.items():
        harness.send(*runs, tenant=tenant, observed_at=T0 + 11 * DAY)
        answers = [items(harness.reader, query) for query in queries]
        expected = expected or answers
        for query, answer, wanted in zip(queries, answers, expected, strict=True):
            assert answer == wanted, (name, query)
    assert len(expected[0]) + len(expected[1]) + len(expected[2]) > 0
