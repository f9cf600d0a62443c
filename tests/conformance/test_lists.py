"""Every backend: lists, their filters, their order and their pages."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import chain, product
from typing import Any

import msgspec
import pytest

from conformance.harness import MS, SECOND, T0, Harness, all_pages, ids, make_run, running
from runspan import Run, encode
from runspan.codec.fields import REVISION, ROOT_REVISION, SUMMARY_DIGEST
from runspan.contracts import RunQuery, conflict_note, damaged_note
from runspan.errors import QueryError, TraceIncomplete
from runspan.model.document import end_time, sort_time
from runspan.model.span import run_ids
from runspan.model.timestamps import canonical_text
from runspan.resolve import resolve

WORKFLOWS = ("wf_a", "wf_b")
STATUSES = ("completed", "failed", "running")
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
EDGE = T0 + 30 * DAY
"""The time of the end from which on a list has runs."""
UNUSUAL_NAMES = ['say "x"', "it's", "{a} || {b}", "a\nb", "wf%", "wf_", "ワークフロー", "a\\", "~.*", "x" * 600, ""]


def fill(backend: Harness, tenant: str) -> list[tuple[str, str, str, int]]:
    """Send twelve runs of two workflows and three statuses; return (id, workflow, status, start), newest first."""
    made = []
    for number, (workflow, status, round_) in enumerate(product(WORKFLOWS, STATUSES, (0, 1))):
        at = T0 + ((number * 5) % 12) * SECOND
        run_id = f"run-{number:02}-{round_}"
        make = running if status == "running" else make_run
        backend.send(make(run_id, at, workflowId=workflow, status=status), tenant=tenant, observed_at=at + SECOND)
        made.append((run_id, workflow, status, at))
    return sorted(made, key=lambda item: (item[3], item[0]), reverse=True)


def test_filters_alone_and_together(backend: Harness, tenant: str) -> None:
    """A list holds exactly the runs that meet every filter, newest first, on one page or on many."""
    sent = fill(backend, tenant)
    times = (None, T0 + 4 * SECOND, T0 + 60 * SECOND)
    for workflow, status, since in product((None, *WORKFLOWS, "wf_none"), (None, *STATUSES, "cancelled"), times):
        expected = [
            run_id
            for run_id, its_workflow, its_status, at in sent
            if workflow in (None, its_workflow) and status in (None, its_status) and (since is None or at >= since)
        ]
        query = RunQuery(tenant=tenant, workflow_id=workflow, status=status, since=since)
        page = backend.reader.search(query)
        assert (ids(page), page.cursor, page.partial) == (expected, None, ()), query
        query = RunQuery(tenant, workflow, status, since, limit=2)
        pages = all_pages(backend.reader, query)
        assert list(chain.from_iterable(pages)) == expected, query
        assert all(len(page) == 2 for page in pages[:-1]), query


def test_ranges_of_time_and_several_statuses(backend: Harness, tenant: str) -> None:
    """Runs that started in a range, its end excluded, and are in one of several statuses, whichever belong together."""
    sent = fill(backend, tenant)
    ranges = product((None, T0 + 3 * SECOND), (None, T0 + 8 * SECOND, T0 + 8 * SECOND + 1, T0 - DAY, EDGE))
    several = (None, ("failed", "completed"), ("failed", "running"), ("running", "pending"), ("failed", "failed"))
    for (since, until), status, workflow in product(ranges, several, (None, "wf_a")):
        if since is not None and until is not None and until <= since:
            continue
        expected = [
            run_id
            for run_id, its_workflow, its_status, at in sent
            if (since is None or at >= since) and (until is None or at < until)
            if (status is None or its_status in status) and workflow in (None, its_workflow)
        ]
        query = RunQuery(tenant, workflow, status, since=since, until=until)
        page = backend.reader.search(query)
        assert (ids(page), page.cursor, page.partial) == (expected, None, ()), query
        pages = all_pages(backend.reader, replace(query, limit=2))
        assert list(chain.from_iterable(pages)) == expected, query


def test_several_statuses_are_those_of_the_newest_revision(backend: Harness, tenant: str) -> None:
    """A run that has ended is in no list of runs that go on, and in each list that has its last status too."""
    backend.send(running("ended"), running("going-on"), tenant=tenant, observed_at=T0 + SECOND)
    backend.send(make_run("ended", status="failed"), tenant=tenant, observed_at=T0 + 2 * SECOND)
    for status, expected in (
        (("running", "suspended"), ["going-on"]),
        (("running", "failed"), ["going-on", "ended"]),
        (("completed", "running"), ["going-on"]),
        (("completed", "timed_out"), []),
    ):
        assert ids(backend.reader.search(RunQuery(tenant, status=status))) == expected, status


@pytest.mark.parametrize(
    ("times", "where"), [({"since": T0, "until": T0}, "to"), ({"ended_since": T0, "ended_until": T0 - 1}, "endedTo")]
)
def test_a_range_that_ends_before_it_begins_is_refused(times: dict[str, int], where: str) -> None:
    """Such a list would always be empty."""
    with pytest.raises(QueryError, match=f"^{where}: "):
        RunQuery(**times)  # type: ignore[arg-type]


def test_items_are_summaries(backend: Harness, tenant: str) -> None:
    """An item is the run's summary, exactly: no steps, no payloads."""
    run = make_run("s", input={"a": 1}, error={"code": "X"}, createdAt="2025-10-09T08:53:20.000Z")
    backend.send(run, tenant=tenant)
    assert list(backend.reader.search(RunQuery(tenant)).items) == [run.summary()]


def test_many_equal_times_page_without_gap_or_repeat(backend: Harness, tenant: str) -> None:
    """Ties go by run id, descending by code point, and a page may end in the middle of them."""
    run_ids = ["a", "b", "B", "ä", "z", "~", "Ω", "\ufffd", "\U0001f680", "a0", "a-", "10", "9"]
    backend.send(*[make_run(run_id) for run_id in run_ids], tenant=tenant)
    expected = sorted(run_ids, reverse=True)
    for limit in (1, 2, 5, len(run_ids)):
        pages = all_pages(backend.reader, RunQuery(tenant, limit=limit))
        assert list(chain.from_iterable(pages)) == expected


def test_a_full_last_page_has_no_cursor(backend: Harness, tenant: str) -> None:
    """A cursor promises that at least one run follows."""
    backend.send(*[make_run(f"r{number}", T0 + number * MS) for number in range(4)], tenant=tenant)
    assert [len(page) for page in all_pages(backend.reader, RunQuery(tenant, limit=2))] == [2, 2]


def test_runs_that_arrive_meanwhile_neither_repeat_nor_hide_others(backend: Harness, tenant: str) -> None:
    """Later pages have every run that was stored when the first was read, once, and no newer arrivals."""
    before = [f"old-{number}" for number in range(9)]
    backend.send(*[make_run(run_id) for run_id in before], tenant=tenant)
    seen: list[str] = []
    query = RunQuery(tenant, limit=3)
    for number in range(4):
        page = backend.reader.search(query)
        seen += ids(page)
        newer = [make_run(f"new-{number}", T0 + SECOND), make_run(f"zzz-{number}")]
        backend.send(*newer, tenant=tenant)
        if page.cursor is None:
            break
        query = RunQuery(tenant, limit=3, cursor=page.cursor)
    assert seen == sorted(before, reverse=True)


def test_a_run_that_has_ended_is_listed_with_its_last_status_only(backend: Harness, tenant: str) -> None:
    """It is in the list once, and the list of running runs no longer has it."""
    backend.send(running("r"), tenant=tenant, observed_at=T0 + SECOND)
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == ["r"]
    backend.send(make_run("r", status="failed"), tenant=tenant, observed_at=T0 + 2 * SECOND)
    assert ids(backend.reader.search(RunQuery(tenant, status="running"))) == []
    assert ids(backend.reader.search(RunQuery(tenant, status="failed"))) == ["r"]
    assert ids(backend.reader.search(RunQuery(tenant))) == ["r"]


@pytest.mark.parametrize("count", [3, 9])
def test_runs_that_waited_to_start_lie_where_they_started(backend: Harness, tenant: str, count: int) -> None:
    """Few or many: each is on one page, by its start, though a search may find it where it was created."""
    queued = [f"queued-{number}" for number in range(count)]
    for number, run_id in enumerate(queued):
        created = canonical_text(T0 + number * SECOND)
        pending = Run.from_dict(
            {"id": run_id, "workflowId": "wf_billing", "status": "pending", "createdAt": created, "steps": []}
        )
        backend.send(pending, tenant=tenant, observed_at=T0 + number * SECOND)
        started = running(run_id, T0 + (60 - number) * SECOND, createdAt=created)
        backend.send(started, tenant=tenant, observed_at=T0 + 61 * SECOND)
    ended = [f"ended-{number}" for number in range(4)]
    backend.send(*[make_run(run_id, T0 + 30 * SECOND) for run_id in ended], tenant=tenant)
    for query in (RunQuery(tenant, limit=2), RunQuery(tenant, workflow_id="wf_billing", limit=4)):
        pages = all_pages(backend.reader, query)
        assert list(chain.from_iterable(pages)) == [*queued, *reversed(ended)]


def test_a_run_that_was_sent_again_is_listed_once(backend: Harness, tenant: str) -> None:
    """Re-exports do not multiply runs."""
    run = make_run("once")
    backend.send(run, run, tenant=tenant)
    backend.send_spans(encode(run, tenant=tenant), tenant)
    assert ids(backend.reader.search(RunQuery(tenant))) == ["once"]


def test_a_run_whose_workflow_changed_is_listed_with_the_last(backend: Harness, tenant: str) -> None:
    """The filter compares the newest revision, not any."""
    backend.send(running("moved", workflowId="wf_old"), tenant=tenant, observed_at=T0 + SECOND)
    backend.send(make_run("moved", workflowId="wf_new"), tenant=tenant, observed_at=T0 + 2 * SECOND)
    assert ids(backend.reader.search(RunQuery(tenant, workflow_id="wf_old"))) == []
    assert ids(backend.reader.search(RunQuery(tenant, workflow_id="wf_new"))) == ["moved"]


@pytest.mark.parametrize("name", UNUSUAL_NAMES, ids=ascii)
def test_workflow_names_are_compared_exactly(backend: Harness, tenant: str, name: str) -> None:
    """No quote, brace, wildcard or line break in a name has a meaning."""
    backend.send(make_run("it", workflowId=name), tenant=tenant)
    backend.send(
        *[make_run(f"n{i}", workflowId=other) for i, other in enumerate(UNUSUAL_NAMES) if other != name], tenant=tenant
    )
    assert ids(backend.reader.search(RunQuery(tenant, workflow_id=name))) == ["it"]


def test_undocumented_statuses_can_be_listed(backend: Harness, tenant: str) -> None:
    """The platform may add a status at any time."""
    backend.send(make_run("unusual", status="paused by admin"), make_run("usual"), tenant=tenant)
    assert ids(backend.reader.search(RunQuery(tenant, status="paused by admin"))) == ["unusual"]


def test_runs_without_a_workflow_or_status_are_listed_without_those_filters_only(backend: Harness, tenant: str) -> None:
    """No filter value equals an absent member."""
    backend.send(make_run("bare", workflowId=..., status=...), tenant=tenant)
    assert ids(backend.reader.search(RunQuery(tenant))) == ["bare"]
    for query in (RunQuery(tenant, workflow_id=""), RunQuery(tenant, status=""), RunQuery(tenant, status="None")):
        assert ids(backend.reader.search(query)) == []


def test_the_sort_time_is_the_start_else_the_creation(backend: Harness, tenant: str) -> None:
    """A run that has not started sorts by its creation."""
    created = make_run(
        "created", startedAt=..., completedAt=..., status="pending", createdAt="2025-10-09T08:53:21.500Z"
    )
    around = [make_run("before", T0 + SECOND), make_run("after", T0 + 2 * SECOND)]
    backend.send(created, *around, tenant=tenant, observed_at=T0 + 3 * SECOND)
    assert ids(backend.reader.search(RunQuery(tenant))) == ["after", "created", "before"]


def test_since_is_inclusive(backend: Harness, tenant: str) -> None:
    """A run that started at ``since`` is listed, one that started a millisecond earlier is not."""
    backend.send(make_run("at", T0), make_run("earlier", T0 - MS), tenant=tenant)
    assert ids(backend.reader.search(RunQuery(tenant, since=T0))) == ["at"]


def ended_runs() -> dict[str, tuple[Run, bool]]:
    """Runs of many lengths, and whether they ended at the edge or later."""
    ends = {
        "short-before": (EDGE - 2 * SECOND, EDGE - SECOND),
        "short-at": (EDGE - SECOND, EDGE),
        "short-after": (EDGE + SECOND, EDGE + 2 * SECOND),
        "hour-before": (EDGE - HOUR - SECOND, EDGE - MS),
        "hour-after": (EDGE - HOUR - MS, EDGE + MS),
        "hour-exactly": (EDGE - HOUR, EDGE),
        "three-days-after": (EDGE - 3 * DAY, EDGE + MS),
        "three-days-before": (EDGE - 3 * DAY, EDGE - MS),
        "a-month": (T0, EDGE + 5 * SECOND),
        "no-end": (EDGE + HOUR, None),
        "no-end-before": (EDGE - HOUR, None),
    }
    made = {}
    for number, (run_id, (start, end)) in enumerate(ends.items()):
        members = {
            "completedAt": ... if end is None else canonical_text(end),
            "status": ("failed", "completed")[number % 2],
        }
        made[run_id] = make_run(run_id, start, **members), (start if end is None else end) >= EDGE
    return made


@pytest.mark.parametrize("status", [None, "failed", "completed", "cancelled"])
@pytest.mark.parametrize("workflow", [None, "wf_billing", "wf_none"])
def test_runs_are_listed_by_the_time_of_their_end(
    backend: Harness, tenant: str, status: str | None, workflow: str | None
) -> None:
    """Whenever they started: a run of a month that ended a second ago is in the list, on one page or on many. Runs that
    have not ended are not, and a run that was corrected, or ended by a person, is there by its new end."""
    made = ended_runs()
    backend.send(*[run for run, _ in made.values()], tenant=tenant)
    backend.send(running("going-on", EDGE), tenant=tenant, observed_at=EDGE + HOUR)
    changes = {
        "later": (make_run("later", T0 + DAY), make_run("later", T0 + DAY, completedAt=canonical_text(EDGE + SECOND))),
        "earlier": (make_run("earlier", EDGE), make_run("earlier", EDGE, completedAt=canonical_text(EDGE - SECOND))),
    }
    for before, after in changes.values():
        backend.send(before, tenant=tenant)
        backend.send_spans(encode(after, tenant=tenant, after_root=True, observed_at=EDGE + DAY), tenant)
    backend.send(running("dead", T0 + 2 * DAY), tenant=tenant, observed_at=T0 + 2 * DAY)
    spans = backend.reader.spans(run_ids("dead", tenant).trace_id, tenant)
    dead, correction = resolve(spans, status="cancelled", by="ann", now=EDGE + 2 * DAY)
    backend.send_spans([correction], tenant)
    listed = [run for run, is_listed in made.values() if is_listed] + [changes["later"][1], dead]
    expected = sorted(
        [run for run in listed if status in (None, run.to_dict()["status"]) and workflow in (None, run.workflow_id)],
        key=lambda run: (sort_time(run.envelope), run.id),
        reverse=True,
    )
    query = RunQuery(tenant, workflow, status, ended_since=EDGE)
    page = backend.reader.search(query)
    assert (list(page.items), page.cursor, page.partial) == ([run.summary() for run in expected], None, ())
    for limit in (1, 3):
        pages = all_pages(backend.reader, replace(query, limit=limit))
        assert list(chain.from_iterable(pages)) == [run.id for run in expected]
    since = EDGE - 3 * DAY
    page = backend.reader.search(replace(query, since=since))
    assert ids(page) == [run.id for run in expected if sort_time(run.envelope) >= since]
    for until in (EDGE + MS, EDGE + 2 * SECOND, EDGE + DAY):
        page = backend.reader.search(replace(query, ended_until=until))
        before = [run.id for run in expected if (end_time(run.envelope, sort_time(run.envelope)) or 0) < until]
        assert (ids(page), page.partial) == (before, ())
    page = backend.reader.search(replace(query, ended_since=None, ended_until=EDGE))
    assert not {*ids(page)} & {run.id for run in expected}
    assert {*ids(page)} | {"earlier"} >= {
        run.id
        for run, is_listed in made.values()
        if not is_listed and status in (None, run.to_dict()["status"]) and workflow in (None, run.workflow_id)
    }


@pytest.mark.parametrize("others", [{"status": "running"}, {"status": "suspended"}, {"stuck_before": T0}])
def test_what_has_not_ended_has_no_time_of_an_end(others: dict[str, Any]) -> None:
    """Such a list would always be empty; the error says what to leave out."""
    with pytest.raises(QueryError, match="has not ended"):
        RunQuery(ended_since=EDGE, **others)


def test_another_tenants_runs_are_not_listed(backend: Harness, tenant: str) -> None:
    """A list has the runs of one tenant."""
    backend.send(make_run("mine"), tenant=tenant)
    backend.send(make_run("theirs"), tenant=tenant + "-b")
    assert ids(backend.reader.search(RunQuery(tenant))) == ["mine"]


def test_a_run_without_its_steps_is_never_a_document(backend: Harness, tenant: str) -> None:
    """Steps without a revision span are not listed; a revision span without its steps only proves the list item."""
    backend.send_spans(encode(make_run("without revision span"), tenant=tenant)[:-1], tenant)
    backend.send_spans(encode(make_run("without steps"), tenant=tenant)[-1:], tenant)
    page = backend.reader.search(RunQuery(tenant))
    assert list(page.items) == ([make_run("without steps").summary()] if backend.lists_by_summary else [])
    for run_id in ("without revision span", "without steps"):
        with pytest.raises(TraceIncomplete):
            backend.reader.document(run_id, tenant)


@pytest.mark.parametrize("key", ["runspan.run.status", SUMMARY_DIGEST, REVISION])
def test_a_changed_list_item_is_not_listed(backend: Harness, tenant: str, key: str) -> None:
    """A list item has a digest of its own: a changed one is left out, which ``partial`` says; the others are listed."""
    *steps, root = encode(make_run("changed"), tenant=tenant)
    own = [
        (name, ROOT_REVISION + 1 if name == REVISION else "failed") if name == key else (name, value)
        for name, value in root.pairs()
    ]
    forged = msgspec.structs.replace(root, shared=(), own=own)
    backend.send_spans([*steps, forged], tenant)
    backend.send(make_run("complete"), tenant=tenant)
    page = backend.reader.search(RunQuery(tenant))
    complete, changed = make_run("complete").summary(), make_run("changed")
    if key == "runspan.run.status":
        assert list(page.items) == [complete]
        with pytest.raises(TraceIncomplete):
            backend.reader.document("changed", tenant)
    else:  # the document proves itself, so a backend that has read it may list it
        assert list(page.items) in ([complete], [complete, changed.summary()])
        assert backend.reader.document("changed", tenant).text == changed.text
    if backend.lists_by_summary and len(page.items) == 1:
        assert page.partial == (damaged_note("changed"),)


def test_two_ends_of_a_run_are_listed_as_they_are_read(backend: Harness, tenant: str) -> None:
    """One of two different documents of a finished run is listed, the same that is read, and both say so."""
    one, other = make_run("twice"), make_run("twice", output={"changed": True})
    for run in (one, other, one):
        backend.send_spans(encode(run, tenant=tenant), tenant)
    document = backend.reader.document("twice", tenant)
    page = backend.reader.search(RunQuery(tenant))
    assert document.text in (one.text, other.text)
    assert list(page.items) == [Run.from_json(document.text).summary()]
    hidden = other if document.text == one.text else one
    if not backend.keeps_all_spans:
        assert (document.text, document.conflict, page.partial) == (one.text, (), ())
        return
    (digest,) = document.conflict
    assert sha256(hidden.text).hexdigest().startswith(digest)
    assert page.partial == (conflict_note("twice", document.conflict),)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_step_that_arrived_twice_does_not_replace_a_lost_one(backend: Harness, tenant: str, lost: int) -> None:
    """As many step spans as the run has steps are no proof of the document."""
    *steps, run_span = encode(make_run("twice"), tenant=tenant)
    kept = steps[1 - lost]
    backend.send_spans([kept], tenant)
    backend.send_spans([kept, run_span], tenant)
    backend.send(make_run("complete"), tenant=tenant)
    unproved = ["twice"] if backend.lists_by_summary else []
    assert ids(backend.reader.search(RunQuery(tenant))) == [*unproved, "complete"]
    with pytest.raises(TraceIncomplete):
        backend.reader.document("twice", tenant)
    backend.send_spans([steps[lost]], tenant)
    assert backend.reader.document("twice", tenant).incomplete == ()


def test_a_step_of_an_older_version_does_not_replace_a_lost_one(backend: Harness, tenant: str) -> None:
    """Neither are as many different steps. Besides its own, a trace may have steps that its manifest no longer has."""
    older, newer = make_run("changed"), make_run("changed").to_dict()
    newer["steps"][1]["output"] = "another"
    newer_run = make_run("changed", steps=newer["steps"])
    old, own = encode(older, tenant=tenant), encode(newer_run, tenant=tenant)
    assert old[0].span_id == own[0].span_id
    backend.send_spans([own[0], old[1], own[-1]], tenant)
    backend.send(make_run("complete"), tenant=tenant)
    unproved = ["changed"] if backend.lists_by_summary else []
    assert ids(backend.reader.search(RunQuery(tenant))) == ["complete", *unproved]
    with pytest.raises(TraceIncomplete):
        backend.reader.document("changed", tenant)
    fresh = encode(make_run("fresh", steps=newer["steps"]), tenant=tenant)
    stale = encode(make_run("fresh"), tenant=tenant)[1]
    backend.send_spans([fresh[0], stale, fresh[1], fresh[-1]], tenant)
    assert ids(backend.reader.search(RunQuery(tenant))) == ["fresh", "complete", *unproved]
    assert backend.reader.document("fresh", tenant).incomplete == ()


@pytest.mark.parametrize("count", [19, 21, 130])
def test_a_run_of_many_steps_is_listed(backend: Harness, tenant: str, count: int) -> None:
    """However many there are, and in whichever order they arrive; without one of them it is no document."""
    steps = [{"id": f"s{number}", "status": "completed", "output": number} for number in range(count)]
    for run_id, missing in (("many", ()), ("lacking", (count // 2,))):
        spans = encode(make_run(run_id, steps=steps), tenant=tenant)
        kept = [span for number, span in enumerate(spans) if number not in missing]
        backend.send_spans(kept[::-1], tenant)
    unproved = ["lacking"] if backend.lists_by_summary else []
    assert ids(backend.reader.search(RunQuery(tenant))) == ["many", *unproved]
    assert len(Run.from_json(backend.reader.document("many", tenant).text).steps) == count
    with pytest.raises(TraceIncomplete):
        backend.reader.document("lacking", tenant)
