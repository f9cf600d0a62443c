"""Histories of runs: the documents of one run in an engine's log, from before its start to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from runspan import Run, encode
from runspan.codec.fields import REVISION
from runspan.model.span import Span
from runspan.model.timestamps import MILLISECOND, SECOND, canonical_text

Members = dict[str, Any]

STAGE_COUNT: Final = 10
"""The number of documents in a history."""


@dataclass(frozen=True)
class Observation:
    """A document and when it was observed, in nanoseconds since 1970."""

    run: Run
    at: int

    def spans(self, tenant: str) -> list[Span]:
        """Return the spans of the document."""
        return encode(self.run, tenant=tenant, observed_at=self.at)


def run_history(
    run_id: str, created: int, ending: str = "completed", *, second: int = SECOND, **members: Any
) -> list[Observation]:
    """Return a run observed every second: pending, running, a step retried twice, suspended, running, ended.

    Two steps end between the first snapshots. The retried step lists its attempts one by one. ``members`` are those of
    the run. ``second`` is how many nanoseconds a second takes: steps of a slow history are shown as points.
    """
    start = created + 500 * MILLISECOND
    fetch = _step("fetch", "action", start, "completed", 300, output={"rows": [1, 2.50, None]})
    check = _step("check", "condition", start + 100 * MILLISECOND, "skipped", 0)
    charge = {"id": "charge", "name": "Charge Card", "type": "stripe", "retryPolicy": {"maxAttempts": 3}}
    charge["startedAt"] = canonical_text(start + second)
    tries = [
        {
            "attempt": number,
            "status": "failed",
            "startedAt": canonical_text(start + number * second),
            "completedAt": canonical_text(start + number * second + 700 * MILLISECOND),
            "error": {"code": f"TIMEOUT_{number}", "message": "no answer"},
        }
        for number in (1, 2)
    ]
    approval = _step("approve", "approval", start + 4 * second, "running")
    approved = _step("approve", "approval", start + 4 * second, "completed", 1500, output={"approved": True})
    done = charge | {"status": "completed", "attempt": 3, "attempts": [*tries, _third_try(start, second)]}
    done |= {"completedAt": canonical_text(start + 3 * second + 900 * MILLISECOND), "durationMs": 2900}
    notify = _step("notify", "slack", start + 6 * second, "running", input={"text": "done"})
    notified = _step("notify", "slack", start + 6 * second, "completed", 800, input={"text": "done"}, output=None)
    running = {"status": "running", "startedAt": canonical_text(start)}
    stages: list[Members] = [
        {"status": "pending", "steps": []},
        running | {"steps": [fetch | {"status": "running", "completedAt": ..., "durationMs": ..., "output": ...}]},
        running | {"steps": [fetch, check, charge | {"status": "running"}]},
        running | {"steps": [fetch, check, charge | {"status": "retrying", "attempt": 1, "attempts": tries[:1]}]},
        running | {"steps": [fetch, check, charge | {"status": "retrying", "attempt": 2, "attempts": tries}]},
        running | {"steps": [fetch, check, done]},
        running | {"status": "suspended", "steps": [fetch, check, done, approval]},
        running | {"status": "suspended", "steps": [fetch, check, done, approval]},
        running | {"steps": [fetch, check, done, approved, notify]},
        running | {"status": ending, "steps": [fetch, check, done, approved, notified]},
    ]
    stages[-1] |= {"completedAt": canonical_text(start + 7 * second), "durationMs": 7000, "output": {"sent": 1}}
    if ending in ("failed", "timed_out"):
        stages[-1]["error"] = {"code": "GATEWAY", "message": "down", "step": "notify"}
    return [
        Observation(_run(run_id, created, stage | members), created + (number + 1) * second)
        for number, stage in enumerate(stages)
    ]


def is_revision_span(span: Span) -> bool:
    """Return whether the span is a revision span."""
    return REVISION in span.attributes()


def _third_try(start: int, second: int) -> Members:
    began, ended = start + 3 * second, start + 3 * second + 900 * MILLISECOND
    times = {"startedAt": canonical_text(began), "completedAt": canonical_text(ended)}
    return {"attempt": 3, "status": "completed"} | times


def _step(name: str, kind: str, start: int, status: str, ms: int | None = None, **members: Any) -> Members:
    step: Members = {"id": name, "name": name.title(), "type": kind, "status": status}
    step["startedAt"] = canonical_text(start)
    if ms is not None:
        step |= {"completedAt": canonical_text(start + ms * MILLISECOND), "durationMs": ms}
    return step | members


def _run(run_id: str, created: int, members: Members) -> Run:
    document = {"id": run_id, "workflowId": "wf_live", "triggerType": "api", "input": {"of": run_id}, **members}
    document["createdAt"] = canonical_text(created)
    return Run.from_dict(_present(document))


def _present(value: Any) -> Any:
    """Return the value without the members that are ``...``."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not ...}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
