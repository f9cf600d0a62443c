"""Every backend: runs that are copied into the trace of one caller, which each run's own trace does not depend on."""

from __future__ import annotations

from uuid import uuid4

from conformance.harness import MS, T0, Harness, ids, make_run, running
from runspan import Run, encode
from runspan.codec.copies import copy_for_caller, copy_span_id
from runspan.codec.fields import ROLE
from runspan.contracts import RunQuery
from runspan.model.span import Link, Span, run_ids


def with_copies(run: Run, tenant: str, caller: Link) -> list[Span]:
    """Return the spans of a run as a recorder sends them: each with its copy before it."""
    found: list[Span] = []
    for span in encode(run, tenant=tenant, observed_at=T0 + 1):
        copy = copy_for_caller(span, caller)
        found += [span] if copy is None else [copy, span]
    return found


def test_runs_of_one_caller_are_found_each_by_its_id(backend: Harness, tenant: str) -> None:
    """Each document is exact, each run is listed once, and the caller's trace has the waterfall of all of them."""
    caller = Link(uuid4().bytes, b"\1" * 8)
    runs = [
        make_run("run_1"),
        make_run("run_2"),
        make_run("run_3", T0 + 5 * MS, status="failed", workflowId="wf_other"),
    ]
    unfinished = running("run_4", T0 + 9 * MS)
    for run in (*runs, unfinished):
        spans = with_copies(run, tenant, caller)
        # The copies are sent after the run's first span, whose attributes name the run to the harness.
        backend.send_spans(sorted(spans, key=lambda span: ROLE not in span.attributes()), tenant)
    for run in (*runs, unfinished):
        document = backend.reader.document(run.id, tenant)
        assert (document.text, document.incomplete, document.conflict) == (run.text, (), ())
    search = backend.reader.search
    assert ids(search(RunQuery(tenant=tenant))) == ["run_4", "run_3", "run_2", "run_1"]
    assert ids(search(RunQuery(tenant=tenant, workflow_id="wf_billing"))) == ["run_4", "run_2", "run_1"]
    assert ids(search(RunQuery(tenant=tenant, status="completed"))) == ["run_2", "run_1"]
    assert ids(search(RunQuery(tenant=tenant, status="failed", workflow_id="wf_other"))) == ["run_3"]
    assert ids(search(RunQuery(tenant=tenant, status="running"))) == ["run_4"]
    assert search(RunQuery(tenant=tenant)).partial == ()

    by_id = {span.span_id: span for span in backend.reader.spans(caller.trace_id)}
    assert len(by_id) == 3 * 3 + 1
    for run in runs:
        root = by_id[copy_span_id(run_ids(run.id, tenant).root_id)]
        assert (root.parent_id, root.name) == (caller.span_id, f"run {run.envelope.workflow_id} (copy)")
        steps = [span for span in by_id.values() if span.parent_id == root.span_id]
        assert sorted(span.name for span in steps) == ["Fetch", "Notify"]
        own = {span.span_id for span in backend.reader.spans(run_ids(run.id, tenant).trace_id)}
        assert {link.span_id for span in (root, *steps) for link in span.links} <= own


def test_a_copy_in_the_trace_of_another_run_is_no_part_of_it(backend: Harness, tenant: str) -> None:
    """A run that a step of another run starts is copied into the other run's own trace."""
    outer, inner = make_run("run_outer"), make_run("run_inner", T0 + 7 * MS, workflowId="wf_billing")
    outer_ids = run_ids(outer.id, tenant)
    spans = with_copies(inner, tenant, Link(outer_ids.trace_id, outer_ids.root_id))
    backend.send(outer, tenant=tenant)
    backend.send_spans(sorted(spans, key=lambda span: ROLE not in span.attributes()), tenant)
    for run in (outer, inner):
        document = backend.reader.document(run.id, tenant)
        assert (document.text, document.incomplete) == (run.text, ())
    page = backend.reader.search(RunQuery(tenant=tenant, workflow_id="wf_billing"))
    assert (ids(page), page.partial) == (["run_inner", "run_outer"], ())
