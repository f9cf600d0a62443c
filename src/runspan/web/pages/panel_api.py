"""Private routes of the runs page: totals of the listed runs, and a histogram of runs over time.

Both bound the work of a request, on every backend alike, and report how far they got. They may change together with the
pages; other clients use the API.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec
from flask import Blueprint, Response, request
from msgspec import Struct

from runspan.codec.semconv import read_usage
from runspan.contracts import MAX_LIMIT
from runspan.errors import NotFound, QueryError, TraceIncomplete
from runspan.model.document import RUN_STATUSES, Run, str_or_none, time_ns
from runspan.model.timestamps import MILLISECOND
from runspan.web.api_keys import RUNS_READ
from runspan.web.errors import JSON
from runspan.web.request import current_context
from runspan.web.run_responses import PARTIAL, note_header, query_parameters
from runspan.web.schemas import RunsQuery

MAX_TOTALS: Final = 50
"""Runs per request for totals."""
MAX_HISTOGRAM_RUNS: Final = 2000
"""Runs that one histogram covers."""
MAX_WORKFLOWS: Final = 200
MAX_SECONDS: Final = 2.0
"""Time after which a request reads no further runs."""

panel = Blueprint("panel", __name__)


class Totals(Struct, rename="camel", omit_defaults=True):
    """The number of steps of a run, and the usage of its agents. None if no step reports it."""

    steps: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


@panel.get("/pages/totals")
def totals() -> Response:
    """Return the totals by run id, and the ids that were not read in time. Unreadable runs are omitted."""
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    ids = request.args.getlist("run")
    if not 0 < len(ids) <= MAX_TOTALS:
        raise QueryError(where="run", expected=f"1 to {MAX_TOTALS} of them", got=str(len(ids)))
    end = time.monotonic() + MAX_SECONDS
    found: dict[str, Totals] = {}
    left = deque(ids)
    while left and (len(left) == len(ids) or time.monotonic() < end):
        run_id = left.popleft()
        with suppress(NotFound, TraceIncomplete):
            found[run_id] = totals_of(Run.from_json(context.reader.document(run_id, principal.tenant).text))
    return _json_response({"success": True, "data": found, "meta": {"left": list(left)}})


@panel.get("/pages/spread")
def histogram() -> Response:
    """Return the histogram of a query's newest runs, and what the backend could not search."""
    context = current_context()
    principal = context.authenticator.authorize(request.environ, RUNS_READ)
    query = query_parameters(RunsQuery, request.args.items(multi=True)).run_query(
        principal.tenant, context.clock(), limit=MAX_LIMIT
    )
    end = time.monotonic() + MAX_SECONDS
    indices = {status: index for index, status in enumerate(RUN_STATUSES)}
    times: list[int] = []
    statuses: list[int] = []
    undated = 0
    workflows: set[str] = set()
    partial: dict[str, None] = {}
    count = 0
    while True:
        page = context.reader.search(query)
        partial.update(dict.fromkeys(page.partial))
        for item in page.items:
            run = Run.from_json(item).envelope
            start = time_ns(run.started_at) or time_ns(run.created_at)
            if start is None:
                undated += 1
            else:
                times.append(start // MILLISECOND)
                statuses.append(indices.get(str_or_none(run.status) or "", len(RUN_STATUSES)))
            if isinstance(run.workflow_id, str) and len(workflows) < MAX_WORKFLOWS:
                workflows.add(run.workflow_id)
        count += len(page.items)
        if page.cursor is None or count >= MAX_HISTOGRAM_RUNS or time.monotonic() >= end:
            break
        query = replace(query, cursor=page.cursor)
    data = {
        "names": (*RUN_STATUSES, "other"),
        "times": times,  # milliseconds since 1970, newest first
        "statuses": statuses,  # of each of the times, as an index into the names
        "undated": undated,  # runs without a time
        "workflows": sorted(workflows),
        "whole": page.cursor is None,  # whether these are all runs of the query, rather than only the newest
    }
    response = _json_response({"success": True, "data": data, "meta": {"partial": list(partial)}})
    response.headers.extend(note_header(PARTIAL, list(partial)))
    return response


def totals_of(run: Run) -> Totals:
    """Return the steps, tokens and cost of a run."""
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


def _json_response(body: object) -> Response:
    return Response(msgspec.json.encode(body), content_type=JSON)
