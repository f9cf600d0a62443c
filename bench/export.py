"""Section ``export``: an NDJSON file to acknowledged OTLP/HTTP requests on one core, against the stock SDK."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.data import seed, write_ndjson
from bench.figures import Figure, Goal, at_least, at_most, ratio, take_turns
from bench.machine import cpus
from bench.plan import Plan
from bench.processes import helper, worker

_SECTION = 1
_WARM_RUNS = 200


def counts(port: int) -> dict[str, int]:
    """Return what the sink has received since the last call."""
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", "/")
    found: dict[str, int] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    return [*_ratios(plan), *_losses(plan)]


def _ratios(plan: Plan) -> list[Figure]:
    runs = plan.runs or (1000 if plan.quick else 4000)
    rounds = plan.rounds or (3 if plan.quick else 5)
    mine, other = cpus()
    warm = write_ndjson(plan.folder / "warm.ndjson", min(runs, _WARM_RUNS), seed(_SECTION, 999))
    files: dict[int, Path] = {}

    def file(turn: int) -> Path:
        if turn not in files:
            files[turn] = write_ndjson(plan.folder / f"export-{turn}.ndjson", runs, seed(_SECTION, turn))
        return files[turn]

    with helper("bench.sink", cpu=other) as sink:
        url = f"http://127.0.0.1:{sink['port']}/v1/traces"

        def contestant(name: str) -> Callable[[int], dict[str, float]]:
            def sample(turn: int) -> dict[str, float]:
                options = {"contestant": name, "url": url, "file": str(file(turn)), "cpu": mine}
                counts(sink["port"])
                result = worker("bench.senders", {**options, "warm": str(warm)})
                got = counts(sink["port"])["spans"]
                plan.say(f"export round {turn + 1} {name}: {result['wall'] / runs * 1e6:.0f} µs a run")
                return {**result, "lost": result["spans"] + result["warm_spans"] - got}

            return sample

        names = ("stock", "ours", "stock gzip", "ours gzip", "floor")
        samples = take_turns({name: contestant(name) for name in names}, rounds)
    for name, each in samples.items():
        if any(sample["lost"] for sample in each):
            raise RuntimeError(f"{name} lost spans: {each}")
    return [
        _figure(samples, "stock / ours", "stock", "ours", at_least(18)),
        _figure(samples, "stock gzip / ours gzip", "stock gzip", "ours gzip", at_least(18)),
        _figure(samples, "ours gzip / ours", "ours gzip", "ours"),
        _figure(samples, "stock / floor", "stock", "floor", note="typed parse, and ready bytes sent"),
        _figure(samples, "ours / floor", "ours", "floor"),
    ]


def _figure(
    samples: dict[str, list[Any]], name: str, over: str, under: str, goal: Goal | None = None, note: str = ""
) -> Figure:
    value, low, high = ratio([s["wall"] for s in samples[over]], [s["wall"] for s in samples[under]])
    cpu, _, _ = ratio([s["cpu"] for s in samples[over]], [s["cpu"] for s in samples[under]])
    return Figure("export", name, value, low, high, cpu, goal=goal, note=note)


def _losses(plan: Plan) -> list[Figure]:
    """Measure the spans that are lost if the receiver takes 50 ms to respond."""
    runs = plan.runs or (1000 if plan.quick else 4000)
    file = write_ndjson(plan.folder / "loss.ndjson", runs, seed(_SECTION, 500))
    figures = []
    with helper("bench.sink", delay=0.05) as sink:
        url = f"http://127.0.0.1:{sink['port']}/v1/traces"
        for name, shown in (("stock default queue", "stock, default queue"), ("ours gzip", "ours")):
            made = worker("bench.senders", {"contestant": name, "url": url, "file": str(file)})["spans"]
            lost = 100 * (made - counts(sink["port"])["spans"]) / made
            goal = at_most(0) if name.startswith("ours") else None
            note = f"{made} spans against a sink that responds after 50 ms"
            figures.append(Figure("export", f"spans lost, {shown}", lost, unit="%", goal=goal, note=note))
    return figures
