"""Section ``remote``: what reading from Tempo and Jaeger costs beyond the backend's own latency.

The servers are those of ``backends.read_by_runspan``. Runs are sent there; nothing is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from bench import backends
from bench.data import seed
from bench.figures import Figure, Goal, at_most
from bench.plan import Plan
from runspan.backends import connect
from runspan.contracts import RunQuery
from runspan.delivery import connect as deliver_to
from runspan.delivery import exporter_config
from runspan.errors import BackendError, NotFound, TraceIncomplete
from runspan.export import export
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.testing import generate

_SECTION = 7
_VISIBLE_SECONDS = 60


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section; none without a server."""
    with backends.read_by_runspan(plan, "tempo", "jaeger") as servers:
        return [figure for url, otlp in servers for figure in _backend(plan, url, otlp)]


def _backend(plan: Plan, url: str, otlp: str) -> list[Figure]:
    runs = plan.runs or (300 if plan.quick else 2000)
    rounds = plan.rounds or (100 if plan.quick else 400)
    # A tenant and a service of this measurement only, and times within retention and search windows.
    name = f"bench-{time.time_ns()}"
    start = datetime.now(UTC) - timedelta(days=2)
    documents = [Run.from_json(text) for text in generate(runs, seed=seed(_SECTION, 0), start=start, span_days=1.9)]
    with deliver_to(exporter_config({}, endpoint=otlp)) as delivery:
        report = export(documents, delivery, tenant=name, observed_at=time.time_ns, resource=Resource(name))
    if not report.complete:
        raise RuntimeError(f"{url}: {report.summary_lines()}")
    reader: Any = connect(url, services=[name])
    own = _Own(reader)
    try:
        _wait(lambda: reader.document(documents[-1].id, name))
        _wait(lambda: _full(reader.search(RunQuery(tenant=name))))
        gets = [own.share(lambda run=run: reader.document(run.id, name)) for run in documents[:rounds]]  # type: ignore[misc]
        lists = [own.share(lambda: reader.search(RunQuery(tenant=name))) for _ in range(rounds // 4)]
    finally:
        reader.close()
    new = [_list_of_new(url, name) for _ in range(rounds // 4)]
    kind = url.partition("+")[0]
    figures = [_figure(kind, "get", gets, at_most(0.3)), _figure(kind, "list of 50", lists, at_most(0.3))]
    return [*figures, _figure(kind, "list of 50 never listed before", new)]


def _list_of_new(url: str, tenant: str) -> tuple[float, float, int]:
    """Measure the same list with a reader that has cached none of its runs."""
    reader: Any = connect(url, services=[tenant])
    try:
        reader.search(RunQuery(tenant=tenant, limit=1))
        return _Own(reader).share(lambda: reader.search(RunQuery(tenant=tenant)))
    finally:
        reader.close()


class _Own:
    """Measures how much of a reader's time passes in its HTTP client, which counts as the backend's."""

    def __init__(self, reader: Any) -> None:
        self._inside = 0.0
        self._requests = 0
        ask = reader._http.get

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return ask(*arguments, **options)
            finally:
                self._inside += time.perf_counter() - begin
                self._requests += 1

        reader._http.get = timed

    def share(self, question: Callable[[], object]) -> tuple[float, float, int]:
        """Return the total seconds, the seconds in the backend, and the number of requests."""
        self._inside, self._requests = 0.0, 0
        begin = time.perf_counter()
        question()
        return time.perf_counter() - begin, self._inside, self._requests


def _figure(kind: str, what: str, samples: list[tuple[float, float, int]], goal: Goal | None = None) -> Figure:
    added = [(total - inside) / inside for total, inside, _ in samples]
    latency = median(inside for _, inside, _ in samples) * 1000
    note = f"the backend's own {latency:.1f} ms in {median(each[2] for each in samples):g} requests"
    return Figure("remote", f"{kind}: {what}, added / own", median(added), goal=goal, note=note)


def _full(page: Any) -> None:
    if len(page.items) < 50:
        raise NotFound("some runs are missing")


def _wait(question: Callable[[], object]) -> None:
    deadline = time.monotonic() + _VISIBLE_SECONDS
    while True:
        try:
            question()
            return
        except (NotFound, TraceIncomplete, BackendError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
