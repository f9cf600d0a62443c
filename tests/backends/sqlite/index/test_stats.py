"""The sums of the index: whatever happens to runs, they are those of the documents that are there."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from runspan.backends.sqlite.index import stats
from runspan.codec.facts import run_facts
from runspan.model.document import Run
from runspan.model.timestamps import SECOND, canonical_text
from runspan.storage.sqlite_file import read_statements

T0: Final = 1_790_000_000 * SECOND
TABLES: Final = {"run_sums": 1, "duration_sums": 1, "model_sums": 1, "step_sums": 2, "error_sums": 2}
"""The labels of a row by table."""

Document = dict[str, Any]


@contextmanager
def opened() -> Iterator[sqlite3.Connection]:
    """Yield a database with the tables of sums."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in read_statements(stats.__package__ or "", "stats.sql"):
            connection.execute(statement)
        yield connection


def sums_in(connection: sqlite3.Connection) -> Counter[Any]:
    """Return every sum by its place: table, tenant, workflow, hours, first hour, labels and column."""
    found: Counter[Any] = Counter()
    for table, labels in TABLES.items():
        rows = connection.execute(f"SELECT tenant, workflow_id, t.* FROM {table} t JOIN series ON id = series")
        for tenant, workflow_id, _, *row in rows:
            key = (table, tenant, workflow_id, *row[: 2 + labels])
            found.update({(*key, column): number for column, number in enumerate(row[2 + labels :]) if number})
            assert row[2 + labels] > 0
    return found


def sums_of(documents: Iterable[tuple[str, Document]]) -> Counter[Any]:
    """Return what the sums have to be, counted one by one from the documents."""
    found: Counter[Any] = Counter()
    for tenant, document in documents:
        hour = int(document["at"] // 3600)
        workflow_id = document["workflowId"].encode() if "workflowId" in document else None
        status = document["status"] if document["status"] != "odd" else "other"
        ended = status in ("completed", "failed", "cancelled", "timed_out")
        for span in (1, 24, 768):
            cell = tenant.encode(), workflow_id, span, hour // span * span
            milliseconds = document.get("durationMs")
            key = ("run_sums", *cell, status.encode())
            found[*key, 0] += 1
            if ended and milliseconds is not None:
                found[*key, 1] += 1
                found[*key, 2] += milliseconds * 1000
                found["duration_sums", *cell, stats.bucket_of(milliseconds * 1_000_000), 0] += 1
            if status in ("failed", "timed_out"):
                failed = next((step["name"] for step in document["steps"] if step["status"] == "failed"), "")
                code = (document.get("error") or {}).get("code", "")
                found["error_sums", *cell, code.encode(), failed.encode(), 0] += 1
            for step in document["steps"]:
                if step["status"] != "skipped":
                    key = ("step_sums", *cell, step["name"].encode(), step["type"].encode())
                    found[*key, 0] += 1
                    found[*key, 1] += step["status"] == "failed"
                    if "durationMs" in step:
                        found[*key, 2] += 1
                        found[*key, 3] += step["durationMs"] * 1000
                usage = (step.get("output") or {}).get("usage")
                if usage and step["type"] == "agent":
                    key = ("model_sums", *cell, usage["model"].encode())
                    found[*key, 0] += 1
                    found[*key, 1] += usage["promptTokens"]
                    found[*key, 2] += usage["completionTokens"]
                    found[*key, 3] += round(usage["estimatedCostUsd"] * 10**9)
    return +found


def facts_of(run_id: str, document: Document) -> Any:
    """Return the facts of a document of the test."""
    members = {name: value for name, value in document.items() if name != "at"}
    return run_facts(Run.from_dict({"id": run_id, "startedAt": canonical_text(document["at"] * SECOND), **members}))


milliseconds = st.integers(0, 10**7)
steps = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.just("step"),
            "name": st.sampled_from(["fetch", "Überweisen", "ask\0the model"]),
            "type": st.sampled_from(["http", "agent"]),
            "status": st.sampled_from(["completed", "failed", "skipped", "running"]),
        },
        optional={
            "durationMs": milliseconds,
            "output": st.fixed_dictionaries(
                {
                    "usage": st.fixed_dictionaries(
                        {
                            "model": st.sampled_from(["small", "large"]),
                            "promptTokens": st.integers(0, 10**6),
                            "completionTokens": st.integers(0, 10**6),
                            "estimatedCostUsd": st.integers(0, 10**9).map(lambda micros: micros / 10**6),
                        }
                    )
                }
            ),
        },
    ),
    max_size=4,
)
documents = st.fixed_dictionaries(
    {
        "at": st.integers(0, 40 * 24).map(lambda hours: T0 // SECOND + hours * 3600),
        "status": st.sampled_from(["completed", "failed", "timed_out", "cancelled", "running", "odd"]),
        "steps": steps,
    },
    optional={
        "workflowId": st.sampled_from(["", "billing", "wörk/flow"]),
        "durationMs": milliseconds,
        "error": st.sampled_from([{"code": "RATE_LIMITED"}, {"code": "TIMEOUT"}, None]),
    },
)
changes = st.lists(
    st.tuples(st.sampled_from(["", "acme"]), st.sampled_from(["run-1", "run-2", "run-3"]), documents | st.none()),
    max_size=12,
)
"""Tenant, run id, and its new document; None: it is deleted."""


@given(batches=st.lists(changes, max_size=3))
def test_sums_are_those_of_the_documents(batches: list[list[tuple[str, str, Document | None]]]) -> None:
    """After any puts, corrections and deletions, in any transactions, no sum is another, and no row is left over."""
    current: dict[tuple[str, str], Document] = {}
    with opened() as connection:

        def replace(tenant: str, run_id: str, new: Document | None) -> Iterator[tuple[str, Any, int]]:
            old = current.pop((tenant, run_id), None)
            if old is not None:
                yield tenant, facts_of(run_id, old), -1
            if new is not None:
                current[tenant, run_id] = new
                yield tenant, facts_of(run_id, new), 1

        for batch in batches:
            stats.apply(connection, chain.from_iterable(replace(*change) for change in batch))
            assert sums_in(connection) == sums_of((tenant, found) for (tenant, _), found in current.items())
        for change in [*current]:
            stats.apply(connection, replace(*change, None))
        assert [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("series", *TABLES)] == [[]] * 6


@given(st.integers(0, 10**18))
def test_buckets_are_close_to_their_durations(duration: int) -> None:
    """A percentile differs from the duration that it stands for by less than 1 %."""
    assert abs(stats.duration_of(stats.bucket_of(duration)) - duration) * 100 <= duration


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_buckets_are_in_the_order_of_durations(one: int, other: int) -> None:
    assert (stats.bucket_of(one) <= stats.bucket_of(other)) or one > other


def test_absurd_numbers_stop_nothing() -> None:
    """Sums that no 64 bits hold are bounded: a run with such numbers does not keep others from being counted."""
    usage = {"model": "m", "promptTokens": 10**12, "completionTokens": 10**12, "estimatedCostUsd": 10**6}
    step = {"id": "s", "type": "agent", "status": "completed", "durationMs": 10**12, "output": {"usage": usage}}
    document = {"at": T0 // SECOND, "status": "completed", "durationMs": 10**12, "steps": [step] * 20}
    with opened() as connection:
        facts = facts_of("run", document)
        for runs in (800, 800, 2_000):
            stats.apply(connection, [("", facts, 1)] * runs)
        rows = connection.execute("SELECT steps, cost FROM model_sums WHERE span = 1").fetchall()
    assert rows == [(72_000, 2**63 - 1)]
