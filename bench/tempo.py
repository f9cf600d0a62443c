"""Section ``tempo``: lists and reads over a Tempo, against the cheapest request of Tempo's own for the same runs.

The servers are those of ``backends.named_servers``. Without one, the section starts the ``tempo`` on the search path
with the settings of ``deploy/tempo.yaml``, and again without its dedicated columns.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx

from bench import backends
from bench.data import seed
from bench.figures import Figure, Goal, at_most, ratio, seconds_of, take_turns
from bench.plan import Plan
from runspan.backends.remote.client import PROTOBUF
from runspan.backends.remote.config import remote_config
from runspan.backends.tempo import TempoReader
from runspan.codec.fields import MODELS, RUN_FIELDS, STEP_TYPES
from runspan.codec.semconv import ERROR_TYPE
from runspan.contracts import RunQuery
from runspan.delivery import connect as deliver_to
from runspan.delivery import exporter_config
from runspan.errors import RunspanError
from runspan.export import export
from runspan.model.document import Run
from runspan.model.span import run_ids
from runspan.model.timestamps import SECOND
from runspan.otlp.protobuf_writer import Resource
from runspan.testing import generate

_SECTION: Final = 9
_DAYS: Final = 7
_LATEST: Final = 2**32 - 1
_PAGES: Final = 40
_VISIBLE_SECONDS: Final = 1800
_TIMEOUT: Final = 120
"""Seconds for one request."""
_MANY: Final = 1_000_000
_AT_ONCE: Final = 10_000
"""Runs that one search counts. Tempo ends a response after half a minute."""
_WORKFLOW: Final = "wf_lead_enrichment"
_TRIGGER: Final = next(each.key for each in RUN_FIELDS if each.member == "trigger_type")


def run(plan: Plan) -> list[Figure]:
    """Return the figures of the section: none without a Tempo."""
    sizes = [plan.runs] if plan.runs else [2_000] if plan.quick else [_MANY] if plan.scale else [20_000, 100_000]
    servers = backends.named_servers("tempo")
    figures: list[Figure] = []
    if servers:
        for url, otlp in servers:
            for size in sizes:
                figures += _server(plan, url, otlp, "named", size, f"bench-{time.time_ns()}")
        return figures
    if shutil.which("tempo") is None:
        plan.say("tempo: skipped, RUNSPAN_BENCH_BACKENDS names no Tempo and none is on the search path")
        return []
    for size in sizes:
        for kind in ("deploy/tempo.yaml",) if plan.scale else ("deploy/tempo.yaml", "plain"):
            folder = plan.folder / f"{kind.replace('/', '-')}-{size}"
            folder.mkdir()
            with backends.tempo(folder, dedicated_columns=kind != "plain") as started:
                figures += _server(plan, f"tempo+{started.url}", started.otlp, kind, size, "", folder / "blocks")
    return figures


def _server(
    plan: Plan, url: str, otlp: str, kind: str, runs: int, tenant: str, blocks: Path | None = None
) -> Iterator[Figure]:
    rounds = plan.rounds or (10 if plan.quick else 20)
    chosen = _send(otlp, tenant, runs, rounds * 5)
    tempo = _Tempo(url, tenant)
    _wait_until_visible(tempo, runs)
    if blocks is not None and runs >= _MANY:
        plan.say(f"{kind}: {runs:,} runs in {_wait_until_compacted(blocks)} blocks")
    since = time.time_ns() - _DAYS * 86_400 * SECOND
    root = "kind = server"
    lists = [
        ("list of 50", RunQuery(tenant), root),
        ("list of 10", RunQuery(tenant, limit=10), root),
        ("list of 50 of 7 days", RunQuery(tenant, since=since), root),
        ("list of 50 failed", RunQuery(tenant, status="failed"), f"{root} && status = error"),
        ("list of 50 of a workflow", RunQuery(tenant, workflow_id=_WORKFLOW), f'name = "run {_WORKFLOW}"'),
    ]
    filters = [
        ("by trigger", RunQuery(tenant, trigger="webhook"), f'{root} && span.{_TRIGGER} = "webhook"'),
        ("by error code", RunQuery(tenant, error_code="RATE_LIMITED"), f'{root} && span.{ERROR_TYPE} = "RATE_LIMITED"'),
        ("longer than an hour", RunQuery(tenant, min_duration=3600 * SECOND), f"{root} && duration >= 1h"),
        ("by model", RunQuery(tenant, model="gpt-4o-mini"), f"{root} && {_has_label(MODELS, 'gpt-4o-mini')}"),
        ("by step type", RunQuery(tenant, step_type="stripe"), f"{root} && {_has_label(STEP_TYPES, 'stripe')}"),
    ]
    name = f"{kind}, {runs:,} runs"
    most = 6 if kind == "plain" else 2.5 if runs >= _MANY else 2
    goals = [(each, at_most(most)) for each in lists] + [(each, at_most(4)) for each in filters if runs >= _MANY]
    for (what, query, spans), goal in goals:
        contestants: dict[str, Callable[[int], float]] = {
            "ours": lambda turn, query=query: seconds_of(lambda: tempo.list(query)),
            "own": lambda turn, query=query, spans=spans: seconds_of(lambda: tempo.search(spans, query.limit)),
        }
        try:
            tempo.list(query)  # so that the width of a page is known
            samples = take_turns(contestants, rounds)
        except (RunspanError, httpx.HTTPError) as error:
            # It is a figure too, and the others need not be measured again.
            yield Figure("tempo", f"{name}: {what} / own", math.inf, goal=goal, note=f"did not end: {error}")
            continue
        figure = _figure(f"{name}: {what} / own", samples["ours"], samples["own"], goal)
        plan.say(f"{figure.name}: {figure.value:.2f}, {figure.note}")
        yield figure
    deep = [seconds_of(lambda: tempo.pages(RunQuery(tenant), _PAGES)) / _PAGES for _ in range(max(1, rounds // 5))]
    own = [seconds_of(lambda: tempo.search(root, 50)) for _ in range(rounds)]
    yield _figure(f"{name}: a page of {_PAGES} / own search", deep, [min(own)] * len(deep), at_most(most))
    reads = take_turns(
        {
            "ours": lambda turn: seconds_of(lambda: tempo.reader.document(chosen[turn % len(chosen)], tenant)),
            "own": lambda turn: seconds_of(lambda: tempo.trace(chosen[turn % len(chosen)])),
        },
        rounds * 5,
    )
    ours, theirs = (sum(sorted(reads[each])[: len(reads[each]) // 2]) for each in ("ours", "own"))
    note = "the faster half of reads, each of another run"
    yield Figure("tempo", f"{name}: get / own", ours / theirs, goal=at_most(1.2), note=note)
    tempo.close()


def _has_label(key: str, label: str) -> str:
    return rf'span.{key} =~ ".*\"{label}\".*"'


def _send(otlp: str, tenant: str, runs: int, count: int) -> list[str]:
    """Send the runs of a week. Return the ids of ``count`` of them."""
    start = datetime.now(UTC) - timedelta(days=_DAYS - 0.1)
    chosen: list[str] = []

    def documents() -> Iterator[Run]:
        for number, text in enumerate(generate(runs, seed=seed(_SECTION, runs), start=start, span_days=_DAYS - 0.1)):
            run = Run.from_json(text)
            if number % max(1, runs // count) == 0:
                chosen.append(run.id)
            yield run

    with deliver_to(exporter_config({}, endpoint=otlp)) as delivery:
        report = export(documents(), delivery, tenant=tenant, observed_at=time.time_ns, resource=Resource())
    if not report.complete:
        raise RuntimeError(f"{otlp}: {report.summary_lines()}")
    return chosen


class _Tempo:
    """A Tempo, by the reader and by its own requests."""

    def __init__(self, url: str, tenant: str) -> None:
        self.reader = TempoReader(remote_config(url, {"RUNSPAN_BACKEND_TIMEOUT": str(_TIMEOUT)}))
        self._tenant = tenant
        self._http = httpx.Client(base_url=url.removeprefix("tempo+"), trust_env=False, timeout=_TIMEOUT)

    def list(self, query: RunQuery) -> None:
        """Read a page by the reader; RuntimeError if it is not full."""
        page = self.reader.search(query)
        if len(page.items) < query.limit or page.partial:
            raise RuntimeError(f"a list of {len(page.items)} runs: {page.partial}")

    def pages(self, query: RunQuery, count: int) -> None:
        """Read so many pages by the reader, or all if there are fewer."""
        for _ in range(count):
            page = self.reader.search(query)
            if page.cursor is None:
                return
            query = replace(query, cursor=page.cursor)

    def search(self, spans: str, limit: int) -> int:
        """Search for the newest spans of a week without their attributes; return the number of traces."""
        return len(self._traces(spans, limit, int(time.time()) - _DAYS * 86_400, _LATEST))

    def count(self, runs: int) -> int:
        """Return how many of about ``runs`` runs of the week searches find, part by part: responses are large."""
        parts = -(-runs // _AT_ONCE)
        first, width = int(time.time()) - _DAYS * 86_400, -(-_DAYS * 86_400 // parts)
        found: set[str] = set()
        for start in range(first, first + parts * width, width):
            end = _LATEST if start + width >= first + parts * width else start + width
            found.update(self._traces("kind = server", 4 * _AT_ONCE, start, end))
        return len(found)

    def _traces(self, spans: str, limit: int, start: int, end: int) -> list[str]:
        tenant = f' && span.runspan.tenant = "{self._tenant}"' if self._tenant else ""
        parameters: dict[str, str | int] = {
            "q": f"{{ {spans}{tenant} }} with(most_recent=true)",
            "start": start,
            "end": end,
            "limit": limit,
            "spss": 1,
        }
        response = self._http.get("/api/search", params=parameters)
        response.raise_for_status()
        return [trace["traceID"] for trace in response.json()["traces"]]

    def trace(self, run_id: str) -> None:
        """Request the trace of a run."""
        trace_id = run_ids(run_id, self._tenant).trace_id.hex()
        self._http.get(f"/api/v2/traces/{trace_id}", headers={"accept": PROTOBUF}).raise_for_status()

    def close(self) -> None:
        self.reader.close()
        self._http.close()


def _wait_until_visible(tempo: _Tempo, runs: int) -> None:
    """Return when searches find all runs."""
    deadline = time.monotonic() + _VISIBLE_SECONDS
    found: object = 0
    while found != runs:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Tempo finds {found} of {runs} runs")
        time.sleep(2)
        try:
            found = tempo.count(runs)
        except httpx.HTTPError as error:  # it is busy with what it has received
            found = error


def _wait_until_compacted(folder: Path) -> int:
    """Return the number of blocks in Tempo's folder once it has not changed for two minutes."""
    since, before = time.monotonic(), 0
    while time.monotonic() < since + 120:
        time.sleep(5)
        if (count := len(list(folder.glob("*/*/meta.json")))) != before:
            since, before = time.monotonic(), count
    return before


def _figure(what: str, ours: Sequence[float], own: Sequence[float], goal: Goal) -> Figure:
    value, low, high = ratio(ours, own)
    return Figure("tempo", what, value, low, high, goal=goal, note=f"Tempo's own {min(own) * 1000:.1f} ms")
