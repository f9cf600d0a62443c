"""Section ``pipe``: a file to durable and queryable runs in a real ``runspan serve``, against the stock SDK.

Both sides send the same spans, so the store has the same runs to keep, and both are asked for their runs afterwards.
The stock side gets its spans' ids and attributes ready made, which favours it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.data import seed, write_ndjson
from bench.figures import Figure, at_least, ratio, take_turns
from bench.machine import cpu_seconds
from bench.plan import Plan
from bench.processes import environment, worker

_SECTION = 6


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    runs = plan.runs or (1000 if plan.quick else 4000)
    rounds = plan.rounds or (2 if plan.quick else 4)
    warm = write_ndjson(plan.folder / "warm.ndjson", min(runs, 200), seed(_SECTION, 999))

    def contestant(name: str) -> Callable[[int], dict[str, float]]:
        def sample(turn: int) -> dict[str, float]:
            file = write_ndjson(plan.folder / "pipe.ndjson", runs, seed(_SECTION, turn))
            with _server(plan.folder / f"{name} {turn}") as (url, pid):
                options = {"contestant": name, "url": f"{url}/v1/traces", "file": str(file), "warm": str(warm)}
                before = cpu_seconds(pid)
                result = worker("bench.senders", options)
                result["server_cpu"] = cpu_seconds(pid) - before
                _check(url, [file, warm])
            plan.say(f"pipe round {turn + 1} {name}: {result['wall'] / runs * 1e6:.0f} µs a run")
            return result

        return sample

    samples = take_turns({"stock ready": contestant("stock ready"), "ours gzip": contestant("ours gzip")}, rounds)
    stock, ours = samples["stock ready"], samples["ours gzip"]
    value, low, high = ratio([s["wall"] for s in stock], [s["wall"] for s in ours])
    cpu, _, _ = ratio([s["cpu"] + s["server_cpu"] for s in stock], [s["cpu"] + s["server_cpu"] for s in ours])
    note = "CPU time of sender and server, warm-up included in the server's"
    return [Figure("pipe", "stock / ours, file to queryable", value, low, high, cpu, goal=at_least(6), note=note)]


@contextmanager
def _server(data: Path) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "runspan", "serve", "--data", str(data), "--port", "0", "--no-search"]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "serving" in line:
                    break
            else:
                raise RuntimeError("runspan serve did not start")
            yield line.split()[-1], process.pid
        finally:
            process.terminate()
            process.communicate()


def _check(url: str, files: list[Path]) -> None:
    """Check that the server returns every run."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    for file in files:
        for line in file.read_bytes().splitlines():
            run: dict[str, Any] = json.loads(line)
            connection.request("GET", f"/api/v1/runs/{run['id']}")
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or json.loads(body)["data"] != run:
                raise RuntimeError(f"run {run['id']}: HTTP {response.status} {body[:200]!r}")
    connection.close()
