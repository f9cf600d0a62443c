"""Statistics of the embedded store, compared with what is counted from the documents."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest

from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.index import stats, stats_reader
from runspan.codec.facts import RunFacts, run_facts
from runspan.contracts import StatsDimension, StatsGroup, StatsQuery
from runspan.errors import QueryError, QueryUnsupported
from runspan.model.document import Run
from runspan.model.timestamps import SECOND, parse_ns, rfc3339
from runspan.testing import generate

HOUR: Final = 3600 * SECOND
COUNT: Final = 300
RUNS: Final = [Run.from_json(document) for document in islice(generate(COUNT, seed=5, unfinished=True), COUNT)]
FACTS: Final = [run_facts(run) for run in RUNS]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """Yield a store with the runs, every third of another tenant."""
    with SqliteStore(tmp_path_factory.mktemp("store"), index=True) as store:
        for number, run in enumerate(RUNS):
            store.put(run, tenant=tenant_of(number), observed_at=FACTS[number].time)
        yield store


def tenant_of(number: int) -> str:
    return "" if number % 3 else "acme"


def chosen(tenant: str, keep: Callable[[RunFacts], bool] = lambda facts: True) -> list[RunFacts]:
    return [facts for number, facts in enumerate(FACTS) if tenant_of(number) == tenant and keep(facts)]


def at(text: str) -> int:
    return parse_ns(text) or 0


def groups(store: SqliteStore, *by: StatsDimension, **query: Any) -> list[StatsGroup]:
    page = store.run_stats(StatsQuery(group_by=by, **{"limit": 1000} | query))
    assert page.partial == ()
    return list(page.groups)


def nearest_rank(values: list[int], percent: int) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] / 10**6


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_workflows_have_the_numbers_of_their_runs(filled: SqliteStore, tenant: str) -> None:
    by_workflow = defaultdict(list)
    for facts in chosen(tenant):
        by_workflow[facts.workflow_id].append(facts)
    found = {group.workflow_id: group for group in groups(filled, "workflow", tenant=tenant)}
    assert found.keys() == by_workflow.keys()
    for workflow_id, runs in by_workflow.items():
        group: Any = found[workflow_id]
        assert group.statuses == Counter(facts.status for facts in runs)
        assert group.runs == len(runs)
        uses = [use for facts in runs for use in facts.models]
        assert group.usage.steps == sum(use.steps for use in uses)
        assert group.usage.cost_usd == sum(use.cost for use in uses) / 10**9
        durations = [facts.duration for facts in runs if facts.ended is not None and facts.duration is not None]
        assert group.duration_ms.count == len(durations)
        assert group.duration_ms.mean == pytest.approx(sum(durations) / len(durations) / 10**6, rel=1e-12)
        assert group.duration_ms.p50 == pytest.approx(nearest_rank(durations, 50), rel=0.01)
        assert group.duration_ms.p95 == pytest.approx(nearest_rank(durations, 95), rel=0.01)
        failed = [facts for facts in runs if facts.status in ("failed", "timed_out")]
        newest = max((facts.time for facts in failed), default=None)
        assert (group.newest_failure and at(group.newest_failure.time)) == newest


def test_a_workflow_alone(filled: SqliteStore) -> None:
    workflow_id = RUNS[1].workflow_id
    [group] = groups(filled, workflow_id=workflow_id)
    assert group.runs == len(chosen("", lambda facts: facts.workflow_id == workflow_id))
    assert groups(filled, workflow_id="none") == []


def test_steps(filled: SqliteStore) -> None:
    expected: Counter[Any] = Counter()
    for facts in chosen(""):
        for step in facts.steps:
            if step.status not in ("skipped", "pending"):
                expected[step.name, step.type, "executions"] += 1
                expected[step.name, step.type, "failed"] += step.status == "failed"
                expected[step.name, step.type, "timed"] += step.duration is not None
    found: Counter[Any] = Counter()
    for group in groups(filled, "step"):
        found[group.step, group.step_type, "executions"] = group.executions
        found[group.step, group.step_type, "failed"] = group.failed
        found[group.step, group.step_type, "timed"] = group.duration_ms.count  # type: ignore[union-attr]
    assert +found == +expected


def test_errors_lead_to_their_newest_run(filled: SqliteStore) -> None:
    expected = defaultdict(list)
    for facts in chosen("", lambda facts: facts.status in ("failed", "timed_out")):
        expected[facts.workflow_id, facts.error_code or "", facts.failed_step or ""].append(facts.time)
    found = groups(filled, "workflow", "error")
    assert {(group.workflow_id, group.error_code, group.failed_step): group.runs for group in found} == {
        key: len(times) for key, times in expected.items()
    }
    for group in found:
        newest: Any = group.newest_failure
        assert at(newest.time) == max(expected[group.workflow_id, group.error_code, group.failed_step])
        document = Run.from_json(filled.document(newest.id).text)
        assert newest.error_message in document.text.decode()


def test_each_failure_of_an_hour_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many errors share the hour."""
    read: list[object] = []
    labels = stats.error_labels
    with SqliteStore(tmp_path, index=True) as store:
        for number in range(60):
            time = f"2026-10-01T00:00:{number:02}Z"
            document = {"id": f"r{number}", "status": "failed", "startedAt": time, "error": {"code": f"E{number}"}}
            store.put(Run.from_dict(document), observed_at=at(time))
        assert store._index.catch_up(60) == 0
        monkeypatch.setattr(stats, "error_labels", lambda facts: (read.append(facts), labels(facts))[1])
        found = groups(store, "error")
    assert {(group.error_code, group.newest_failure.id) for group in found} == {  # type: ignore[union-attr]
        (f"E{number}", f"r{number}") for number in range(60)
    }
    assert len(read) == 60


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata"])
def test_days_are_those_of_a_time_zone(filled: SqliteStore, zone: str) -> None:
    """Each run counts in the day of its hour; where midnight is within an hour, this hour is the first of the day."""
    shift = 30 * 60 * SECOND if zone == "Asia/Kolkata" else 0
    expected: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for facts in chosen(""):
        hour = facts.time // HOUR * HOUR
        day = f"{datetime.fromtimestamp((hour + shift) // SECOND, ZoneInfo(zone)):%F}"
        expected[day] += 1
        spent.update({day: facts.cost} if facts.cost else {})
    range_ = {"since": at("2026-09-30T00:00:00Z"), "until": at("2027-01-02T00:00:00Z"), "time_zone": zone}
    found = groups(filled, "day", **range_)
    starts = [at(str(group.from_)) for group in found]
    days = [f"{datetime.fromtimestamp((start + shift) // SECOND, ZoneInfo(zone)):%F}" for start in starts]
    assert {day: group.runs for day, group in zip(days, found, strict=True)} == expected
    assert starts == sorted(starts)
    costs: Counter[str] = Counter()
    for group in groups(filled, "day", "model", **range_):
        day = f"{datetime.fromtimestamp((at(str(group.from_)) + shift) // SECOND, ZoneInfo(zone)):%F}"
        costs[day] += round(group.usage.cost_usd * 10**9)  # type: ignore[union-attr]
    assert +costs == +spent


def test_hours_and_ranges(filled: SqliteStore) -> None:
    """A range is widened to whole hours, as the answer says."""
    since, until = at("2026-11-03T07:30:00Z"), at("2026-11-05T07:00:00.000000001Z")
    page = filled.run_stats(StatsQuery(since=since, until=until, group_by=("hour",), limit=1000))
    assert (page.since, page.until) == (at("2026-11-03T07:00:00Z"), at("2026-11-05T08:00:00Z"))
    inside = chosen("", lambda facts: page.since <= facts.time < page.until)  # type: ignore[operator]
    assert {str(group.from_): group.runs for group in page.groups} == Counter(
        rfc3339(facts.time // HOUR * HOUR) for facts in inside
    )
    [group] = groups(filled, since=since, until=until)
    assert group.runs == len(inside)


def test_the_largest_groups_come_first(filled: SqliteStore) -> None:
    everything = groups(filled, "workflow")
    page = filled.run_stats(StatsQuery(group_by=("workflow",), limit=3))
    assert page.has_more
    assert page.groups == everything[:3]
    counts = [group.runs for group in everything]
    assert counts == sorted(counts, reverse=True)  # type: ignore[type-var]


def test_corrections_and_deletions_count(tmp_path: Path) -> None:
    with SqliteStore(tmp_path, index=True) as store:
        members = {"id": "run", "workflowId": None, "startedAt": "2026-11-27T09:00:00Z", "steps": []}
        for status in ("running", "failed", "completed"):
            run = Run.from_dict({**members, "status": status})
            store.put(run, observed_at=at("2026-11-27T09:10:00Z"))
            [group] = groups(store, "workflow")
            assert (group.workflow_id, group.statuses) == (None, {status: 1})
        store.purge([(sha256(run.text).digest(), "run")])
        assert groups(store, "workflow") == []


def test_what_cannot_be_answered_is_refused(filled: SqliteStore, tmp_path: Path) -> None:
    for by, query in [
        (("day", "hour"), {"since": 1, "until": 2}),
        (("model", "step"), {}),
        (("day",), {}),
        (("colour",), {}),
        ((), {"since": 2, "until": 2}),
        (("hour",), {"since": 0, "until": 1000 * HOUR}),
        (("day",), {"since": 0, "until": 10**18}),
        *((("day",), {"since": 0, "until": HOUR, "time_zone": zone}) for zone in ("Mars/Base", "../etc", "", "Europe")),
    ]:
        with pytest.raises(QueryError):
            filled.run_stats(StatsQuery(group_by=by, **query))  # type: ignore[arg-type]
    with SqliteStore(tmp_path, index=False) as store, pytest.raises(QueryUnsupported):
        store.run_stats(StatsQuery())


def test_failures_of_an_hour_are_read_by_their_time(filled: SqliteStore) -> None:
    """Not by all runs of the tenant, which take a hundred times as long in a large store."""
    with filled._index.connection() as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {stats_reader._FAILURES}", (0, 1, 1, 1, 2)).fetchall()
    assert "indexed_runs USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in str(plan)
