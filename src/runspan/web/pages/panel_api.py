"""What the runs panel asks beyond the API: totals of the runs that it shows, and how runs spread over time.

Both look only as far as their bounds, on every backend alike, and say how far that was. They are the pages' own and may
change with them; other clients have the API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import msgspec
from flask import Blueprint, Flask, Response, request
from msgspec import Struct
from pydantic import ValidationError

from runspan.codec.semconv import read_usage
from runspan.contracts import MAX_LIMIT, RunQuery, TraceReader
from runspan.errors import NotFound, QueryError, TraceIncomplete
from runspan.model.document import RUN_STATUSES
from runspan.model.run import Run
from runspan.model.timestamps import MILLISECOND, parse_ns
from runspan.web.api_keys import RUNS_READ
from runspan.web.app_context import AppContext
from runspan.web.errors import JSON, invalid_query
from runspan.web.fast_path import PARTIAL, note_header
from runspan.web.schemas import RunsQuery

MOST_TOTALS: Final = 50
"""Runs of which one request may ask the totals."""
MOST_COUNTED: Final = 2000
"""Runs that one request looks at to count them."""
MOST_WORKFLOWS: Final = 200
SECONDS: Final = 2.0
"""How long one request goes on looking; what it began it ends."""


class Totals(Struct, rename="camel", omit_defaults=True):
    """Of a run: its steps, and what its agents used. cost: in US dollars; None where no step tells one."""

    steps: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


class _Summary(Struct, rename="camel"):
    id: str
    workflow_id: Any = None
    status: Any = None
    started_at: Any = None
    created_at: Any = None


class RunHistogram(Struct, rename="camel"):
    """How runs spread over time.

    times: starts in milliseconds since 1970, newest first; statuses: of each, as an index into names, whose last entry
    stands for all that is no known status. undated: runs without a time, which are not among them. workflows: the ids
    seen. whole: whether these are all runs that were asked for, or only the newest.
    """

    names: tuple[str, ...]
    times: list[int]
    statuses: list[int]
    undated: int
    workflows: list[str]
    whole: bool


def add_data(app: Flask, parts: AppContext, timer: Callable[[], float] = time.monotonic) -> None:
    """``/pages/totals`` and ``/pages/spread``. Errors are told as those of the API."""
    pages = Blueprint("data", __name__)

    def totals() -> Response:
        caller = parts.access.authorize(request, RUNS_READ)
        ids = request.args.getlist("run")
        if not 0 < len(ids) <= MOST_TOTALS:
            raise QueryError(where="run", expected=f"1 to {MOST_TOTALS} of them", got=str(len(ids)))
        found, left = totals_for(parts.reader, ids, caller.tenant, _until(timer))
        return _answer({"success": True, "data": found, "meta": {"left": left}})

    def spread() -> Response:
        caller = parts.access.authorize(request, RUNS_READ)
        try:
            asked = RunsQuery.model_validate(request.args.to_dict())
        except ValidationError as error:
            return invalid_query(error)
        now = parts.clock()
        query = RunQuery(
            tenant=caller.tenant,
            workflow_id=asked.workflowId,
            status=asked.status,
            since=asked.since_ns(now),
            limit=MAX_LIMIT,
            stuck_before=asked.stuck_ns(now),
        )
        found, partial = histogram_for(parts.reader, query, _until(timer))
        answer = _answer({"success": True, "data": found, "meta": {"partial": partial}})
        answer.headers.extend(note_header(PARTIAL, partial))
        return answer

    pages.add_url_rule("/pages/totals", "totals", totals)
    pages.add_url_rule("/pages/spread", "spread", spread)
    app.register_blueprint(pages)


def totals_for(
    reader: TraceReader, ids: list[str], tenant: str, in_time: Callable[[], bool]
) -> tuple[dict[str, Totals], list[str]]:
    """The totals of runs by id, and the ids that were not looked at any more. Runs that cannot be read are left out."""
    found: dict[str, Totals] = {}
    for position, run_id in enumerate(ids):
        if position and not in_time():
            return found, ids[position:]
        with suppress(NotFound, TraceIncomplete):
            found[run_id] = totals_of(Run.from_json(reader.document(run_id, tenant).text))
    return found, []


def totals_of(run: Run) -> Totals:
    """Steps, tokens and cost of a run."""
    usages = [usage for step in run.steps if step.type == "agent" and (usage := read_usage(step.output)) is not None]
    totals = Totals(len(run.steps))
    prompts = [usage.prompt_tokens for usage in usages if usage.prompt_tokens >= 0]
    completions = [usage.completion_tokens for usage in usages if usage.completion_tokens >= 0]
    costs = [usage.estimated_cost_usd for usage in usages if usage.estimated_cost_usd >= 0]
    if prompts or completions:
        totals.input_tokens, totals.output_tokens = sum(prompts), sum(completions)
    if costs:
        totals.cost_usd = sum(costs)
    return totals


def histogram_for(reader: TraceReader, query: RunQuery, in_time: Callable[[], bool]) -> tuple[RunHistogram, list[str]]:
    """The newest runs of a query as a ``Spread``, and what the backend could not look at."""
    spread = RunHistogram((*RUN_STATUSES, "other"), [], [], 0, [], whole=False)
    places = {name: place for place, name in enumerate(RUN_STATUSES)}
    workflows: set[str] = set()
    partial: dict[str, None] = {}
    seen = 0
    while True:
        page = reader.search(query)
        partial.update(dict.fromkeys(page.partial))
        for item in page.items:
            run = _summary_of(item)
            begun = _time_of(run.started_at) or _time_of(run.created_at)
            if begun is None:
                spread.undated += 1
            else:
                spread.times.append(begun // MILLISECOND)
                known = isinstance(run.status, str)
                spread.statuses.append(places.get(run.status, len(RUN_STATUSES)) if known else len(RUN_STATUSES))
            if isinstance(run.workflow_id, str) and len(workflows) < MOST_WORKFLOWS:
                workflows.add(run.workflow_id)
        seen += len(page.items)
        spread.whole = page.cursor is None
        if page.cursor is None or seen >= MOST_COUNTED or not in_time():
            break
        query = replace(query, cursor=page.cursor)
    spread.workflows = sorted(workflows)
    return spread, list(partial)


def _summary_of(item: bytes) -> _Summary:
    """An item of a list; one that holds escapes which no text can have counts, and tells nothing more."""
    try:
        return _read_summary(item)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Summary("")


_read_summary = msgspec.json.Decoder(_Summary).decode
_encode = msgspec.json.Encoder().encode


def _time_of(value: object) -> int | None:
    return parse_ns(value) if isinstance(value, str) else None


def _until(timer: Callable[[], float]) -> Callable[[], bool]:
    end = timer() + SECONDS
    return lambda: timer() < end


def _answer(body: object) -> Response:
    return Response(_encode(body), content_type=JSON)
