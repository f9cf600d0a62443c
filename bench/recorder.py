"""Section ``recorder``: what the Recorder costs a live engine per step, against plain spans of the SDK.

The engine does nothing but record steps, so a run of ten is over in a millisecond or two: the hardest case. Both
sides put the same input and output on each step and lose nothing; the Recorder writes snapshots and the exact document
besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bench.figures import Figure, Goal, at_most, ratio, take_turns
from bench.machine import cpus
from bench.plan import Plan
from bench.processes import helper, worker

_STEPS: Final = 10
_LONG_STEPS: Final = 1000
_SLOW_STEPS: Final = 600
_SLOW_GAP: Final = 0.005


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    runs = plan.runs or (400 if plan.quick else 2000)
    rounds = plan.rounds or (3 if plan.quick else 7)
    mine, other = cpus()
    with helper("bench.sink", cpu=other, count_now=True) as sink:
        url = f"http://127.0.0.1:{sink['port']}/v1/traces"

        def contestant(name: str, runs: int, steps: int, gap: float = 0.0) -> Callable[[int], dict[str, float]]:
            def sample(turn: int) -> dict[str, float]:
                options = {"contestant": name, "url": url, "runs": runs, "steps": steps, "gap": gap, "cpu": mine}
                result = worker("bench.engines", options)
                each = {key: result[key] / result["steps"] * 1e6 for key in ("engine", "cpu", "wall")}
                plan.say(f"recorder round {turn + 1} {name}, {steps} steps a run, µs a step: {_shown(each)}")
                return each

            return sample

        short = {name: contestant(name, runs, _STEPS) for name in ("sdk", "recorder", "through")}
        long_runs = max(1, runs * _STEPS // _LONG_STEPS)
        long = {name: contestant(name, long_runs, _LONG_STEPS) for name in ("sdk", "recorder")}
        samples = take_turns(short, rounds)
        long_samples = take_turns(long, rounds)
        slow = {name: contestant(name, 1, _SLOW_STEPS, _SLOW_GAP) for name in ("sdk", "recorder")}
        slow_samples = take_turns(slow, min(rounds, 3))
    thread = "processor time of the engine's own thread, per step"
    return [
        _figure("engine's thread, recorder / SDK", samples, "recorder", "engine", at_most(1), thread),
        _figure("all threads until delivered, recorder / SDK", samples, "recorder", "cpu", at_most(1)),
        _figure("all threads, recorder through a provider / SDK", samples, "through", "cpu"),
        _figure("engine's thread at 1000 steps a run, recorder / SDK", long_samples, "recorder", "engine", at_most(1)),
        _figure("all threads at 1000 steps a run, recorder / SDK", long_samples, "recorder", "cpu", at_most(1)),
        _figure(
            "all threads, a run of some seconds, recorder / SDK",
            slow_samples,
            "recorder",
            "cpu",
            at_most(2),
            f"{_SLOW_STEPS} steps, {_SLOW_GAP * 1000:g} ms apart: some forty snapshots",
        ),
        Figure(
            "recorder",
            "engine's thread per step",
            min(sample["engine"] for sample in samples["recorder"]),
            unit="µs",
            note="absolute, of this machine",
        ),
    ]


def _figure(
    name: str, samples: dict[str, list[Any]], over: str, what: str, goal: Goal | None = None, note: str = ""
) -> Figure:
    value, low, high = ratio([s[what] for s in samples[over]], [s[what] for s in samples["sdk"]])
    return Figure("recorder", name, value, low, high, goal=goal, note=note)


def _shown(each: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in each.items())
