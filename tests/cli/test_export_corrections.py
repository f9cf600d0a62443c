"""``runspan export --correct``: runs that have changed after their end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from runspan import Run, decode
from runspan.codec.fields import REVISION, ROOT_REVISION
from runspan.otlp.json import read_json
from support.cli import runspan, server


def document(**members: Any) -> bytes:
    times = {"startedAt": "2026-01-15T09:00:01.000Z", "completedAt": "2026-01-15T09:00:02.000Z"}
    steps = [{"id": "a", "status": "completed", **times, "output": 1}]
    return Run.from_dict({"id": "r", "status": "completed", **times, "steps": steps, **members}).text


def get(url: str) -> httpx.Response:
    return httpx.get(f"{url}/api/v1/runs/r", trust_env=False)


def test_a_correction_ranks_above_the_end(tmp_path: Path) -> None:
    """Without the option the two ends are a conflict; a correction ends it, and a later one ranks above it."""
    with server(tmp_path / "data") as (url, _):
        for output in (1, 2):
            runspan("export", "-", "--endpoint", url, stdin=document(output=output))
        assert get(url).json()["data"]["output"] == 2
        assert "x-runspan-conflict" in get(url).headers
        for output in (3, 1):
            result = runspan("export", "-", "--correct", "--endpoint", url, stdin=document(output=output))
            assert "1 run" in result.stderr
            assert get(url).json()["data"] == json.loads(document(output=output))
            assert "x-runspan-conflict" not in get(url).headers
        runspan("export", "-", "--endpoint", url, stdin=document(output=2))
        assert get(url).json()["data"]["output"] == 1


def test_a_dry_run_prints_the_revision_of_the_correction() -> None:
    """It is above that of a run span."""
    result = runspan("export", "-", "--correct", "--dry-run", stdin=document(output=1))
    (line,) = result.stdout_bytes.splitlines()
    spans = read_json(line).spans
    assert decode(spans).text == document(output=1)
    (revision,) = [span.attributes()[REVISION] for span in spans if REVISION in span.attributes()]
    assert isinstance(revision, int)
    assert revision > ROOT_REVISION


def test_watch_corrects_by_itself(tmp_path: Path) -> None:
    """The option is refused together with it."""
    result = runspan("export", "--watch", tmp_path, "--correct", "--endpoint", "http://127.0.0.1:1", code=2)
    assert "--watch: expected one folder and no other input or output, got --correct" in result.stderr
