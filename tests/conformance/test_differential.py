"""Every backend answers the same queries alike: random runs, random queries, followed to the end of their cursors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from conformance.harness import MS, SECOND, T0, Harness, StoreByOtlp, make_run, running
from conformance.jaeger import jaeger_by_otlp
from conformance.opensearch import jaeger_on_opensearch_with_defaults
from conformance.remote import tempo_by_otlp
from conformance.sending import ByOtlp
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.tempo import search
from runspan.contracts import Cursor, RunQuery, TraceReader
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES

RUNS = 600
QUERIES = 300
SEED = 20261128
DAY = 86_400 * SECOND
START = time.time_ns() // DAY * DAY - 20 * DAY + T0 % DAY
"""Of the first runs. Lately, because Jaeger on OpenSearch names every day since then in each search and each read."""

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]


def random_runs(chance: random.Random) -> list[Run]:
    """Return runs of a few workflows and all statuses over ten days, some at the same moment, some without times."""
    runs = []
    for number in range(RUNS):
        at = START + chance.choice([chance.randrange(10 * DAY) // MS * MS, chance.randrange(20) * SECOND])
        status = chance.choice(RUN_STATUSES)
        members = {"workflowId": chance.choice(["wf_a", "wf_b", f"wf_{number % 7}", "wf " + "x" * 600, ...])}
        if chance.random() < 0.1:
            members["error"] = {"code": "E", "message": "m" * chance.choice([10, 5000])}
        if chance.random() < 0.05:
            members["startedAt"] = chance.choice([None, ..., "9999-12-31T00:00:00Z", "0001-01-01T00:00:00Z"])
        if chance.random() < 0.3:
            members["triggerType"] = chance.choice(["cron", "api", "t" * 600, None, ...])
        if chance.random() < 0.3:
            members["durationMs"] = chance.choice([0, 1500, 2500.5, 90_000, -1, None, ...])
        if chance.random() < 0.5:
            members["steps"] = [random_step(chance, number) for number in range(chance.randrange(4))]
        make = make_run if status in TERMINAL_RUN_STATUSES else running
        runs.append(make(f"run-{number:03}", at, **{"status": status} | members))
    return runs


def random_step(chance: random.Random, number: int) -> dict[str, Any]:
    """Return a step of one of a few types, which may have used a model, and may not have ended."""
    kind = chance.choice(["agent", "action", "approval", "k" * 600])
    usage = {"model": chance.choice(["m-1", "m-2", "M-1"]), "promptTokens": 3, "completionTokens": 1}
    return {
        "id": f"s{number}",
        "name": chance.choice(["Fetch", "cus_4711", "n" * 510 + "cus_4711"]),
        "type": kind,
        "status": chance.choice(["completed", "completed", "failed", "running"]),
        "input": chance.choice([{"customer": "CUS_4711"}, {"customer": "cus_4712"}, None]),
        "output": chance.choice([{"usage": usage}, "Straße", "text"]),
    }


def random_query(chance: random.Random, tenant: str) -> RunQuery:
    """Return a query with any combination of filters."""
    since = chance.choice([None, START + chance.randrange(10 * DAY)])
    several = tuple(chance.sample(RUN_STATUSES, 2))
    is_by_end = chance.random() < 0.2
    ended_since = START + chance.randrange(10 * DAY) if is_by_end else None
    return RunQuery(
        tenant=tenant,
        workflow_id=chance.choice([None, None, "wf_a", "wf_3", "wf " + "x" * 600, "wf_absent"]),
        status=chance.choice([None, *TERMINAL_RUN_STATUSES] if is_by_end else [None, None, several, *RUN_STATUSES]),
        since=since,
        until=chance.choice([None, None, (since or START) + chance.randrange(1, 5 * DAY)]),
        ended_since=ended_since,
        ended_until=None if ended_since is None else chance.choice([None, ended_since + chance.randrange(1, 5 * DAY)]),
        limit=chance.choice([3, 7, 50, 200]),
        cursor=chance.choice([None, None, None, Cursor(START + chance.randrange(10 * DAY), "run-300")]),
        **random_filters(chance),
    )


def random_filters(chance: random.Random) -> dict[str, Any]:
    """Return no filter, one or two, for triggers, errors, durations, steps and texts."""
    values = {
        "trigger": ["cron", "webhook", "t" * 600, "none"],
        "error_code": ["E", "none"],
        "min_duration": [0, SECOND, 2500 * MS, 60 * SECOND],
        "model": ["m-1", "m-2", "m-3"],
        "step_type": ["agent", "approval", "k" * 600, "none"],
        "text": ["cus_4711", "CUS_471", "strasse", "run-01", "wf_3", "none"],
    }
    names = chance.sample(list(values), chance.choice([0, 0, 1, 1, 2]))
    return {name: chance.choice(values[name]) for name in names}


def items(reader: TraceReader, query: RunQuery) -> list[bytes]:
    """Return the items of all pages. On a busy machine a list that reads all runs is in more of them."""
    found: list[bytes] = []
    while True:
        page = reader.search(query)
        found += page.items
        assert all(note.endswith(("were not searched", "continues there")) for note in page.partial), page.partial
        if page.cursor is None:
            return found
        query = replace(query, cursor=page.cursor)


HARNESSES: Final[dict[str, Callable[[Any], ByOtlp]]] = {
    "tempo": tempo_by_otlp,
    "jaeger_memory": jaeger_by_otlp,
    "jaeger_badger": jaeger_by_otlp,
    "jaeger_opensearch_90_days": partial(jaeger_on_opensearch_with_defaults, RUNSPAN_BACKEND_TIMEOUT="60"),
}


@pytest.fixture(params=[("tempo", "jaeger_memory", "jaeger_badger"), ("jaeger_opensearch_90_days",)], ids="-".join)
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Harness]]:
    """Several backends at once, the embedded store first."""
    with SqliteStore(tmp_path, index=True) as store:
        remote = {name: HARNESSES[name](request.getfixturevalue(name)) for name in request.param}
        yield {"store": StoreByOtlp(store), **remote}
        for harness in remote.values():
            harness.close()


def test_all_backends_answer_alike(backends: dict[str, Harness], tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ids and summaries in the same order, for every query."""
    chance = random.Random(SEED)
    runs = random_runs(chance)
    queries = [random_query(chance, tenant) for _ in range(QUERIES)]
    expected: list[list[bytes]] = []
    for name, harness in backends.items():
        harness.send(*runs, tenant=tenant, observed_at=START + 11 * DAY)
        answers = []
        for number, query in enumerate(queries):
            # As if the runs of every second list were rare.
            monkeypatch.setattr(search, "_MAX_CHECKED", 20 * (number % 2))
            answers.append(items(harness.reader, query))
        expected = expected or answers
        for query, answer, wanted in zip(queries, answers, expected, strict=True):
            assert answer == wanted, (name, query)
    assert len(expected[0]) + len(expected[1]) + len(expected[2]) > 0
