"""The canary: a run that has whatever backends are known to lose, and that no alert or bill counts; no I/O."""

from __future__ import annotations

import json
from typing import Any, Final

from runspan.model.run import Run
from runspan.model.timestamps import SECOND, canonical_text

CANARY: Final = "runspan-canary"
"""Its workflow and its service name, by which dashboards and sampling rules leave it out."""

STEPS: Final = 300
_LINE: Final = 'Grüße an 株式会社さくら商事 — 💥 \u0000 \\ " {} '


def canary(run_id: str, ended: int) -> Run:
    """A completed run of ``STEPS`` steps that ended then, nanoseconds since 1970.

    It has values over the 2048 bytes at which Tempo cuts, the cut inside of a character; steps of no length and without
    times; numbers, white space and repeated keys that a parser would lose; and more spans than fit into one answer of
    a store that stops at a few hundred. Nothing in it failed and it used no tokens.
    """
    ended -= ended % 1_000_000
    began = ended - STEPS * SECOND // 10 - SECOND
    steps = ",".join(_step(number, began + number * SECOND // 10) for number in range(STEPS))
    head = {
        "id": run_id,
        "workflowId": CANARY,
        "status": "completed",
        "triggerType": "manual",
        "startedAt": canonical_text(began),
        "completedAt": canonical_text(ended),
        "durationMs": (ended - began) // 1_000_000,
    }
    lines = _text({"lines": _LINE * 300})
    payload = f'{{"text": {lines}, "total": 12.10, "large": 1e400, "large": 2, "none": null}}'
    text = _text(head)[:-1] + f',"input":{payload},"output":null,"steps":[{steps}]' + "}"
    return Run.from_json(text.encode())


def _step(number: int, began: int) -> str:
    step: dict[str, Any] = {"id": f"step-{number % 50}", "name": f"Schritt {number} ✓", "type": "transform"}
    times = {"startedAt": canonical_text(began), "completedAt": canonical_text(began + SECOND)}
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
