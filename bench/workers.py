"""Section ``workers``: the command ``runspan export`` with one and with two workers, from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.data import seed, write_ndjson
from bench.export import counts
from bench.figures import Figure, at_least, ratio, take_turns
from bench.machine import cpus
from bench.plan import Plan
from bench.processes import environment, helper

_SECTION = 10


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    runs = plan.runs or (20_000 if plan.quick else 100_000)
    rounds = plan.rounds or (3 if plan.quick else 5)
    file = write_ndjson(plan.folder / "workers.ndjson", runs, seed(_SECTION, 0))
    first, _ = cpus()
    with helper("bench.sink") as sink:

        def contestant(name: str, workers: int, cpu: int | None = None) -> Callable[[int], tuple[float, float]]:
            def sample(turn: int) -> tuple[float, float]:
                wall, cpu_time = _export(file, f"http://127.0.0.1:{sink['port']}/v1/traces", workers, cpu)
                spans.add(counts(sink["port"])["spans"])
                plan.say(f"workers round {turn + 1} {name}: {wall:.2f} s, {cpu_time:.2f} s of processor time")
                return wall, cpu_time

            return sample

        spans: set[int] = set()
        contestants = {
            "one": contestant("one", 1),
            "one on one core": contestant("one on one core", 1, first),
            "two": contestant("two", 2),
        }
        samples = take_turns(contestants, rounds)
    if len(spans) != 1:
        raise RuntimeError(f"the contestants sent different numbers of spans: {spans}")
    walls = {name: [wall for wall, _ in each] for name, each in samples.items()}
    times = {name: [cpu_time for _, cpu_time in each] for name, each in samples.items()}

    def figure(name: str, over: str) -> Figure:
        value, low, high = ratio(walls[over], walls["two"])
        goal = at_least(1.7) if over == "one" else None
        return Figure("workers", name, value, low, high, goal=goal, note=f"{file.stat().st_size / 1e6:.0f} MB")

    cores, low, high = ratio(times["one"], walls["one"])
    cost, least, most = ratio(times["two"], times["one"])
    return [
        figure("one worker / two", "one"),
        figure("one worker on one core / two on two", "one on one core"),
        Figure("workers", "cores that one worker uses", cores, low, high, note="compression beside encoding"),
        Figure("workers", "processor time of two workers / of one", cost, least, most),
    ]


def _export(file: Path, url: str, workers: int, cpu: int | None) -> tuple[float, float]:
    """Return the seconds of an export, and the processor time of its processes."""
    command = [sys.executable, "-m", "runspan", "export", str(file), "--endpoint", url, "--quiet"]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--workers", str(workers)], env=environment())
    if cpu is not None:
        os.sched_setaffinity(process.pid, {cpu})
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime
