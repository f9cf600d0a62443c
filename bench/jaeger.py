"""Section ``jaeger``: lists and reads over a Jaeger, against the cheapest request of Jaeger's own for the same runs.

The servers are those of ``backends.read_by_runspan``. The configuration with Badger is the one that counts: Jaeger's
memory storage is for trials.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import msgspec

from bench import backends
from bench.data import seed
from bench.figures import Figure, Goal, at_most, ratio, seconds_of, take_turns
from bench.plan import Plan
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from runspan.contracts import RunQuery
from runspan.delivery import connect as deliver_to
from runspan.delivery import exporter_config
from runspan.export import export
from runspan.model.document import Run, sort_time
from runspan.model.span import run_ids
from runspan.model.timestamps import rfc3339
from runspan.otlp.protobuf_writer import Resource
from runspan.testing import generate

_SECTION = 8
_LIST = 50
_PAGES = 40
_SINCE = 7 * 86_400 * 1_000_000_000
"""Nanoseconds."""


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section: none without a Jaeger."""
    with backends.read_by_runspan(plan, "jaeger") as servers:
        return [figure for url, otlp in servers for figure in _server(plan, url, otlp)]


def _server(plan: Plan, url: str, otlp: str) -> list[Figure]:
    runs = plan.runs or (2_000 if plan.quick else 20_000)
    rounds = plan.rounds or (10 if plan.quick else 40)
    # A service, a tenant and runs of this measurement alone, and times that retention holds.
    now = time.time_ns()
    name = f"bench-{now}"
    start = datetime.now(UTC) - timedelta(days=2)
    documents = [Run.from_json(text) for text in generate(runs, seed=seed(_SECTION, now), start=start, span_days=1.9)]
    for tenant in (name, ""):
        with deliver_to(exporter_config({}, endpoint=otlp)) as delivery:
            resource = Resource(name if tenant else f"{name}-any")
            report = export(documents, delivery, tenant=tenant, observed_at=time.time_ns, resource=resource)
        if not report.complete:
            raise RuntimeError(f"{url}: {report.summary_lines()}")
    documents.sort(key=lambda run: sort_time(run.envelope), reverse=True)
    failed = [each for each in documents if each.status == "failed"]
    workflow = Counter(each.workflow_id for each in documents).most_common(1)[0][0]
    of_workflow = [each for each in documents if each.workflow_id == workflow]
    lists = [
        (f"list of {_LIST}", name, documents, RunQuery(name)),
        ("list of 10", name, documents, RunQuery(name, limit=10)),
        (f"list of {_LIST} of 7 days", name, documents, RunQuery(name, since=now - _SINCE)),
        (f"list of {_LIST} without a tenant", f"{name}-any", documents, RunQuery()),
        (f"list of {_LIST} failed", name, failed, RunQuery(name, status="failed")),
        (f"list of {_LIST} of a workflow", name, of_workflow, RunQuery(name, workflow_id=workflow)),
    ]
    figures = []
    # The client that a user of Jaeger's API would write.
    http = httpx.Client(base_url=url.removeprefix("jaeger+"), trust_env=False, timeout=60)
    for what, service, listed, query in lists:
        own = _own_searches(http, service, listed, query)
        reader = _reader(url, service)
        contestants: dict[str, Callable[[int], float]] = {
            "ours": lambda turn, reader=reader, query=query: seconds_of(lambda: _list(reader, query)),
            "new": lambda turn, service=service, query=query: _first_list(url, service, query),
            **{key: lambda turn, ask=ask: seconds_of(ask) for key, ask in own.items()},
        }
        samples = take_turns(contestants, rounds)
        reader.close()
        cheapest = min(own, key=lambda key: min(samples[key]))
        note = f"{runs} runs; Jaeger's own is {cheapest}, {min(samples[cheapest]) * 1000:.1f} ms"
        figures.append(_figure(f"{what} / own", samples["ours"], samples[cheapest], at_most(2), note))
        figures.append(_figure(f"{what} never listed before / own", samples["new"], samples[cheapest], None, note))
    figures.append(_pages(url, http, name, documents, max(3, rounds // 8)))
    figures.append(_get(url, http, name, documents, rounds))
    http.close()
    return figures


def _pages(url: str, http: httpx.Client, name: str, documents: Sequence[Run], rounds: int) -> Figure:
    """Return the figure of a list that is read 40 pages deep, as far as there are runs, by its cursors."""
    reader = _reader(url, name)
    parts = [documents[start : start + _LIST] for start in range(0, min(len(documents), _PAGES * _LIST), _LIST)]
    requests = [_own_searches(http, name, part, RunQuery(name))["a search of traces"] for part in parts]

    def ours() -> None:
        query = RunQuery(name)
        for _ in parts:
            query = replace(query, cursor=reader.search(query).cursor)

    def own() -> None:
        for request in requests:
            request()

    samples = take_turns({"ours": lambda _: seconds_of(ours), "own": lambda _: seconds_of(own)}, rounds)
    reader.close()
    note = f"{len(documents)} runs; Jaeger's own are as many searches of traces, {min(samples['own']) * 1000:.1f} ms"
    return _figure(f"{len(parts)} pages of {_LIST} / own", samples["ours"], samples["own"], at_most(2), note)


def _get(url: str, http: httpx.Client, name: str, documents: Sequence[Run], rounds: int) -> Figure:
    """Return the figure of reads by id: each turn reads another run."""
    reader = _reader(url, name)
    chosen = documents[:: max(1, len(documents) // rounds)]

    def own(turn: int) -> float:
        trace_id = run_ids(chosen[turn % len(chosen)].id, name).trace_id
        return seconds_of(lambda: _ask(http, f"/api/v3/traces/{trace_id.hex()}", {"raw_traces": "true"}))

    def ours(turn: int) -> float:
        return seconds_of(lambda: reader.document(chosen[turn % len(chosen)].id, name))

    samples = take_turns({"ours": ours, "own": own}, rounds)
    reader.close()
    total, total_own = sum(sorted(samples["ours"])[: rounds // 2]), sum(sorted(samples["own"])[: rounds // 2])
    note = f"{len(documents)} runs; the faster half of reads, each of another run"
    return Figure("jaeger", "get / own", total / total_own, goal=at_most(1.2), note=note)


def _own_searches(
    http: httpx.Client, service: str, documents: Sequence[Run], query: RunQuery
) -> dict[str, Callable[[], object]]:
    """Return Jaeger's requests for the first runs: of traces, and of summaries that have no attributes."""
    times = [sort_time(run.envelope) for run in documents[: query.limit]]
    wanted = {"runspan.run.status": query.status, "runspan.workflow.id": query.workflow_id}
    attributes = {key: value for key, value in wanted.items() if value}
    parameters = {
        "query.service_name": service,
        "query.start_time_min": rfc3339(times[-1]),
        "query.start_time_max": rfc3339(times[0] + 1000),
        "query.search_depth": str(query.limit),
        "query.raw_traces": "true",
    }
    if attributes:
        parameters["query.attributes"] = msgspec.json.encode(attributes).decode()
    paths = {"a search of traces": "/api/v3/traces", "a search of summaries": "/api/v3/trace-summaries"}
    return {name: lambda path=path: _ask(http, path, parameters) for name, path in paths.items()}  # type: ignore[misc]


def _ask(http: httpx.Client, path: str, parameters: Mapping[str, str]) -> None:
    http.get(path, params=parameters).raise_for_status()


def _reader(url: str, service: str) -> JaegerReader:
    return JaegerReader(remote_config(url, {}), services=[service])


def _list(reader: JaegerReader, query: RunQuery) -> None:
    page = reader.search(query)
    if len(page.items) < query.limit or page.partial:
        raise RuntimeError(f"a list of {len(page.items)} runs: {page.partial}")


def _first_list(url: str, service: str, query: RunQuery) -> float:
    """Return the seconds of a list by a reader that knows the server, but none of its runs."""
    reader = _reader(url, service)
    reader.search(RunQuery("of-no-run", limit=1))
    seconds = seconds_of(lambda: _list(reader, query))
    reader.close()
    return seconds


def _figure(what: str, ours: Sequence[float], own: Sequence[float], goal: Goal | None, note: str) -> Figure:
    value, low, high = ratio(ours, own)
    return Figure("jaeger", what, value, low, high, goal=goal, note=note)
