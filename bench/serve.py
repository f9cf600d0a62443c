"""Section ``serve``: requests a second of the API against a bare Flask hello on the same server class."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import seed
from bench.figures import Figure, Goal, at_least, ratio
from bench.machine import cpus
from bench.plan import Plan
from bench.processes import helper, worker
from bench.store import bodies, write_all
from runspan.backends.sqlite import SqliteStore
from runspan.model.document import Run
from runspan.testing import generate

_SECTION = 4


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    runs = plan.runs or (2000 if plan.quick else 20_000)
    rounds = plan.rounds or (5 if plan.quick else 30)
    documents = [Run.from_json(text) for text in generate(runs, seed=seed(_SECTION, 0))]
    with SqliteStore(plan.folder) as store:
        write_all(store, bodies(documents))
    mine, other = cpus()
    gets = [f"/api/v1/runs/{run.id}" for run in documents[:: max(1, runs // 500)]]
    with ExitStack() as stack:
        hello = stack.enter_context(helper("bench.server", app="hello", cpu=mine))
        data = str(plan.folder)
        opened = stack.enter_context(helper("bench.server", app="runspan", data=data, cpu=mine))
        keyed = stack.enter_context(helper("bench.server", app="runspan", data=data, keyed=True, cpu=mine))
        header = f"x-api-key: {keyed['key']}\r\n"
        contestants = {
            "hello": {**hello, "paths": ["/"]},
            "get": {**opened, "paths": gets},
            "list": {**opened, "paths": ["/api/v1/runs?limit=50"]},
            "get, with a key": {**keyed, "paths": gets, "header": header},
            "list, with a key": {**keyed, "paths": ["/api/v1/runs?limit=50"], "header": header},
        }
        options = {
            "contestants": contestants,
            "rounds": rounds,
            "connections": 8,
            "requests": min(300 if plan.quick else 1000, 10 * runs),
            "cpu": other,
        }
        samples = worker("bench.load", options)
    for name, each in samples.items():
        wall, cpu = (min(values) * 1e6 for values in zip(*each, strict=True))
        plan.say(f"serve {name}: {wall:.0f} µs a request, {cpu:.0f} µs of processor time")
    goals = {name: at_least(0.9 if name.startswith("get") else 0.4) for name in contestants if name != "hello"}
    return [_figure(samples, name, goal) for name, goal in goals.items()]


def _figure(samples: dict[str, list[list[float]]], name: str, goal: Goal) -> Figure:
    hello_wall, hello_cpu = zip(*samples["hello"], strict=True)
    wall, cpu = zip(*samples[name], strict=True)
    value, low, high = ratio(hello_wall, wall)
    # Processor time is counted in ticks, so only the sum over all rounds is precise enough.
    by_cpu = sum(hello_cpu) / sum(cpu) if sum(cpu) else None
    note = "50 summaries" if name.startswith("list") else "complete documents"
    return Figure("serve", f"rate of {name} / Flask hello", value, low, high, by_cpu, goal=goal, note=note)
