"""The shapes of queries and answers: validation of the former, documentation of both."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from runspan.contracts import DEFAULT_LIMIT, MAX_LIMIT
from runspan.times import SECOND

RunStatus = Literal["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"]

_UNITS = {"m": 60 * SECOND, "h": 3600 * SECOND, "d": 86400 * SECOND}
_SINCE = r"^[1-9][0-9]{0,5}[mhd]$"


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

    def since_ns(self, now: int) -> int | None:
        """The first nanosecond that counts."""
        if self.since is None:
            return None
        return max(0, now - int(self.since[:-1]) * _UNITS[self.since[-1]])


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


class RunSummary(BaseModel):
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


class RunAnswer(BaseModel):
    success: Literal[True]
    data: RunDocument


class Meta(BaseModel):
    """cursor: where the next page begins, null at the end. partial: what the backend could not look at."""

    cursor: str | None
    hasMore: bool
    partial: list[str] | None = None


class RunsAnswer(BaseModel):
    success: Literal[True]
    data: list[RunSummary]
    meta: Meta


class StoredRun(BaseModel):
    """new: whether this document, or this revision of it, was not there before."""

    id: str
    traceId: str
    new: bool


class StoredAnswer(BaseModel):
    success: Literal[True] = True
    data: StoredRun


class TraceLink(BaseModel):
    """links: where people look at the trace, by the name of the place: ``jaeger``, ``grafana``, or ``trace`` for
    another one; empty when the server was told none. url: the first of them, null without one."""

    traceId: str
    url: str | None
    links: dict[str, str]


class TraceLinkAnswer(BaseModel):
    success: Literal[True] = True
    data: TraceLink


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(Health):
    """backend: what answered."""

    backend: str | None = None
