"""Section ``peers``: processor time to receive the same spans and make them durable, against Tempo, Jaeger and Phoenix.

Each program gets the same OTLP/HTTP requests, one at a time, in a directory of its own. Its processor time is read when
the last request is acknowledged, and again when it has come to rest, which includes its background work: blocks and
compaction of Tempo, checkpoints of a store. Phoenix acknowledges before it stores anything, so only the second time
counts there; it gets fewer runs, and the figure is by span. A program that is not on the search path is left out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from bench import backends
from bench.data import seed
from bench.figures import Figure, Goal, at_least, at_most, ratio, take_turns
from bench.machine import cpu_seconds
from bench.plan import Plan
from runspan.export import batches
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource, request_bytes
from runspan.testing import generate

_SECTION: Final = 10
_PHOENIX_SHARE: Final = 40
"""Phoenix gets one of so many runs."""
_HEADERS: Final = {"content-type": "application/x-protobuf"}
_REST: Final = 0.02
"""Processor time by time of a program at rest."""
_REST_SECONDS: Final = 3.0
_MOST_SECONDS: Final = 180

Start = Callable[[Path], AbstractContextManager[backends.Started]]


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section, with what is on the search path."""
    runs = plan.runs or (2_000 if plan.quick else 20_000)
    rounds = plan.rounds or (1 if plan.quick else 3)
    starts: dict[str, Start] = {"runspan": backends.runspan}
    for name, start in (("tempo", backends.tempo), ("jaeger", backends.jaeger), ("phoenix", backends.phoenix)):
        if shutil.which(name) is None:
            plan.say(f"peers: {name} is left out, there is no such program on the search path")
        else:
            starts[name] = start

    def contestant(name: str) -> Callable[[int], dict[str, float]]:
        def sample(turn: int) -> dict[str, float]:
            folder = plan.folder / f"{name}-{turn}"
            folder.mkdir()
            count = runs // _PHOENIX_SHARE if name == "phoenix" else runs
            found = _receive(starts[name], folder, _requests(count, turn))
            shutil.rmtree(folder)
            plan.say(f"peers round {turn + 1} {name}: {found['durable']:.2f} s, at rest {found['rest']:.2f} s")
            return found

        return sample

    samples = take_turns({name: contestant(name) for name in starts}, rounds)
    return [*_figures(samples)]


def _requests(runs: int, turn: int) -> Iterator[tuple[bytes, int]]:
    """Yield the bodies of requests with runs of the last hours, and their numbers of spans."""
    start = datetime.now(UTC) - timedelta(hours=6)
    texts = generate(runs, seed=seed(_SECTION, turn), start=start, span_days=0.2)
    for batch in batches(map(Run.from_json, texts), observed_at=time.time_ns, resource=Resource(), keep_text=False):
        spans = [span for run in batch.runs for span in run.spans]
        yield request_bytes(batch.resource, spans), batch.spans


def _receive(start: Start, folder: Path, requests: Iterator[tuple[bytes, int]]) -> dict[str, float]:
    """Return spans, and the processor seconds until the last acknowledgement and until the program is at rest."""
    ready = [*requests]
    with start(folder) as program, httpx.Client(trust_env=False, timeout=120, headers=_HEADERS) as client:
        _rest(program.pid)
        before = cpu_seconds(program.pid)
        for body, _ in ready:
            client.post(f"{program.otlp}/v1/traces", content=body).raise_for_status()
        durable = cpu_seconds(program.pid) - before
        rest = _rest(program.pid) - before
    return {"spans": sum(spans for _, spans in ready), "durable": durable, "rest": rest}


def _rest(pid: int) -> float:
    """Wait until a process uses hardly any processor time; return what it has used."""
    deadline = time.monotonic() + _MOST_SECONDS
    used = cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(_REST_SECONDS)
        before, used = used, cpu_seconds(pid)
        if used - before < _REST * _REST_SECONDS:
            break
    return used


def _figures(samples: dict[str, list[dict[str, Any]]]) -> Iterator[Figure]:
    def figure(peer: str, name: str, own: str, theirs: str, goal: Goal | None = None, note: str = "") -> Figure:
        ours = [each[own] / each["spans"] for each in samples["runspan"]]
        other = [each[theirs] / each["spans"] for each in samples[peer]]
        over, under = (other, ours) if name.endswith("/ runspan") else (ours, other)
        value, low, high = ratio(over, under)
        return Figure("peers", name, value, low, high, goal=goal, note=note)

    if "tempo" in samples:
        yield figure("tempo", "runspan / Tempo, until acknowledged", "durable", "durable", at_most(0.6))
        yield figure("tempo", "runspan / Tempo, until at rest", "rest", "rest", note="with Tempo's blocks")
    if "jaeger" in samples:
        yield figure("jaeger", "runspan / Jaeger with Badger, until acknowledged", "durable", "durable", at_most(0.2))
    if "phoenix" in samples:
        note = "a span, until at rest"
        yield figure("phoenix", "Phoenix / runspan", "rest", "rest", at_least(100), note=note)
