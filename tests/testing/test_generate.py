"""The generator gives the same bytes for a seed, and runs like those of real life."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest

from runspan.testing import generate

COUNT = 4000
FINISHED = {"completed", "failed", "cancelled", "timed_out"}
NAIVE = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
Run = dict[str, Any]


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return list(generate(COUNT, seed=7))


@pytest.fixture(scope="module")
def runs(texts: list[bytes]) -> list[Run]:
    return [json.loads(text) for text in texts]


@pytest.fixture(scope="module")
def unfinished_runs() -> list[Run]:
    return [json.loads(text) for text in generate(COUNT, seed=7, unfinished=True)]


def at(text: str) -> datetime:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    return datetime.fromisoformat(text)


def test_same_seed_same_bytes(texts: list[bytes]) -> None:
    """Two generations from one seed are the same bytes, and a shorter one is the beginning of a longer one."""
    assert list(generate(COUNT, seed=7)) == texts
    assert list(generate(10, seed=7)) == texts[:10]


def test_the_bytes_of_a_seed_never_change() -> None:
    """The digest is pinned, so benchmarks of different days and Python versions speak of the same documents."""
    digest = sha256(b"\n".join(generate(500))).hexdigest()
    assert digest == "e932885631a8eb552f75102e5ac06540403871ce75d6223b41c2c90a6ea25c23"


def test_another_seed_other_runs(texts: list[bytes]) -> None:
    """No run of one seed occurs under another."""
    assert not set(texts) & set(generate(COUNT, seed=8))


def test_documents_are_canonical_json(texts: list[bytes], runs: list[Run]) -> None:
    """Each document is compact UTF-8 JSON, exactly as the standard library would write it, without a line end."""
    for text, run in zip(texts, runs, strict=True):
        assert json.dumps(run, separators=(",", ":"), ensure_ascii=False).encode() == text


def test_fields_are_in_the_documented_order(runs: list[Run], unfinished_runs: list[Run]) -> None:
    """Runs have all documented fields in order; steps have theirs in order, then the retry policy."""
    run_keys = "id workflowId status triggerType startedAt completedAt durationMs input output error createdAt steps"
    step_keys = [
        "id",
        "name",
        "type",
        "status",
        "startedAt",
        "completedAt",
        "durationMs",
        "attempt",
        "input",
        "output",
        "error",
        "retryPolicy",
    ]
    for run in runs + unfinished_runs:
        assert list(run) == run_keys.split()
        for step in run["steps"]:
            assert list(step) == [key for key in step_keys if key in step]


def test_run_ids_are_unique(runs: list[Run]) -> None:
    """A run id is `run_` and twenty hexadecimal digits, and no two runs share one."""
    assert all(re.fullmatch(r"run_[0-9a-f]{20}", run["id"]) for run in runs)
    assert len({run["id"] for run in runs}) == COUNT


def test_size_and_steps_are_like_life(texts: list[bytes], runs: list[Run]) -> None:
    """A document has about 2.7 KB and 5.5 steps in the mean: the size that the performance goals speak of."""
    assert 2500 < sum(map(len, texts)) / COUNT < 2900
    assert 5.2 < sum(len(run["steps"]) for run in runs) / COUNT < 5.8


def test_labels_are_few(runs: list[Run]) -> None:
    """Twenty workflows, and steps whose ids, names and types are fixed for each."""
    workflows = {run["workflowId"] for run in runs}
    labels = {(run["workflowId"], s["id"], s["name"], s["type"]) for run in runs for s in run["steps"]}
    assert len(workflows) == 20
    assert len(labels) == len({(workflow, id_) for workflow, id_, _, _ in labels}) < 120


def test_statuses_have_their_shares(runs: list[Run], unfinished_runs: list[Run]) -> None:
    """Most runs complete, some fail, few are cancelled or time out; unfinished ones occur only when asked for."""
    finished = Counter(run["status"] for run in runs)
    assert finished.keys() == FINISHED
    assert 0.88 < finished["completed"] / COUNT < 0.94
    assert 0.045 < finished["failed"] / COUNT < 0.075
    assert 0.012 < finished["cancelled"] / COUNT < 0.03
    assert 0.004 < finished["timed_out"] / COUNT < 0.018
    mixed = Counter(run["status"] for run in unfinished_runs)
    assert mixed.keys() == FINISHED | {"running", "suspended", "pending"}
    assert 0.86 < mixed["completed"] / COUNT < 0.91
    assert 0.018 < sum(mixed[status] for status in mixed.keys() - FINISHED) / COUNT < 0.045


def test_step_statuses_fit_their_run(unfinished_runs: list[Run]) -> None:
    """Finished runs have finished steps; a failed run has a failed step, which its error names; and so on."""
    seen: set[str] = set()
    for run in unfinished_runs:
        statuses = {step["status"] for step in run["steps"]}
        seen |= statuses
        match run["status"]:
            case "completed":
                assert statuses <= {"completed", "skipped"}
                assert run["error"] is None
            case "failed" | "cancelled" | "timed_out":
                assert "failed" in statuses <= {"completed", "failed", "skipped"}
                failed = {step["id"]: step["error"] for step in run["steps"] if step["status"] == "failed"}
                assert failed[run["error"]["step"]] == run["error"]
            case "pending":
                assert statuses == {"pending"}
                assert run["startedAt"] is None
            case "suspended":
                assert any(s["type"] == "approval" and s["status"] == "running" for s in run["steps"])
            case "running":
                assert statuses & {"running", "retrying"}
        if run["status"] not in FINISHED:
            assert (run["completedAt"], run["durationMs"], run["output"]) == (None, None, None)
    assert seen == {"pending", "running", "completed", "failed", "skipped", "retrying"}


def test_times_are_coherent(runs: list[Run]) -> None:
    """Steps lie within their run, durations are differences, and some steps overlap."""
    overlapping = 0
    for run in runs:
        start, end = at(run["startedAt"]), at(run["completedAt"])
        assert at(run["createdAt"]) <= start < end
        assert (end - start) == timedelta(milliseconds=run["durationMs"])
        latest = start
        for step in run["steps"]:
            if "startedAt" not in step:
                assert step["status"] == "skipped"
                continue
            step_start, step_end = at(step["startedAt"]), at(step["completedAt"])
            assert start <= step_start <= step_end <= end
            assert (step_end - step_start) == timedelta(milliseconds=step["durationMs"])
            overlapping += step_start < latest
            latest = max(latest, step_end)
    assert overlapping > COUNT / 10


def test_runs_are_spread_over_the_span_in_no_order() -> None:
    """Runs begin between `start` and the end of the span, in any zone that `start` is given in, and not sorted."""
    start = datetime(2025, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    created = [at(json.loads(text)["createdAt"]) for text in generate(300, start=start, span_days=2)]
    assert start <= min(created) < start + timedelta(hours=1)
    # A sub-workflow's run is created while its parent, started within the span, is at work.
    assert start + timedelta(days=1.9) < max(created) < start + timedelta(days=2, minutes=5)
    assert created != sorted(created)


def test_without_a_start_the_span_is_fixed(runs: list[Run]) -> None:
    """No clock is read: the ninety days begin on the first of October 2026."""
    first = datetime(2026, 10, 1, tzinfo=UTC)
    assert first <= min(at(run["createdAt"]) for run in runs) < first + timedelta(days=1)
    assert max(at(run["createdAt"]) for run in runs) > first + timedelta(days=89)


def test_sub_workflow_runs_are_documents_too(runs: list[Run]) -> None:
    """The run that a sub-workflow step names comes just before its parent, and lies within that step."""
    children = 0
    for child, parent in pairwise(runs):
        for step in parent["steps"]:
            if step["type"] == "sub-workflow" and step["status"] == "completed":
                assert step["output"]["runId"] == child["id"]
                assert step["input"]["workflowId"] == child["workflowId"]
                assert step["startedAt"] <= child["startedAt"] < child["completedAt"] <= step["completedAt"]
                children += 1
    assert children > 50


def test_agents_have_usage(runs: list[Run]) -> None:
    """Completed agent steps carry usage of several models of two providers, with totals that add up."""
    outputs = [s["output"] for run in runs for s in run["steps"] if s["type"] == "agent" and "output" in s]
    models = {output["usage"]["model"] for output in outputs}
    assert len(models) == 4
    assert {model.partition("-")[0] for model in models} == {"claude", "gpt"}
    for usage in (output["usage"] for output in outputs):
        assert usage["promptTokens"] + usage["completionTokens"] == usage["totalTokens"]
        assert 0 < usage["estimatedCostUsd"] < 1


def test_loops_repeat_their_body(runs: list[Run]) -> None:
    """A loop's body occurs as often as its output says, always under the same step id."""
    for run in runs:
        ids = Counter(step["id"] for step in run["steps"])
        for loop, body in pairwise(run["steps"]):
            if loop["type"] == "loop" and loop["status"] == "completed":
                assert ids[body["id"]] == loop["output"]["iterations"]


@pytest.mark.parametrize("arguments", [{"count": -1}, {"count": 1, "start": NAIVE}])
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any]) -> None:
    """A negative count and a start without a time zone are refused by the call, not by the first `next`."""
    with pytest.raises(ValueError, match=r"^(count|start): expected "):
        generate(**arguments)


def command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "runspan.testing", *arguments], capture_output=True, check=False)


def test_the_command_writes_a_line_a_run() -> None:
    """`python -m runspan.testing` writes the same documents as the function, one a line."""
    done = command("--count", "1201", "--seed", "3", "--unfinished")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(text + b"\n" for text in generate(1201, seed=3, unfinished=True))


def test_the_command_explains_itself() -> None:
    """The help names every option, and a missing count is an error that says so."""
    assert all(option in command("--help").stdout for option in (b"--count", b"--seed", b"--unfinished"))
    missing = command()
    assert missing.returncode == 2
    assert b"Missing option '--count'" in missing.stderr
