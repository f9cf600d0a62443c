"""Run documents of this moment, and how they are sent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from support.cli import runspan

REPLAY = "x-runspan-replay=true"
"""The header of requests whose spans are stored and not counted, as ``OTEL_EXPORTER_OTLP_HEADERS`` has it."""


def moment(ago: float) -> str:
    """The time so many seconds ago, as documents write it."""
    at = datetime.now(UTC) - timedelta(seconds=ago)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def step(name: str, status: str = "completed", *, ago: float = 1.0, **more: Any) -> dict[str, Any]:
    """A step that ended so many seconds ago, after half a second."""
    failed = {"error": {"code": "CARD_DECLINED", "message": "the card was declined"}} if status == "failed" else {}
    return {
        "id": name,
        "name": name.title(),
        "type": "action",
        "status": status,
        "startedAt": moment(ago + 0.5),
        "completedAt": moment(ago),
        "durationMs": 500,
        **failed,
        **more,
    }


def document(
    run_id: str, workflow: str, status: str = "completed", steps: Iterable[dict[str, Any]] = (), *, ago: float = 1.0
) -> dict[str, Any]:
    """A run that ended so many seconds ago, after ten. Without an end when its status says that it goes on."""
    ended = status in {"completed", "failed", "cancelled", "timed_out"}
    times = {"completedAt": moment(ago), "durationMs": 10_000} if ended else {}
    head = {"id": run_id, "workflowId": workflow, "status": status, "startedAt": moment(ago + 10)}
    return {**head, **times, "steps": list(steps) or [step("work", ago=ago)]}


def send(
    directory: Path,
    documents: Iterable[dict[str, Any]],
    otlp: str,
    *more: object,
    headers: str = "",
    env: Mapping[str, str] | None = None,
) -> None:
    """Sends documents with ``runspan export``, which must be told that every one of them was taken."""
    file = directory / f"{time.time_ns()}.ndjson"
    file.write_text("".join(json.dumps(found) + "\n" for found in documents))
    variables = {"OTEL_EXPORTER_OTLP_HEADERS": headers} if headers else {}
    runspan("export", file, "--endpoint", otlp, "--quiet", *more, **variables, **(env or {}))


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """How many seconds it took until it held; a failure when it takes longer."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - start
