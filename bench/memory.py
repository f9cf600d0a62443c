"""Section ``memory``: the peak resident memory of ``runspan export`` on a small and a ten times larger file."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.data import seed, write_ndjson_of
from bench.export import counts
from bench.figures import Figure, at_most
from bench.machine import peak_bytes
from bench.plan import Plan
from bench.processes import environment, helper

_SECTION = 5
_MB = 1_000_000
_LIMIT_MB = 150


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
        goal = at_most(_LIMIT_MB)
        figures.append(Figure("memory", f"peak on a file of {size} MB", peak / _MB, unit="MB", goal=goal))
    small, large = sizes
    figures.append(Figure("memory", f"peak on {large} MB / on {small} MB", peaks[1] / peaks[0]))
    return figures


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
