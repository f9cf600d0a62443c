"""The canary: a run with everything that backends are known to lose, and that no alert counts; no I/O."""

from __future__ import annotations

import json
from typing import Any, Final

from runspan.model.document import Run
from runspan.model.timestamps import SECOND, canonical_text

CANARY: Final = "runspan-canary"
"""Its workflow and service name, by which dashboards and sampling rules can exclude it."""

STEPS: Final = 300
_LINE: Final = 'Grüße an 株式会社さくら商事 — 💥 \u0000 \\ " {} '


def canary(run_id: str, ended: int) -> Run:
    """Return a completed run of ``STEPS`` steps. ended: In nanoseconds since 1970.

    It has values longer than the 2048 bytes at which Tempo cuts, with the cut inside a character; steps of zero length
    and without times; numbers, white space and repeated keys that a parser would lose; and more spans than a store
    that returns a few hundred at once. No step failed, and no tokens were used.
    """
    ended -= ended % 1_000_000
    started = ended - STEPS * SECOND // 10 - SECOND
    steps = ",".join(_step(number, started + number * SECOND // 10) for number in range(STEPS))
    members = {
        "id": run_id,
        "workflowId": CANARY,
        "status": "completed",
        "triggerType": "manual",
        "startedAt": canonical_text(started),
        "completedAt": canonical_text(ended),
        "durationMs": (ended - started) // 1_000_000,
    }
    lines = _text({"lines": _LINE * 300})
    payload = f'{{"text": {lines}, "total": 12.10, "large": 1e400, "large": 2, "none": null}}'
    text = _text(members)[:-1] + f',"input":{payload},"output":null,"steps":[{steps}]' + "}"
    return Run.from_json(text.encode())


def _step(number: int, started: int) -> str:
    step: dict[str, Any] = {"id": f"step-{number % 50}", "name": f"Schritt {number} ✓", "type": "transform"}
    times = {"startedAt": canonical_text(started), "completedAt": canonical_text(started + SECOND)}
    if number % 50 == 7:
        step |= {"status": "completed", **times, "completedAt": times["startedAt"], "durationMs": 0}
    elif number % 50 == 11:
        step |= {"status": "skipped", "type": "condition", "output": None}
    else:
        step |= {"status": "completed", **times, "durationMs": 1000, "output": {"n": number, "note": _LINE}}
    if number % 50 == 13:
        step["output"] = {"text": _LINE * 120}
    return _text(step)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
