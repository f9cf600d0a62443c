"""Every backend: lists by trigger, error code, duration, model, step type and text, each by the newest revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from conformance.harness import MS, SECOND, T0, Harness, all_pages, ids, make_run, running
from runspan import Run, encode
from runspan.backends.tempo import search
from runspan.contracts import RunQuery
from runspan.errors import QueryUnsupported
from runspan.model.timestamps import canonical_text

LONG = "x" * 600
"""Too long for an attribute under its usual name."""
AGE = 60 * SECOND
"""A time after the start of the runs at which open steps are shown as spans."""


@pytest.fixture(autouse=True)
def search_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a list over Tempo search for what steps and payloads say before it reads documents, as for rare runs."""
    monkeypatch.setattr(search, "_MAX_CHECKED", 0)


def agent(model: str, **members: Any) -> dict[str, Any]:
    usage = {"promptTokens": 10, "completionTokens": 5, "model": model, "estimatedCostUsd": 0.5}
    return {"id": "ask", "type": "agent", "status": "completed", "output": {"usage": usage}} | members


def step(kind: str, **members: Any) -> dict[str, Any]:
    return {"id": f"a {kind[:20]}", "type": kind, "status": "completed"} | members


def send(backend: Harness, tenant: str, runs: Mapping[str, dict[str, Any]]) -> None:
    """Send runs, a second apart in the order of the mapping; those that have not ended as observed later."""
    for number, (run_id, members) in enumerate(runs.items()):
        at = T0 + number * SECOND
        make = running if members.get("status") in ("running", "suspended") else make_run
        backend.send(make(run_id, at, **members), tenant=tenant, observed_at=T0 + AGE)


def listed(backend: Harness, query: RunQuery) -> list[str]:
    """Return the run ids of a list on one page, oldest first; smaller pages have the same runs."""
    page = backend.reader.search(query)
    assert page.cursor is None
    found = ids(page)
    assert list(chain.from_iterable(all_pages(backend.reader, replace(query, limit=2)))) == found
    return found[::-1]


def test_runs_of_a_trigger(backend: Harness, tenant: str) -> None:
    """A value is compared exactly, whatever its length; no value equals an absent one."""
    runs: dict[str, dict[str, Any]] = {
        "cron": {"triggerType": "cron"},
        "cron-running": {"triggerType": "cron", "status": "running"},
        "capital": {"triggerType": "Cron"},
        "quoted": {"triggerType": 'a "b" || c'},
        "long": {"triggerType": LONG},
        "empty": {"triggerType": ""},
        "absent": {"triggerType": ...},
        "number": {"triggerType": 7},
    }
    send(backend, tenant, runs)
    for trigger, expected in (
        ("cron", ["cron", "cron-running"]),
        ('a "b" || c', ["quoted"]),
        (LONG, ["long"]),
        (LONG[:-1], []),
        ("", ["empty"]),
        ("7", []),
    ):
        assert listed(backend, RunQuery(tenant, trigger=trigger)) == expected, trigger
    assert listed(backend, RunQuery(tenant, trigger="cron", status="running")) == ["cron-running"]
    assert listed(backend, RunQuery(tenant, trigger="cron", status=("completed", "failed"))) == ["cron"]
    assert listed(backend, RunQuery(tenant, "wf_none", trigger="cron")) == []


def test_runs_of_an_error_code(backend: Harness, tenant: str) -> None:
    """Whatever the status, also if the error is too long for an attribute."""
    error = {"code": "E1", "message": "refused"}
    runs: dict[str, dict[str, Any]] = {
        "failed": {"status": "failed", "error": error},
        "timed-out": {"status": "timed_out", "error": error},
        "cancelled": {"status": "cancelled", "error": error},
        "completed": {"error": error},
        "suspended": {"status": "suspended", "error": error},
        "long": {"status": "failed", "error": error | {"message": "m" * 5000}},
        "long-cancelled": {"status": "cancelled", "error": {"message": "m" * 5000} | error},
        "other": {"status": "failed", "error": {"code": "E10"}},
        "text": {"status": "failed", "error": "E1"},
        "none": {"status": "failed"},
        "in a step": {"status": "failed", "steps": [step("action", status="failed", error=error)]},
        "default": {"status": "failed", "error": {"code": "_OTHER"}},
        "null": {"status": "failed", "error": None},
    }
    send(backend, tenant, runs)
    with_code = ["failed", "timed-out", "cancelled", "completed", "suspended", "long", "long-cancelled"]
    assert listed(backend, RunQuery(tenant, error_code="E1")) == with_code
    assert listed(backend, RunQuery(tenant, error_code="E1", status=("failed", "timed_out"))) == [
        "failed",
        "timed-out",
        "long",
    ]
    assert listed(backend, RunQuery(tenant, error_code="E1", status="cancelled")) == ["cancelled", "long-cancelled"]
    assert listed(backend, RunQuery(tenant, error_code="_OTHER")) == ["default"]
    assert listed(backend, RunQuery(tenant, error_code="timeout")) == []
    assert listed(backend, RunQuery(tenant, error_code="")) == []


def test_runs_that_took_long(backend: Harness, tenant: str) -> None:
    """By ``durationMs``, even if it is not that of the span, else from start to completion."""
    start = canonical_text(T0)
    runs: dict[str, dict[str, Any]] = {
        "second": {},
        "longer": {"durationMs": 5000},
        "shorter": {"durationMs": 999},
        "fraction": {"durationMs": 1000.5},
        "by-times": {"durationMs": ..., "startedAt": start, "completedAt": canonical_text(T0 + 3 * SECOND)},
        "by-short-times": {"durationMs": ..., "startedAt": start, "completedAt": canonical_text(T0 + 999 * MS)},
        "negative": {"durationMs": -1, "startedAt": start, "completedAt": canonical_text(T0 + 2 * SECOND)},
        "no-end": {"durationMs": ..., "completedAt": ...},
        "offset": {"durationMs": ..., "startedAt": start, "completedAt": "2025-10-09T10:53:25+02:00"},
        "epoch": {"durationMs": ..., "startedAt": "1970-01-01T00:00:00.000Z", "createdAt": canonical_text(T0 + AGE)},
        "running": {"status": "running", "durationMs": 7000},
        "suspended": {"status": "suspended", "startedAt": start, "completedAt": canonical_text(T0 + 8 * SECOND)},
        "text": {"durationMs": "9000", "startedAt": start, "completedAt": start},
    }
    send(backend, tenant, runs)
    taken = {
        SECOND: "second longer fraction by-times negative offset epoch running suspended",
        SECOND + 1: "longer fraction by-times negative offset epoch running suspended",
        3 * SECOND: "longer by-times offset epoch running suspended",
        3 * SECOND + 1: "longer offset epoch running suspended",
        6 * SECOND: "epoch running suspended",
        10 * SECOND: "epoch",
        999_999_999 * 86_400 * SECOND: "",
    }
    for shortest, expected in taken.items():
        assert sorted(listed(backend, RunQuery(tenant, min_duration=shortest))) == sorted(expected.split()), shortest
    assert listed(backend, RunQuery(tenant, min_duration=SECOND, status="running")) == ["running"]


def test_runs_of_a_model(backend: Harness, tenant: str) -> None:
    """One that an agent used, in a step that has ended or not; other outputs may look alike."""
    runs: dict[str, dict[str, Any]] = {
        "one": {"steps": [agent("claude-x")]},
        "two": {"steps": [agent("gpt-y"), agent("claude-x", id="again", output={"usage": {"model": "claude-x"}})]},
        "failed-step": {"status": "failed", "steps": [agent("claude-x", status="failed")]},
        "other": {"steps": [agent("claude-xl")]},
        "not-an-agent": {"steps": [agent("claude-x", type="action")]},
        "open": {"status": "running", "steps": [agent("claude-x", status="running", startedAt=canonical_text(T0))]},
        "open-at-the-end": {"status": "cancelled", "steps": [agent("claude-x", status="running")]},
        "long": {"steps": [agent(LONG)]},
        "many": {"steps": [agent("claude-x"), *[agent(f"model-{number:0100}") for number in range(30)]]},
        "many-others": {"steps": [agent(f"model-{number:0100}") for number in range(31)]},
        "long-output": {"steps": [agent("claude-x", output={"a": "b" * 5000} | agent("claude-x")["output"])]},
        "in-the-input": {"input": agent("claude-x")},
    }
    send(backend, tenant, runs)
    assert listed(backend, RunQuery(tenant, model="claude-x")) == [
        *("one", "two", "failed-step", "open", "open-at-the-end", "many", "long-output")
    ]
    assert listed(backend, RunQuery(tenant, model="gpt-y")) == ["two"]
    assert listed(backend, RunQuery(tenant, model=LONG)) == ["long"]
    assert listed(backend, RunQuery(tenant, model=LONG + "x")) == []
    assert listed(backend, RunQuery(tenant, model="claude-x", status="failed")) == ["failed-step"]
    assert listed(backend, RunQuery(tenant, model="claude-x", status="running")) == ["open"]
    assert listed(backend, RunQuery(tenant, model="claude-x", step_type="action")) == []


def test_runs_of_a_step_type(backend: Harness, tenant: str) -> None:
    """Steps that have ended and those that have not, which may have no span of their own."""
    begun = canonical_text(T0 + AGE - SECOND)
    runs: dict[str, dict[str, Any]] = {
        "ended": {"steps": [step("approval"), step("action")]},
        "skipped": {"steps": [step("approval", status="skipped")]},
        "open": {"status": "suspended", "steps": [step("action"), step("approval", status="running")]},
        "just-begun": {"status": "running", "steps": [step("approval", status="running", startedAt=begun)]},
        "open-at-the-end": {"status": "cancelled", "steps": [step("approval", status="pending")]},
        "many-open": {
            "status": "cancelled",
            "steps": [step("approval", id="x" * 400, status="pending", input="y" * 500, name=f"{n}") for n in range(9)],
        },
        "other": {"steps": [step("approvals")], "output": {"type": "approval"}},
        "named-so": {"steps": [step("action", id="approval", name="approval")]},
        "long": {"steps": [step(LONG)]},
        "untyped": {"steps": [{"id": "x", "status": "completed"}, step("action")]},
        "quoted": {"steps": [step('"a" } || { true')]},
        "no-steps": {"steps": []},
    }
    send(backend, tenant, runs)
    expected = ["ended", "skipped", "open", "just-begun", "open-at-the-end", "many-open"]
    assert listed(backend, RunQuery(tenant, step_type="approval")) == expected
    assert listed(backend, RunQuery(tenant, step_type=LONG)) == ["long"]
    assert listed(backend, RunQuery(tenant, step_type='"a" } || { true')) == ["quoted"]
    assert listed(backend, RunQuery(tenant, step_type="none")) == []
    assert listed(backend, RunQuery(tenant, step_type="")) == ["untyped"]
    assert listed(backend, RunQuery(tenant, step_type="\ud800")) == []
    assert listed(backend, RunQuery(tenant, step_type="approval", status="cancelled", limit=3)) == expected[-2:]
    assert listed(backend, RunQuery(tenant, "wf_none", step_type="approval")) == []


@pytest.mark.parametrize(
    ("before", "after", "queries"),
    [
        ({"triggerType": "cron"}, {"triggerType": "api"}, ({"trigger": "cron"}, {"trigger": "api"})),
        (
            {"error": {"code": "OLD"}},
            {"error": {"code": "NEW"}, "status": "failed"},
            ({"error_code": "OLD"}, {"error_code": "NEW"}),
        ),
        ({"steps": [step("delay")]}, {"steps": [step("action")]}, ({"step_type": "delay"}, {"step_type": "action"})),
        ({"steps": [agent("m-1")]}, {"steps": [agent("m-2")]}, ({"model": "m-1"}, {"model": "m-2"})),
        ({"input": "the first"}, {"input": "the second"}, ({"text": "the first"}, {"text": "the second"})),
    ],
    ids=["trigger", "error", "step type", "model", "text"],
)
def test_the_newest_revision_decides(
    backend: Harness, tenant: str, before: dict[str, Any], after: dict[str, Any], queries: tuple[dict[str, Any], ...]
) -> None:
    """A run that went on, ended or was corrected is in the lists of what it says now, and in no other."""
    backend.send(running("went-on", **before), tenant=tenant, observed_at=T0 + SECOND)
    backend.send(running("went-on", **{**after, "status": "running"}), tenant=tenant, observed_at=T0 + AGE)
    backend.send(running("ended", T0 + SECOND, **before), tenant=tenant, observed_at=T0 + SECOND)
    backend.send(make_run("ended", T0 + SECOND, **after), tenant=tenant, observed_at=T0 + AGE)
    backend.send(make_run("corrected", T0 + 2 * SECOND, **before), tenant=tenant, observed_at=T0 + SECOND)
    corrected = make_run("corrected", T0 + 2 * SECOND, **after)
    backend.send_spans(encode(corrected, tenant=tenant, after_root=True, observed_at=T0 + AGE), tenant)
    old, new = queries
    assert listed(backend, RunQuery(tenant, **old)) == []
    assert listed(backend, RunQuery(tenant, **new)) == ["went-on", "ended", "corrected"]
    assert listed(backend, RunQuery(tenant, status=("completed", "failed"), **new)) == ["ended", "corrected"]


def test_runs_that_contain_a_text(backend: Harness, tenant: str) -> None:
    """In ids, names, types, errors and payloads, without regard to case or escapes."""
    runs: dict[str, dict[str, Any]] = {
        "run-Customer_4711": {},
        "workflow": {"workflowId": "wf_customer_4711"},
        "input": {"input": {"deep": [{"id": "CUSTOMER_4711"}]}},
        "step-name": {"steps": [step("action", name="for customer_4711!")]},
        "step-output": {"steps": [step("action", output="customer_4711")]},
        "step-error": {
            "status": "failed",
            "steps": [step("action", status="failed", error={"message": "customer_4711"})],
        },
        "error": {"status": "failed", "error": {"code": "E", "message": "no customer_4711"}},
        "key": {"output": {"customer_4711": 1}},
        "unknown-member": {"customer": "customer_4711"},
        "open": {"status": "running", "steps": [step("action", status="running", input="customer_4711")]},
        "long-name": {"steps": [step("action", name="n" * 550 + "customer_4711")]},
        "other": {"input": "customer_471"},
        "apart": {"input": ["customer_", "4711"]},
        "status": {"status": "failed", "steps": [step("action", status="customer_4712")]},
    }
    send(backend, tenant, runs)
    assert listed(backend, RunQuery(tenant, text="Customer_4711")) == list(runs)[:11]
    matches = backend.reader.search(RunQuery(tenant, text="Customer_4711")).matches
    assert list(matches) == list(runs)[:11][::-1]
    match = matches["step-output"]
    found = match.snippet[match.start :][: match.length]
    assert (match.step_index, match.member, found) == (0, "output", "customer_4711")
    assert listed(backend, RunQuery(tenant, text="customer_4711", status="failed")) == ["step-error", "error"]
    assert listed(backend, RunQuery(tenant, text="customer_4711", step_type="action", status="running")) == ["open"]
    assert listed(backend, RunQuery(tenant, text="customer_4713")) == []


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ('{"a":"Stra\\u00dfe 5"}', "STRASSE 5"),
        ('{"a":"Straße"}', "strasse"),
        ('"a\\nb \\"c\\" \\\\ d\\/e"', 'A\nB "c" \\ d/e'),
        ('"\\u0063us\\u005f47"', "cus_47"),
        ('"日本語 \\ud83d\\ude00"', "語 😀"),
        ('"ﬁle and \\u017fet"', "file and set"),
        ('"İstanbul"', "i̇stanbul"),
        ('"x < 5 \\u0026 y"', "5 & y"),
        ('{"n":-1.50e3}', "1.50E3"),
        ('"ΑΓΓΕΛΟΣ"', "αγγελος"),
        ('"%.*_?[a]"', "%.*_?[a]"),
    ],
    ids=ascii,
)
def test_texts_are_compared_as_they_read(backend: Harness, tenant: str, stored: str, text: str) -> None:
    """Whatever the writer of the JSON escaped, and after full case folding."""
    backend.send(Run.from_json(f'{{"id":"it","status":"completed","input":{stored}}}'), tenant=tenant)
    backend.send(make_run("other", input="%axb_?[b] 12"), tenant=tenant)
    assert listed(backend, RunQuery(tenant, text=text)) == ["it"]


def test_what_was_not_searched_is_said(backend: Harness, tenant: str) -> None:
    """A text in a long payload is found, or the page says that such payloads were not searched, as the box does."""
    assert backend.reader.capabilities.searches
    backend.send(make_run("long", input="y" * 5000 + " customer_4711 " + "y" * 5000), tenant=tenant)
    page = backend.reader.search(RunQuery(tenant, text="customer_4711"))
    assert (ids(page), page.partial) == (["long"], ()) or "longer ones were not searched" in " ".join(page.partial)


def test_a_run_that_cannot_be_decided_is_named(backend: Harness, tenant: str) -> None:
    """Its list item is proved, and its steps are not: it is left out of a list that depends on them, which says so."""
    many = [step(f"type-{number:0200}") for number in range(20)]
    spans = encode(make_run("lacking", steps=[*many, step("approval")]), tenant=tenant)
    backend.send_spans(spans[1:], tenant)
    backend.send(make_run("complete", steps=[*many, step("approval")]), tenant=tenant)
    backend.send(make_run("other", steps=[*many, step("approvals")]), tenant=tenant)
    page = backend.reader.search(RunQuery(tenant, step_type="approval"))
    assert ids(page) == ["complete"]
    if backend.lists_by_summary:
        (note,) = page.partial
        assert note.startswith("run lacking is left out, since its document cannot be read: ")


@pytest.mark.parametrize("order", ["duration", "cost"])
def test_another_order_is_exact_or_refused(backend: Harness, tenant: str, order: Any) -> None:
    """A backend without an index by it says so."""
    if not backend.lists_by_summary:
        pytest.skip("the embedded store sorts by it")
    with pytest.raises(QueryUnsupported, match=f"sort={order}.*no index by {order}"):
        backend.reader.search(RunQuery(tenant, order=order))
