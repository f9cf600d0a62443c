"""Section ``questions``: what people ask of many runs, over the embedded store with its index, against its plain list.

Calls in this process, without HTTP. The goal is 200 ms, whatever the list takes, so it is held by milliseconds.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median

from bench.data import seed
from bench.figures import Figure, at_most, ratio
from bench.plan import Plan
from bench.store import Shelf
from runspan.contracts import RunQuery, StatsDimension, StatsQuery

_SECTION = 9
_LIST = "list of 50"
_WEEK = 7 * 86_400 * 10**9
_COMMON = "invoice"
"""A text that most runs contain."""


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    size = plan.runs or (5_000 if plan.quick else 1_000_000 if plan.full else 100_000)
    begun = time.perf_counter()
    shelf = Shelf(plan.folder / "questions", size, seed(_SECTION, 0), index=True)
    with shelf.store:
        while shelf.store.search(RunQuery(order="duration", limit=1)).partial:
            pass
        plan.say(f"store of {size:,} runs filled and indexed in {time.perf_counter() - begun:.0f} s")
        return _figures(plan, shelf)


def _figures(plan: Plan, shelf: Shelf) -> list[Figure]:
    samples: dict[str, list[float]] = defaultdict(list)
    for turn in range(plan.rounds or (3 if plan.quick else 5)):
        times: dict[str, list[float]] = defaultdict(list)
        choose = random.Random(turn)
        for _ in range(5 if plan.quick else 20):
            for name, ask in _questions(shelf, choose):
                begun = time.perf_counter()
                ask()
                times[name].append(time.perf_counter() - begun)
        for name, each in times.items():
            samples[name].append(median(each))
    figures = []
    for name, each in samples.items():
        milliseconds = min(each) * 1e3
        if name != _LIST:
            note = f"{milliseconds:.1f} ms; the goal is 200 ms"
            goal = at_most(0.2 / min(samples[_LIST]))
            at = f"{name} p50 / {_LIST}, {shelf.size:,} runs"
            figures.append(Figure("questions", at, *ratio(each, samples[_LIST]), goal=goal, note=note))
        plan.say(f"questions {name} at {shelf.size:,} runs: {milliseconds:.1f} ms")
    return figures


def _questions(shelf: Shelf, choose: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    search, newest = shelf.store.search, shelf.newest
    run_id = choose.choice(shelf.ids)
    yield _LIST, lambda: search(RunQuery())
    yield "by trigger", lambda: search(RunQuery(trigger="webhook"))
    yield "by error code", lambda: search(RunQuery(error_code="RATE_LIMITED"))
    yield "by model", lambda: search(RunQuery(model="gpt-5-mini"))
    yield "by step type", lambda: search(RunQuery(step_type="stripe", status="failed"))
    yield "longer than an hour", lambda: search(RunQuery(min_duration=3600 * 10**9))
    yield "by cost", lambda: search(RunQuery(order="cost"))
    yield "longest of a week", lambda: search(RunQuery(order="duration", since=newest - _WEEK))
    yield "search, one run", lambda: search(RunQuery(text=run_id[-10:]))
    yield "search, most runs", lambda: search(RunQuery(text=_COMMON))
    yield "search, none", lambda: search(RunQuery(text="no such text"))
    yield "pages of workflows", lambda: _ask(shelf, None, [("workflow",), ("workflow", "day"), ("model",)])
    by: list[tuple[StatsDimension, ...]] = [(), ("day",), ("step",), ("error",), ("day", "model")]
    yield "page of a workflow", lambda: _ask(shelf, "wf_lead_enrichment", by)


def _ask(shelf: Shelf, workflow_id: str | None, groups: list[tuple[StatsDimension, ...]]) -> None:
    """Ask what a page shows of the newest 30 days."""
    since, until = shelf.newest - 30 * 86_400 * 10**9, shelf.newest
    for by in groups:
        shelf.store.run_stats(StatsQuery(workflow_id=workflow_id, since=since, until=until, group_by=by, limit=500))
