"""The shapes of queries and answers: validation of the former, documentation of both."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from runspan.contracts import DEFAULT_LIMIT, MAX_LIMIT
from runspan.model.timestamps import SECOND

RunStatus = Literal["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"]

_UNITS = {"s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86400 * SECOND}
_SINCE = r"^[1-9][0-9]{0,5}[mhd]$"
_STUCK = r"^[1-9][0-9]{0,8}[smhd]$"


def _digits(value: object) -> object:
    """Digits only: ``int`` alone would also take ``1_0``, `` 5`` and ``5.0``."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError(f"should be a whole number from 1 to {MAX_LIMIT}")
    return value


class RunsQuery(BaseModel):
    """Which runs to list. Parameters that are not named here are ignored: clients add some against caches."""

    workflowId: str | None = Field(None, description="Only runs of this workflow.")
    status: RunStatus | None = Field(None, description="Only runs in this status.")
    since: str | None = Field(
        None, pattern=_SINCE, description="Only runs that started in this last while: `24h`, `7d`."
    )
    limit: Annotated[int, BeforeValidator(_digits)] = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT)
    cursor: str | None = Field(None, description="`meta.cursor` of the page before.")
    stuckAfter: str | None = Field(
        None,
        pattern=_STUCK,
        description="Only runs that are pending or running and were not observed so for this while: `15m`, `90s`. "
        "Suspended runs wait and are never among them. An extension of the platform's API; an answer that took it into "
        "account says so in `meta.stuckAfter`.",
    )

    def since_ns(self, now: int) -> int | None:
        """The first nanosecond that counts."""
        return _ago(self.since, now)

    def stuck_ns(self, now: int) -> int | None:
        """Runs that were last observed before it are stuck."""
        return _ago(self.stuckAfter, now)


def _ago(length: str | None, now: int) -> int | None:
    return None if length is None else max(0, now - int(length[:-1]) * _UNITS[length[-1]])


class RunDocument(BaseModel):
    """A run document, as it was sent in."""

    model_config = ConfigDict(extra="allow")

    id: str
    workflowId: Any = None
    status: Any = Field(None, description="One of the seven statuses; others are carried too.")
    triggerType: Any = None
    startedAt: Any = None
    completedAt: Any = None
    durationMs: Any = None
    input: Any = None
    output: Any = None
    error: Any = None
    createdAt: Any = None
    steps: Any = None


class RunSummaryBody(BaseModel):
    """A run without its steps and payloads; members that the document does not have are left out."""

    id: str
    workflowId: Any = None
    status: Any = None
    triggerType: Any = None
    startedAt: Any = None
    completedAt: Any = None
    durationMs: Any = None
    error: Any = None
    createdAt: Any = None


class RunResponse(BaseModel):
    success: Literal[True]
    data: RunDocument


class Meta(BaseModel):
    """cursor: where the next page begins, null at the end. partial: what the backend could not look at.
    stuckAfter: the parameter of that name, when it was sent."""

    cursor: str | None
    hasMore: bool
    partial: list[str] | None = None
    stuckAfter: str | None = None


class RunListResponse(BaseModel):
    success: Literal[True]
    data: list[RunSummaryBody]
    meta: Meta


class StoredRun(BaseModel):
    """new: whether this document, or this revision of it, was not there before."""

    id: str
    traceId: str
    new: bool


class StoredRunResponse(BaseModel):
    success: Literal[True] = True
    data: StoredRun


class TraceLink(BaseModel):
    """links: where people look at the trace, by the name of the place: ``jaeger``, ``grafana``, or ``trace`` for
    another one; empty when the server was told none. url: the first of them, null without one."""

    traceId: str
    url: str | None
    links: dict[str, str]


class TraceLinkResponse(BaseModel):
    success: Literal[True] = True
    data: TraceLink


class HealthBody(BaseModel):
    status: Literal["ok"] = "ok"


class ReadinessBody(HealthBody):
    """backend: what answered."""

    backend: str | None = None
