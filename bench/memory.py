"""Section ``memory``: the peak resident memory of ``runspan export`` on a small and a ten times larger file, and of
``runspan serve`` while it stores a file, indexes it and responds to requests."""

from __future__ import annotations

import subprocess
import sys
import time

import httpx

from bench import backends
from bench.data import seed, write_ndjson_of
from bench.export import counts
from bench.figures import Figure, at_most
from bench.machine import peak_bytes
from bench.plan import Plan
from bench.processes import environment, helper, worker

_SECTION = 5
_MB = 1_000_000
_EXPORT_MB = 150
_SERVE_MB = 250
_CONNECTIONS = 8
_INDEX_SECONDS = 1800


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section."""
    sizes = [20, 80] if plan.quick else [50, 500]
    if plan.runs:
        sizes = [max(plan.runs // 1000, 1), max(plan.runs // 250, 4)]
    figures, peaks = [], []
    for part, size in enumerate(sizes):
        file = plan.folder / f"{size}.ndjson"
        documents = write_ndjson_of(file, size * _MB, seed(_SECTION, 0, part))
        with helper("bench.sink", count_now=True) as sink:
            peak = _peak(str(file), f"http://127.0.0.1:{sink['port']}/v1/traces")
            spans = counts(sink["port"])["spans"]
        file.unlink()
        if not documents < spans:
            raise RuntimeError(f"{documents} documents, {spans} spans")
        plan.say(f"memory: {size} MB, {documents:,} documents: {peak / _MB:.0f} MB")
        peaks.append(peak)
        goal = at_most(_EXPORT_MB)
        figures.append(Figure("memory", f"peak on a file of {size} MB", peak / _MB, unit="MB", goal=goal))
    small, large = sizes
    figures.append(Figure("memory", f"peak on {large} MB / on {small} MB", peaks[1] / peaks[0]))
    return [*figures, _serve(plan, large if plan.runs else 40 if plan.quick else 200)]


def _serve(plan: Plan, size: int) -> Figure:
    """Send a file to a server with all its defaults, and list and read runs while it indexes them and afterwards."""
    file = plan.folder / "served.ndjson"
    documents = write_ndjson_of(file, size * _MB, seed(_SECTION, 1))
    folder = plan.folder / "server"
    folder.mkdir()
    with backends.runspan(folder, search=True) as server:
        _peak(str(file), server.otlp)
        file.unlink()
        _read(server)
        _wait_until_indexed(server.url)
        _read(server)
        peak = peak_bytes(server.pid)
    plan.say(f"memory: serve, {documents:,} documents: {peak / _MB:.0f} MB")
    name = f"peak of serve, {size} MB received and read"
    note = f"with its index; {_CONNECTIONS} connections read"
    return Figure("memory", name, peak / _MB, unit="MB", goal=at_most(_SERVE_MB), note=note)


def _read(server: backends.Started) -> None:
    """Request the longest lists, and 200 documents, on several connections at once."""
    response = httpx.get(f"{server.url}/api/v1/runs", params={"limit": 200}, trust_env=False, timeout=60)
    paths = ["/api/v1/runs?limit=200", *[f"/api/v1/runs/{item['id']}" for item in response.json()["data"]]]
    port = int(server.url.rpartition(":")[2])
    reader = {"port": port, "pid": server.pid, "paths": paths}
    options = {"contestants": {"runspan": reader}, "rounds": 1, "connections": _CONNECTIONS, "requests": 2 * len(paths)}
    worker("bench.load", options)


def _wait_until_indexed(url: str) -> None:
    deadline = time.monotonic() + _INDEX_SECONDS
    question = {"sort": "duration", "limit": 1}
    while "partial" in httpx.get(f"{url}/api/v1/runs", params=question, trust_env=False, timeout=60).json()["meta"]:
        if time.monotonic() > deadline:
            raise RuntimeError("the server has not indexed its runs")
        time.sleep(1)


def _peak(file: str, url: str) -> int:
    """Return the peak, polled until the process ends, because that of wait4 can be its parent's."""
    command = [sys.executable, "-m", "runspan", "export", file, "--endpoint", url, "--quiet"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.01)
        assert process.stderr is not None
        if process.returncode:
            raise RuntimeError(process.stderr.read().decode()[-3000:])
    return peak
