"""What the page tests share: runs with known times, put into a store, and ways to wait for what a page shows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect

from runspan import Run
from runspan.backends.sqlite import SqliteStore

SINCE = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def agent(
    step_id: str, begun: datetime, *, tokens: tuple[int, int] = (1250, 340), cost: float = 0.0095, **members: Any
) -> dict[str, Any]:
    """An agent step that used these tokens in and out."""
    usage = {"promptTokens": tokens[0], "completionTokens": tokens[1], "totalTokens": sum(tokens)}
    usage |= {"model": "claude-sonnet-4-6", "estimatedCostUsd": cost}
    return {
        "id": step_id,
        "name": step_id.replace("-", " ").capitalize(),
        "type": "agent",
        "status": "completed",
        "startedAt": iso(begun + timedelta(milliseconds=200)),
        "completedAt": iso(begun + timedelta(milliseconds=2200)),
        "durationMs": 2000,
        "output": {"result": {"answer": 42}, "usage": usage},
    } | members


def run(run_id: str, begun: datetime, *, seconds: float = 3.5, **members: Any) -> dict[str, Any]:
    """A finished run of two steps that began then."""
    document = {
        "id": run_id,
        "workflowId": "wf_invoices",
        "status": "completed",
        "triggerType": "webhook",
        "startedAt": iso(begun),
        "completedAt": iso(begun + timedelta(seconds=seconds)),
        "durationMs": int(seconds * 1000),
        "output": {"of": run_id},
        "steps": [
            {"id": "fetch", "name": "Fetch", "type": "action", "status": "completed", "output": {"of": run_id}},
            {"id": "send", "name": "Send", "type": "email", "status": "skipped"},
        ],
    } | members
    return {name: value for name, value in document.items() if value is not ...}


def unfinished(run_id: str, begun: datetime, status: str = "running", **members: Any) -> dict[str, Any]:
    """A run that goes on."""
    return run(run_id, begun, status=status, **{"completedAt": ..., "durationMs": ...} | members)


def fill(data: Path, documents: Iterable[dict[str, Any]], tenant: str = "") -> None:
    """Puts documents into the store of a data directory."""
    with SqliteStore(data) as store:
        for document in documents:
            store.put(Run.from_json(json.dumps(document).encode()), tenant=tenant, observed_at=time.time_ns())


def drawn(page: Page) -> Page:
    """The run page, once it has drawn its steps or says that it has none; its header is there some frames earlier."""
    steps = page.locator(".node, .timeline-row, .views > .state").filter(visible=True)
    expect(steps.first).to_be_visible(timeout=30_000)
    return page


def push(url: str, document: dict[str, Any]) -> None:
    """Sends a document to a running server."""
    answer = httpx.post(f"{url}/api/v1/runs", json=document, trust_env=False, timeout=30)
    assert answer.is_success, answer.text
