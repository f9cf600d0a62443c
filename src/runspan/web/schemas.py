"""Schemas of queries and responses: the former are validated, both are documented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from runspan.codec.full_text import MAX_TEXT, MIN_TEXT
from runspan.contracts import (
    CURSOR_PATTERN,
    DEFAULT_LIMIT,
    DEFAULT_STATS_LIMIT,
    MAX_LIMIT,
    MAX_STATS_LIMIT,
    STATS_DIMENSIONS,
    Cursor,
    Order,
    RunQuery,
    StatsDimension,
    StatsQuery,
)
from runspan.errors import QueryError
from runspan.model.document import MAX_RUN_ID_BYTES, RUN_STATUSES
from runspan.model.timestamps import MOMENT_FORMS, MOMENT_PATTERN, UNITS, parse_moment

_STATUS = "|".join(RUN_STATUSES)
_STATUSES = f"^({_STATUS})(,({_STATUS}))*$"

_SINCE = r"^[1-9][0-9]{0,5}[mhd]$"
_LONG = r"^[0-9]{1,9}(\.[0-9]{1,3})?[smhd]$"
_DURATION = r"^[1-9][0-9]{0,8}[smhd]$"


def _digits(value: object) -> object:
    """Accept digits only: ``int`` would also accept ``1_0``, `` 5`` and ``5.0``."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError("should be an integer of at most 9 digits")
    return value


def _without_null(schema: dict[str, Any]) -> None:
    """Document an optional parameter as what it is if it is sent: a query string has no null."""
    for parameter in schema["properties"].values():
        if "anyOf" in parameter:
            sent, _ = parameter.pop("anyOf")
            parameter.update(sent)
            del parameter["default"]


_QUERY = ConfigDict(json_schema_extra=_without_null)


def _moment(name: str, description: str) -> Any:
    """Return an optional parameter that is a time."""
    return Field(
        None,
        alias=name,
        description=f"{description}: `2026-11-27T09:00:00Z`, `2026-11-27` (in UTC), or a duration before now, `24h`. "
        f"An extension of the platform's API; a response that took it into account repeats it in `meta.{name}`.",
        json_schema_extra={"pattern": MOMENT_PATTERN},  # ``parse_moment`` checks it, with a better message
    )


def _read_moment(name: str, text: str | None, now: int) -> int | None:
    if text is None:
        return None
    moment = parse_moment(text, now)
    if moment is None:
        raise QueryError(where=name, expected=MOMENT_FORMS, got=repr(text[:60]))
    return moment


def _text(description: str, **schema: Any) -> Any:
    """Return an optional parameter that is a text."""
    return Field(
        None,
        min_length=1,
        description=f"{description} An extension of the platform's API; see `stuckAfter`.",
        **schema,
    )


_PLATFORM_PARAMETERS = {"workflowId", "status", "since", "limit", "cursor"}


class RunsQuery(BaseModel):
    """Which runs to list. Unknown parameters are ignored: clients add some to bypass caches."""

    model_config = _QUERY

    workflowId: str | None = Field(None, description="Only runs of this workflow.")
    status: str | None = Field(
        None, pattern=_STATUSES, description="Only runs in this status, or in one of several: `failed,timed_out`."
    )
    since: str | None = Field(None, pattern=_SINCE, description="Only runs that started this long ago or less: `24h`.")
    limit: Annotated[int, BeforeValidator(_digits)] = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    cursor: str | None = Field(
        None,
        description="`meta.cursor` of the previous page: a time, duration or cost and a run id, in base64. Any other "
        "text is refused, and a cursor of a list with another `sort`.",
        json_schema_extra={"pattern": CURSOR_PATTERN},  # ``Cursor.parse`` checks it, with a better message
    )
    stuckAfter: str | None = Field(
        None,
        pattern=_DURATION,
        description="Only pending or running runs whose next heartbeat is overdue by more than this: `15m`, `90s`. It "
        "is due 30 seconds after the last observation, or after a sixteenth of the run's age then. "
        "Suspended runs are waiting and never included. An extension of the platform's API; a response that took it "
        "into account repeats it in `meta.stuckAfter`.",
    )
    from_: str | None = _moment("from", "Only runs that started at this time or later")
    to: str | None = _moment("to", "Only runs that started before this time")
    endedFrom: str | None = _moment(
        "endedFrom",
        "Only runs that ended at this time or later, whenever they started; the list is sorted by start all the same",
    )
    endedTo: str | None = _moment("endedTo", "Only runs that ended before this time")
    triggerType: str | None = _text("Only runs with this `triggerType`.")
    errorCode: str | None = _text("Only runs whose `error` has this `code`.")
    minDuration: str | None = Field(
        None,
        pattern=_LONG,
        description="Only runs that took this long or longer: `90s`, `5m`, `1h`. That is `durationMs`, else the time "
        "from `startedAt` to `completedAt`. An extension of the platform's API; see `stuckAfter`.",
    )
    model: str | None = _text("Only runs with a step that used this model.")
    stepType: str | None = _text("Only runs with a step of this type.")
    q: str | None = Field(
        None,
        description=f"Only runs that contain this text, of {MIN_TEXT} to {MAX_TEXT} characters, in upper or lower "
        "case: in the id or the workflow of the run, in the id, name or type of a step, or in a string, number or key "
        "of an input, output, error, retry policy or member that the platform does not document. Strings are compared "
        "as they read, without JSON escapes, and by Unicode's case folding; numbers as they are written. "
        "`meta.matches` has where each run contains it. An extension of the platform's API; see `stuckAfter`.",
    )
    sort: Order | None = Field(
        None,
        description="Sort by `start`, the default, `duration`, or estimated `cost`: the highest first, and runs "
        "without one last. The next pages need the same value. An extension of the platform's API; see `stuckAfter`.",
    )

    def run_query(self, tenant: str, now: int, *, limit: int, cursor: Cursor | None = None) -> RunQuery:
        """Return the query of a backend. ``now`` is the time in nanoseconds since 1970 that durations count back from.

        ``limit`` and ``cursor`` are the caller's. Raises QueryError if the parameters exclude each other.
        """
        starts = (_time_before(now, self.since), _read_moment("from", self.from_, now))
        return RunQuery(
            tenant=tenant,
            workflow_id=self.workflowId,
            status=None if self.status is None else tuple(self.status.split(",")),
            since=max((start for start in starts if start is not None), default=None),
            until=_read_moment("to", self.to, now),
            limit=limit,
            cursor=cursor,
            stuck_before=_time_before(now, self.stuckAfter),
            ended_since=_read_moment("endedFrom", self.endedFrom, now),
            ended_until=_read_moment("endedTo", self.endedTo, now),
            trigger=self.triggerType,
            error_code=self.errorCode,
            min_duration=None if self.minDuration is None else _nanoseconds(self.minDuration),
            model=self.model,
            step_type=self.stepType,
            text=self.q,
            order=self.sort or "start",
        )

    def extensions(self) -> dict[str, Any]:
        """Return the parameters that were sent of those which the platform's API does not have."""
        return self.model_dump(exclude=_PLATFORM_PARAMETERS, exclude_none=True, by_alias=True)


_DIMENSIONS = "|".join(STATS_DIMENSIONS)
_STATS_HOURS = "Runs count where their start is, in whole hours of UTC: `meta.from` and `meta.to` tell which."


class StatsParameters(BaseModel):
    """The runs that statistics are of, and their groups. Unknown parameters are ignored."""

    model_config = _QUERY

    workflowId: str | None = Field(None, description="Only runs of this workflow.")
    from_: str | None = Field(
        None,
        alias="from",
        description=f"Only runs that started in the hour of this time or later: {MOMENT_FORMS}. {_STATS_HOURS}",
        json_schema_extra={"pattern": MOMENT_PATTERN},
    )
    to: str | None = Field(
        None,
        description="Only runs that started before the end of the hour before this time. Days and hours end with the "
        "current one without it.",
        json_schema_extra={"pattern": MOMENT_PATTERN},
    )
    groupBy: str | None = Field(
        None,
        pattern=f"^({_DIMENSIONS})(,({_DIMENSIONS}))*$",
        description="The groups, separated by commas: `workflow`, one of `day` and `hour`, and one of `model`, `step` "
        "and `error`. Without it all runs are one group. Groups without runs are left out.",
    )
    timeZone: str = Field(
        "UTC",
        pattern="^[A-Za-z0-9_+/-]{1,64}$",
        description="The zone that days are of, as the IANA database calls it: `Europe/Berlin`. A day of a zone that "
        "is not whole hours from UTC begins with the hour of its midnight.",
    )
    limit: Annotated[int, BeforeValidator(_digits)] = Field(DEFAULT_STATS_LIMIT, ge=1, le=MAX_STATS_LIMIT)

    def stats_query(self, tenant: str, now: int) -> StatsQuery:
        """Return the query of a backend; see ``RunsQuery.run_query``."""
        by = tuple(cast("list[StatsDimension]", self.groupBy.split(","))) if self.groupBy else ()
        until = _read_moment("to", self.to, now)
        return StatsQuery(
            tenant=tenant,
            workflow_id=self.workflowId,
            since=_read_moment("from", self.from_, now),
            until=now if until is None and not {"day", "hour"}.isdisjoint(by) else until,
            group_by=by,
            time_zone=self.timeZone,
            limit=self.limit,
        )


def _time_before(now: int, duration: str | None) -> int | None:
    return None if duration is None else max(0, now - _nanoseconds(duration))


def _nanoseconds(duration: str) -> int:
    return int(Decimal(duration[:-1]) * UNITS[duration[-1]])


class RunSummaryBody(BaseModel):
    """A run without its steps and payloads. Members that the document lacks are omitted."""

    id: str = Field(min_length=1, max_length=MAX_RUN_ID_BYTES, description=f"1 to {MAX_RUN_ID_BYTES} bytes in UTF-8.")
    workflowId: Any = None
    status: Any = None
    triggerType: Any = None
    startedAt: Any = None
    completedAt: Any = None
    durationMs: Any = None
    error: Any = None
    createdAt: Any = None


class RunDocument(RunSummaryBody):
    """A run document, as it was sent in."""

    model_config = ConfigDict(extra="allow")

    status: Any = Field(None, description="One of the seven statuses; others are preserved too.")
    input: Any = None
    output: Any = None
    steps: Any = None


def headers_of(descriptions: Mapping[str, str]) -> ConfigDict:
    """Return the configuration of a response body with the OpenAPI description of the response's optional headers."""
    schema = {"type": "string"}
    headers = {name: {"description": text, "schema": schema} for name, text in descriptions.items()}
    return ConfigDict(openapi_extra={"headers": headers})  # type: ignore[typeddict-unknown-key]


class RunResponse(BaseModel):
    model_config = headers_of(
        {
            "ETag": "Of this document. Weak if the client takes a content coding.",
            "X-Runspan-Incomplete": "What is missing of a newer revision. Absent if this is the newest one.",
            "X-Runspan-Conflict": "SHA-256 digests in hex, separated by `; `, of other documents that were sent as the "
            "same revision, at least their first 32 digits. Absent if there is none.",
            "X-Runspan-Observed-At": "When the run was last observed, as RFC 3339 text. Absent if it has ended.",
        }
    )

    success: Literal[True]
    data: RunDocument


class MatchBody(BaseModel):
    """The first place where a run contains the text that was searched for: a step, if one contains it."""

    member: str = Field(description="The member of the step, or of the run, that contains it.")
    snippet: str = Field(
        description="What is around it, about 120 characters on one line. Payloads are JSON without escapes."
    )
    start: int = Field(description="Where the text begins in the snippet, in characters (code points).")
    length: int = Field(description="Its length in characters.")
    stepIndex: int | None = Field(
        default=None, description="The position of the step in the document, from 0. Absent outside of steps."
    )
    stepId: str | None = Field(default=None, description="The id of the step.")
    execution: int | None = Field(default=None, description="Which execution of this step id it is, from 1.")


_REPEATED: Any = Field(default=None, description="The parameter of that name, if it was sent.")


class Meta(BaseModel):
    """Where a page ends, and how complete it is."""

    cursor: str | None = Field(description="The start of the next page; null on the last one.")
    hasMore: bool
    partial: list[str] | None = Field(
        default=None,
        description="What the backend could not search, and which runs are left out since their list item is damaged, "
        "older than their newest revision, or one of several documents sent as one revision; one line each.",
    )
    stuckAfter: str | None = _REPEATED
    from_: str | None = Field(default=None, alias="from", description=_REPEATED.description)
    to: str | None = _REPEATED
    endedFrom: str | None = _REPEATED
    endedTo: str | None = _REPEATED
    triggerType: str | None = _REPEATED
    errorCode: str | None = _REPEATED
    minDuration: str | None = _REPEATED
    model: str | None = _REPEATED
    stepType: str | None = _REPEATED
    q: str | None = _REPEATED
    sort: str | None = _REPEATED
    matches: dict[str, MatchBody] | None = Field(
        default=None, description="Where each run of the page contains the text `q`, by run id. Absent without `q`."
    )


class RunListResponse(BaseModel):
    model_config = headers_of({"X-Runspan-Partial": "The lines of `meta.partial`. Absent if there is none."})

    success: Literal[True]
    data: list[RunSummaryBody]
    meta: Meta


class DurationStatsBody(BaseModel):
    """Durations in milliseconds."""

    count: int = Field(description="How many ended runs, or executions of the step, have a duration.")
    mean: float
    p50: float | None = Field(
        None, description="Within 1 %. Absent for steps, for the days and hours of all workflows, and without any run."
    )
    p95: float | None = Field(None, description="As `p50`.")


class UsageStatsBody(BaseModel):
    """What agents used of models."""

    steps: int
    inputTokens: int
    outputTokens: int
    costUsd: float = Field(description="Estimated by the agents.")


class FailedRunBody(BaseModel):
    """The newest run among failures."""

    id: str
    time: str = Field(description="Its start, else when it was created.")
    errorMessage: str | None = Field(None, description="The beginning of its error's message.")


class StatsGroupBody(BaseModel):
    """The statistics of a group. It has the members that identify the group and those that its kind has."""

    workflowId: str | None = Field(None, description="By workflow. Null for runs without one.")
    from_: str | None = Field(None, alias="from", description="By day or hour: its beginning.")
    to: str | None = Field(None, description="By day or hour: its end, excluded.")
    model: str | None = Field(None, description="By model. Empty for steps that do not name it.")
    step: str | None = Field(None, description="By step: its name, or its id without one.")
    stepType: str | None = Field(None, description="By step.")
    errorCode: str | None = Field(None, description="By error. Empty for runs that failed without a code.")
    failedStep: str | None = Field(None, description="By error: the first failed step of the run; empty without one.")
    runs: int | None = Field(None, description="Of whole runs, and by error.")
    statuses: dict[str, int] | None = Field(
        None,
        description="Of whole runs: how many are in each status; `other` for statuses that are not the platform's.",
    )
    executions: int | None = Field(None, description="By step. Skipped and pending ones do not count.")
    failed: int | None = Field(None, description="By step: executions that failed.")
    durationMs: DurationStatsBody | None = Field(None, description="Of whole runs, and by step.")
    usage: UsageStatsBody | None = Field(None, description="Of whole runs, and by model.")
    newestFailure: FailedRunBody | None = Field(None, description="By workflow alone, and by error.")


class StatsMeta(BaseModel):
    """Which runs the statistics are of, and how complete they are."""

    from_: str | None = Field(
        alias="from", description="The beginning of the hours that are covered; null: from the first run on."
    )
    to: str | None = Field(description="Their end, excluded; null: up to the last run.")
    hasMore: bool = Field(description="Whether there are more groups than `limit`, each smaller than these.")
    partial: list[str] | None = Field(default=None, description="What is missing, one line each.")


class StatsResponse(BaseModel):
    model_config = headers_of({"X-Runspan-Partial": "The lines of `meta.partial`. Absent if there is none."})

    success: Literal[True]
    data: list[StatsGroupBody] = Field(
        description="Days and hours in their order; in each the groups with the highest number of runs, cost, or total "
        "duration of a step first."
    )
    meta: StatsMeta


class StoredRun(BaseModel):
    """The result of storing a run document."""

    id: str
    traceId: str
    new: bool | None = Field(
        None,
        description="False if exactly this document was stored before, or if it is an older state of a finished run. "
        "Absent if the document was forwarded, since the backend has not stored it yet.",
    )


class StoredRunResponse(BaseModel):
    success: Literal[True] = True
    data: StoredRun


class TraceQuery(BaseModel):
    """What the links to a trace open. Unknown parameters are ignored."""

    model_config = _QUERY

    step: Annotated[int, BeforeValidator(_digits)] | None = Field(
        None, ge=0, lt=10**9, description="The position of a step in the document, from 0: the links open its span."
    )


class TraceLink(BaseModel):
    """A trace id, and links to the trace in other tools."""

    traceId: str
    spanId: str | None = Field(
        description="The span of the step, which the links open. Null without `step`, for a step that has not ended, "
        "and if spans of the run are missing."
    )
    url: str | None = Field(description="The first of the links; null if there is none.")
    links: dict[str, str] = Field(
        description="Links by tool: `jaeger`, `grafana`, or `trace` for any other. Empty if none is configured."
    )


class TraceLinkResponse(BaseModel):
    success: Literal[True] = True
    data: TraceLink


class HealthBody(BaseModel):
    status: Literal["ok"] = "ok"


class ReadinessBody(HealthBody):
    """The state of the server and its backend."""

    backend: str | None = Field(None, description="The name of the backend.")
