"""Run documents that ended just now: the samples moved to today, and one that has everything a dashboard shows."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

from runspan import Run
from runspan.model.timestamps import parse_ns
from support.cli import SAMPLES

_TIME = re.compile(rb'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d))"')
_AGO = 5_000_000_000


def samples(now: int, suffix: str) -> list[bytes]:
    """The samples that have a time, each under another id, as if it had ended (or begun) five seconds before now.

    now: nanoseconds since 1970. suffix: added to every run's id.
    """
    found = [_moved(Run.from_json(file.read_bytes()), now, suffix) for file in sorted(SAMPLES.glob("*.json"))]
    return [text for text in found if text]


def _moved(run: Run, now: int, suffix: str) -> bytes:
    envelope = run.envelope
    ends = (envelope.completed_at, envelope.started_at, envelope.created_at)
    last = next((ns for value in ends if type(value) is str and (ns := parse_ns(value))), None)
    if last is None:
        return b""
    text = _TIME.sub(lambda found: _later(found, now - _AGO - last), run.text)
    return text.replace(json.dumps(run.id).encode(), json.dumps(run.id + suffix).encode(), 1)


def _later(found: re.Match[bytes], shift: int) -> bytes:
    ns = parse_ns(found[1].decode())
    return found[0] if ns is None else b'"%s"' % stamp(ns + shift).encode()


def stamp(ns: int) -> str:
    """RFC 3339 in milliseconds."""
    return datetime.fromtimestamp(ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def whole(now: int, run_id: str = "run_whole", padding: int = 0) -> bytes:
    """A failed run with an agent step, a step whose attempts are listed one by one, and a skipped step.

    padding: bytes of its input.
    """
    at = [stamp(now - seconds * 1_000_000_000) for seconds in (12, 11, 9, 7, 6)]
    error = {"code": "RATE_LIMITED", "message": "Too many requests.", "step": "pay"}
    usage = {"promptTokens": 12_000, "completionTokens": 340, "model": "claude-sonnet-4-6", "estimatedCostUsd": 0.04}
    steps = [
        {"id": "think", "name": "Think", "type": "agent", "status": "completed", "startedAt": at[0],
         "completedAt": at[1], "output": {"result": "pay", "usage": usage}},
        {"id": "pay", "name": "Pay", "type": "stripe", "status": "failed", "startedAt": at[1], "completedAt": at[3],
         "attempt": 2, "error": error,
         "attempts": [
             {"attempt": 1, "status": "failed", "startedAt": at[1], "completedAt": at[2], "error": error},
             {"attempt": 2, "status": "failed", "startedAt": at[2], "completedAt": at[3], "error": error}]},
        {"id": "tell", "name": "Tell", "type": "slack", "status": "skipped"},
    ]  # fmt: skip
    document = {
        "id": run_id, "workflowId": "wf_whole", "status": "failed", "triggerType": "api", "startedAt": at[0],
        "completedAt": at[4], "input": "x" * padding, "error": error, "steps": steps,
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":")).encode()


def unfinished(now: int, status: str, run_id: str) -> bytes:
    """A run that began five hours ago and has not ended."""
    began = stamp(now - 5 * 3600 * 1_000_000_000)
    document = {
        "id": run_id, "workflowId": "wf_long", "status": status, "startedAt": began,
        "steps": [{"id": "ask", "name": "Ask", "type": "approval", "status": "running", "startedAt": began}],
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":")).encode()


def write(path: Path, documents: list[bytes]) -> Path:
    """The documents as NDJSON."""
    path.write_bytes(b"".join(Run.from_json(text).text + b"\n" for text in documents))
    return path
