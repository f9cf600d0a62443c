"""Run documents of chosen shape and size: wide, long, looped, large, hostile."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from web.pages.kit import SINCE, iso


def at(ms: float) -> str:
    """The document's time so many milliseconds after its start."""
    return iso(SINCE + timedelta(milliseconds=ms))


def step(step_id: str, start: float | None = None, end: float | None = None, **members: Any) -> dict[str, Any]:
    """A step that began and ended so many milliseconds after the run's start; without a start it was skipped."""
    status = "skipped" if start is None else "running" if end is None else "completed"
    found: dict[str, Any] = {"id": step_id, "name": step_id.capitalize(), "type": "action", "status": status}
    if start is not None:
        found["startedAt"] = at(start)
    if start is not None and end is not None:
        found |= {"completedAt": at(end), "durationMs": int(end - start)}
    return found | members


def document(run_id: str, steps: list[dict[str, Any]], *, status: str = "completed", **members: Any) -> dict[str, Any]:
    """A run with these steps."""
    ended = {"completedAt": at(10_000), "durationMs": 10_000} if status not in ("running", "pending") else {}
    head = {"id": run_id, "workflowId": "wf_shapes", "status": status, "triggerType": "api", "startedAt": at(0)}
    return head | ended | members | {"steps": steps}


def long_run(run_id: str, count: int) -> dict[str, Any]:
    """Steps in fours beside each other, after every fourth row one alone, and one failure in a hundred."""
    steps: list[dict[str, Any]] = []
    moment = 0
    while len(steps) < count:
        beside = 1 if len(steps) % 17 == 0 else 4
        for place in range(min(beside, count - len(steps))):
            number = len(steps)
            failed = {"status": "failed", "error": {"code": "E_ROW", "message": f"row {number} is refused"}}
            payload = {"input": {"number": number, "text": "x" * 200}, "output": {"rows": list(range(20))}}
            name = {"name": f"Step number {number}"}
            more = failed if number % 100 == 96 else {}
            steps.append(step(f"step-{number}", moment + place, moment + 400 + 37 * place, **name | payload | more))
        moment += 600
    return document(run_id, steps, completedAt=at(moment), durationMs=moment)


def loop_run(run_id: str, rounds: int, *, bad: int) -> dict[str, Any]:
    """A loop of two steps; the first fails in one round."""
    steps = [step("each", 5, rounds * 100 + 10, type="loop", name="For each row")]
    for number in range(rounds):
        failed = {"status": "failed", "error": {"message": "no"}} if number == bad else {}
        begin = 10 + number * 100
        steps.append(step("fetch", begin, begin + 40, name="Fetch row", input={"row": number}, **failed))
        steps.append(step("store", begin + 41, begin + 80, name="Store row"))
    steps.append(step("report", rounds * 100 + 20, rounds * 100 + 50))
    return document(run_id, steps, completedAt=at(rounds * 100 + 60), durationMs=rounds * 100 + 60)


def large_run(run_id: str) -> dict[str, Any]:
    """A string of 10 MB and a list of 100,000 objects in one payload, and a word at its very end."""
    output = {
        "text": "The quick brown fox.\n" * 500_000,
        "list": [{"number": number, "word": "abcdefgh"} for number in range(100_000)],
        "last": "the needle in the haystack",
    }
    return document(run_id, [step("load", 0, 900, name="Load everything", output=output)])


def retried_run(run_id: str) -> dict[str, Any]:
    """A step whose three attempts are listed one by one; the last succeeds."""
    fault = {"code": "TIMEOUT", "message": "no answer in 2 s"}
    attempts = [
        {"attempt": 1, "status": "failed", "startedAt": at(100), "completedAt": at(2100), "error": fault},
        {"attempt": 2, "status": "failed", "startedAt": at(3100), "completedAt": at(5100), "error": fault},
        {"attempt": 3, "status": "completed", "startedAt": at(7100), "completedAt": at(9100)},
    ]
    return document(run_id, [step("call", 100, 9100, name="Call the ERP", attempt=3, attempts=attempts)])


ATTACK = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2><svg onload=window.hacked=3>"
BIDI = "\u202egnp.exe \u2066safe\u2069"


def hostile_run(run_id: str) -> dict[str, Any]:
    """Markup, scripts, event handlers and direction marks wherever a document has text."""
    evil = {
        "name": ATTACK,
        "type": ATTACK,
        "input": {ATTACK: ATTACK, "__proto__": {"polluted": ATTACK}, "constructor": None},
        "output": [ATTACK, BIDI, {"runId": "javascript:window.hacked=4"}],
        "error": {"code": ATTACK, "message": ATTACK},
        "onclick": "window.hacked=5",
        ATTACK: {"x": ATTACK},
    }
    usage = {"model": ATTACK, "promptTokens": 1, "completionTokens": 2, "estimatedCostUsd": 1}
    steps = [
        step('"><script>window.hacked=6</script>', 0, 10, **evil | {"status": "failed"}),
        step("__proto__", 10, 20, name="__proto__"),
        step("constructor", 20, 30, name=BIDI, status=ATTACK),
        step("agent", 30, 40, type="agent", output={"usage": usage}),
        step("child", 40, 50, type="sub-workflow", output={"runId": "javascript:window.hacked=7"}),
        step("../..", 50, 60, name="", attempt=3),
    ]
    texts = {"workflowId": ATTACK, "triggerType": ATTACK, "parentRunId": "javascript:window.hacked=8"}
    return document(run_id, steps, status="failed", error={"code": ATTACK, "message": BIDI + ATTACK}, **texts)


EXACT_OUTPUT = (
    '{ "price":12.10,"huge":1e400,\t"power":1180591620717411303424, "zero":-0.0,"same":1,"same":2,\n'
    '  "escaped":"\\u0000 \\/ \\u00e9 \\ud800","plain":"é 😀 日本","deep":[[[[[]]]]],"empty":{ },"":null }'
)
"""A payload that a JSON parser would change in nine ways."""


def exact_run(run_id: str) -> bytes:
    """A document whose only step has EXACT_OUTPUT as its output, as text."""
    text = json.dumps(document(run_id, [step("exact", 0, 10, name="Exact", output="HERE")]))
    return text.replace('"HERE"', EXACT_OUTPUT).encode()
