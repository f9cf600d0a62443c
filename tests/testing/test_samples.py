"""The sample runs parse, cover what the platform documents, and have coherent times."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[2] / "examples" / "runs"
FILES = sorted(SAMPLES.glob("*.json"))

RUN_STATUSES = {"pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"}
FINISHED = {"completed", "failed", "cancelled", "timed_out"}
STEP_STATUSES = {"pending", "running", "completed", "failed", "skipped", "retrying"}
TRIGGERS = {"webhook", "api", "schedule", "event", "manual"}
STEP_TYPES = {
    "webhook",
    "schedule",
    "event",
    "action",
    "stripe",
    "salesforce",
    "hubspot",
    "quickbooks",
    "netsuite",
    "xero",
    "slack",
    "gmail",
    "outlook",
    "email",
    "docusign",
    "agent",
    "condition",
    "loop",
    "sub-workflow",
    "transform",
    "wait",
    "approval",
}
RUN_KEYS = [
    "id",
    "workflowId",
    "status",
    "triggerType",
    "startedAt",
    "completedAt",
    "durationMs",
    "input",
    "output",
    "error",
    "createdAt",
    "steps",
]
STEP_KEYS = [
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
]

# Files whose times are wrong on purpose: a step of negative length, a run that ended before it started.
WRONG_TIMES = {"clock-skew-negative-step.json", "queue-drained-cancelled-before-start.json"}

# What a parser would rewrite or refuse, by the file that has it.
EXACT_TEXTS = {
    "price-list-exact-numbers.json": ["12.10", "1e400", str(2**70), "-0.0", "1E+2"],
    "device-messages-control-characters.json": [r"\u0000", r'\ud83d"', r'"\ude00 ', r"\u00e9", r"a\/b"],
    "http-echo-duplicate-keys.json": ['"set-cookie": "a=1", "set-cookie": "b=2"', '{"a": {"b": 1, "b": 2}, "a": null}'],
    "hand-formatted-payload-whitespace.json": ['"limits"  :{ }  ,', "[1,2,  3,\t4]  ,", '{"before":{"retries":3},\n'],
    "csv-import-empty-keys.json": ['{"": {"": {"": []}}'],
    "usage-metering-microseconds.json": ['"2026-10-22T00:00:00.000412Z"'],
    "ledger-posting-nanoseconds.json": ['"2026-10-23T15:00:00.123456789Z"'],
    "berlin-payroll-offset-times.json": ['"2026-10-25T02:30:00.000+02:00"'],
    "churn-survey-odd-text-times.json": ['"durationMs": 62000.0', '"durationMs": 6.1e4'],
    "refund-request-japanese.json": ["株式会社さくら商事"],
    "rent-reminder-arabic.json": ["الفاتورة"],
    "emoji-and-combining-names.json": ["Zoe\u0308", "🏳️\u200d🌈"],
}


def load(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    assert isinstance(document, dict)
    return document


RUNS = {path.name: load(path) for path in FILES}


def steps(status: str | None = None) -> Iterator[dict[str, Any]]:
    for run in RUNS.values():
        yield from (step for step in run["steps"] if status in (None, step["status"]))


def between(document: dict[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(document["startedAt"]), datetime.fromisoformat(document["completedAt"])


def assert_duration(document: dict[str, Any]) -> None:
    start, end = between(document)
    assert start <= end
    assert abs((end - start) / timedelta(milliseconds=1) - document["durationMs"]) < 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sample_is_a_run_document(path: Path) -> None:
    """Every sample is a JSON object with an id, known statuses, and its fields in the documented order."""
    run = RUNS[path.name]
    assert re.fullmatch(r"run_[a-z0-9]+", run["id"])
    assert re.fullmatch(r"wf_[a-z0-9_]+", run["workflowId"])
    assert run["status"] in RUN_STATUSES
    assert run.get("triggerType", "api") in TRIGGERS
    assert_documented_order(run, RUN_KEYS)
    for step in run["steps"]:
        assert {"id", "name", "type", "status"} <= step.keys()
        assert step["status"] in STEP_STATUSES
        assert_documented_order(step, STEP_KEYS)


def assert_documented_order(document: dict[str, Any], documented: list[str]) -> None:
    keys = list(document)
    known = [key for key in documented if key in document]
    assert keys[: len(known)] == known


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in WRONG_TIMES], ids=lambda path: path.stem)
def test_a_sample_has_coherent_times(path: Path) -> None:
    """Steps lie within their run, and durations are the differences of the times beside them."""
    run = RUNS[path.name]
    if run["status"] not in FINISHED:
        assert run.get("completedAt") is None
        return
    assert_duration(run)
    start, end = between(run)
    assert datetime.fromisoformat(run.get("createdAt", run["startedAt"])) <= start
    for step in run["steps"]:
        if step.get("startedAt") is None:
            assert step["status"] == "skipped"
            continue
        assert_duration(step)
        step_start, step_end = between(step)
        assert start <= step_start <= step_end <= end


def test_the_files_with_wrong_times_have_wrong_times() -> None:
    """A file is excused from coherent times only while it needs to be."""
    assert RUNS.keys() >= WRONG_TIMES
    assert RUNS["clock-skew-negative-step.json"]["steps"][1]["durationMs"] < 0
    assert RUNS["queue-drained-cancelled-before-start.json"]["startedAt"] is None


def test_there_are_many_and_no_two_share_an_id() -> None:
    """At least 44 samples, each a run of its own."""
    assert len(FILES) >= 44
    assert len({run["id"] for run in RUNS.values()}) == len(FILES)


def test_every_run_status_is_shown() -> None:
    """Each of the seven run statuses has a sample."""
    assert {run["status"] for run in RUNS.values()} == RUN_STATUSES


def test_every_step_status_is_shown() -> None:
    """Each of the six step statuses has a sample, and retrying steps have their attempt."""
    assert {step["status"] for step in steps()} == STEP_STATUSES
    assert all(step["attempt"] > 1 for step in steps("retrying"))


def test_every_trigger_is_shown() -> None:
    """Each of the five trigger types has a sample, and one sample has none."""
    assert {run.get("triggerType") for run in RUNS.values()} == TRIGGERS | {None}


def test_every_step_type_is_shown() -> None:
    """Each documented step type has a sample, and so have unknown types."""
    types = {step["type"] for step in steps()}
    assert types >= STEP_TYPES
    assert types - STEP_TYPES == {"vector-search", "rerank.v2"}


def test_agents_of_both_providers_have_usage() -> None:
    """Agent steps carry usage of Anthropic's and of OpenAI's models, with totals that add up."""
    usages = [step["output"]["usage"] for step in steps() if step["type"] == "agent" and step.get("output")]
    assert {usage["model"].partition("-")[0] for usage in usages} == {"claude", "gpt"}
    assert all(usage["promptTokens"] + usage["completionTokens"] == usage["totalTokens"] for usage in usages)


def test_loops_repeat_step_ids() -> None:
    """In some sample with a loop the same step id occurs at least three times."""
    most = {
        name: Counter(step["id"] for step in run["steps"]).most_common(1)[0][1]
        for name, run in RUNS.items()
        if any(step["type"] == "loop" for step in run["steps"])
    }
    assert sum(count >= 3 for count in most.values()) >= 3


def test_the_sub_workflow_pair_fits_together() -> None:
    """The child named in the parent's step output is a sample too, lies within that step, and has the same output."""
    (step,) = (s for s in RUNS["customer-onboarding-parent.json"]["steps"] if s["type"] == "sub-workflow")
    child = RUNS["provision-billing-child.json"]
    assert step["output"]["runId"] == child["id"]
    assert step["output"]["output"] == child["output"]
    assert step["startedAt"] <= child["startedAt"] <= child["completedAt"] <= step["completedAt"]


def test_approvals_are_given_refused_and_awaited() -> None:
    """There is an approved and a rejected approval, and a suspended run that still waits for one."""
    approvals = [step for step in steps("completed") if step["type"] == "approval"]
    assert {step["output"]["approved"] for step in approvals} == {True, False}
    assert all({"approvedBy", "approvedAt", "comment"} <= step["output"].keys() for step in approvals)
    waiting = [run["steps"] for run in RUNS.values() if run["status"] == "suspended"]
    assert any(step["type"] == "approval" and step["status"] == "running" for own in waiting for step in own)


def test_failures_and_retries_carry_their_bodies() -> None:
    """Failed steps have an error with code, message and their own id; retry policies have their four fields."""
    for step in steps("failed"):
        assert {"code", "message", "step"} <= step["error"].keys()
        assert step["error"]["step"] == step["id"]
    policies = [step["retryPolicy"] for step in steps() if "retryPolicy" in step]
    assert len(policies) >= 3
    assert all(list(p) == ["maxAttempts", "initialDelayMs", "maxDelayMs", "backoffMultiplier"] for p in policies)


def test_a_run_error_is_null_absent_or_an_object() -> None:
    """The run's error is shown in its three forms, and unfinished runs in both ways of having no end."""
    forms = {type(run["error"]) if "error" in run else "absent" for run in RUNS.values()}
    assert forms == {type(None), dict, "absent"}
    ends = {"completedAt" in run for run in RUNS.values() if run["status"] not in FINISHED}
    assert ends == {True, False}


def test_unknown_fields_on_runs_and_on_steps() -> None:
    """Undocumented fields occur at both levels."""
    assert {key for run in RUNS.values() for key in run} - set(RUN_KEYS) >= {"tags", "engineVersion", "cancelledBy"}
    assert {key for step in steps() for key in step} - set(STEP_KEYS) >= {"retryPolicy", "citations", "hardware"}


def test_parallel_steps_overlap() -> None:
    """Several finished samples have steps of different ids, none a loop, that overlap in time."""
    overlapping = 0
    for name, run in RUNS.items():
        if run["status"] == "completed" and name not in WRONG_TIMES:
            spans = sorted((*between(s), s["id"]) for s in run["steps"] if s.get("startedAt") and s["type"] != "loop")
            overlapping += any(b[0] < a[1] and a[2] != b[2] for a, b in pairwise(spans))
    assert overlapping >= 6


def test_sizes_reach_from_no_step_to_many() -> None:
    """There are samples without steps, one of 120 steps, a payload of about 40 KB, and a step of zero length."""
    assert sum(run["steps"] == [] for run in RUNS.values()) == 2
    assert max(len(run["steps"]) for run in RUNS.values()) == 120
    largest = RUNS["usage-invoice-large-payload.json"]["steps"][0]["output"]
    assert 30_000 < len(json.dumps(largest)) < 50_000
    assert any(step.get("durationMs") == 0 for step in steps("completed"))


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in EXACT_TEXTS.items() for text in texts])
def test_exact_texts_are_in_the_file(name: str, text: str) -> None:
    """No editor has changed what parsers would rewrite."""
    assert text in (SAMPLES / name).read_text(encoding="utf-8")


def test_both_layouts_occur() -> None:
    """Most samples are pretty-printed, and some are on one line."""
    compact = [path for path in FILES if b"\n" not in path.read_bytes().rstrip()]
    assert 3 <= len(compact) < len(FILES) / 3


def test_the_readme_lists_exactly_the_files() -> None:
    """Each file has one row in the README's table, in order, that links to it and says what it shows."""
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == [path.name for path in FILES]
    assert all(name == link for name, link, _ in rows)
    assert len({shows for _, _, shows in rows}) == len(rows)
