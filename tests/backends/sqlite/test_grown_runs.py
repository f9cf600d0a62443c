"""The embedded store: a run that was sent with each of its steps is as if only its last document had been sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.harness import MS, SECOND, T0, write_spans
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.codec.decode import verify_run
from runspan.codec.fields import REVISION
from runspan.contracts import RunQuery
from runspan.model.document import RUN_STATUSES, TERMINAL_RUN_STATUSES
from runspan.model.span import Span, run_ids
from runspan.model.timestamps import canonical_text

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

WORKFLOWS = ("wf-a", "wf-b")
OUTPUT_BYTES = (20, 20_000)
"""With the larger ones, documents are stored in two parts, of which the first is kept while the run grows."""

tenants = (f"tenant-{number}" for number in count())
"""Of each example, so that its lists have its run alone."""


class Stores(NamedTuple):
    """A store that two processes write, and another one."""

    grown: tuple[SqliteStore, SqliteStore]
    whole: SqliteStore


class Version(NamedTuple):
    """A document of a run."""

    run: Run
    all_spans: list[Span]
    sent: list[Span]
    """Those of its spans that are sent with it."""
    to: int
    """The number of the process that gets them."""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Yield empty stores."""
    with ExitStack() as opened:
        one, other, whole = [opened.enter_context(SqliteStore(tmp_path / name)) for name in ("a", "a", "b")]
        yield Stores((one, other), whole)


def change_steps(draw: st.DrawFn, steps: list[dict[str, Any]], number: int) -> None:
    """Begin, retry and end steps, as an engine does between two observations; seldom, correct or remove one."""
    at = T0 + number * SECOND
    changes = ("begin", "end", "begin and end", "begin and end", "retry", "correct", "remove")
    for change in draw(st.lists(st.sampled_from(changes), max_size=3)):
        if change.startswith("begin"):
            step = {"id": f"s{number}-{len(steps)}", "status": "running", "startedAt": canonical_text(at)}
            steps.insert(len(steps) - draw(st.integers(0, min(1, len(steps)))), step)
        elif not steps:
            continue
        else:
            step = steps[draw(st.integers(0, len(steps) - 1))]
        is_open = step["status"] != "completed"
        if change.endswith("end") and is_open:
            size = draw(st.sampled_from(OUTPUT_BYTES))
            output = "".join(str(number * digit) for digit in range(size))[:size]
            step |= {"status": "completed", "completedAt": canonical_text(at + MS), "output": output}
        elif change == "retry" and is_open:
            step |= {"status": "retrying", "attempt": step.get("attempt", 0) + 1}
        elif change in ("correct", "remove") and draw(st.integers(0, 3)) == 0:
            if change == "remove":
                steps.remove(step)
            else:
                step["output"] = {"corrected": number}


def change_members(draw: st.DrawFn, document: dict[str, Any], number: int) -> None:
    """Change what lists filter and sort by, now and then."""
    change = draw(st.sampled_from(("status", "status", "workflow", "start", *[""] * 6)))
    if change == "status":
        document["status"] = draw(st.sampled_from((*RUN_STATUSES, "another", None)))
        has_ended = document["status"] in TERMINAL_RUN_STATUSES
        document["completedAt"] = canonical_text(T0 + number * SECOND + 2 * MS) if has_ended else None
    elif change == "workflow":
        document["workflowId"] = draw(st.sampled_from((*WORKFLOWS, None)))
    elif change == "start":
        document["startedAt"] = canonical_text(T0 - draw(st.integers(0, 2)) * SECOND)


@st.composite
def histories(draw: st.DrawFn, tenant: str) -> list[Version]:
    """Return the versions of a run in their order. With most of them the new spans are sent, with some all of them."""
    document = {"id": "r", "workflowId": "wf-a", "status": "running", "startedAt": canonical_text(T0), "steps": []}
    versions: list[Version] = []
    known: set[bytes] = set()
    for number in range(draw(st.integers(2, 12))):
        change_steps(draw, document["steps"], number)
        change_members(draw, document, number)
        run = Run.from_json(json.dumps(document))
        has_ended = any(version.run.finished for version in versions)
        spans = encode(run, tenant=tenant, observed_at=T0 + number * SECOND, after_root=has_ended)
        if draw(st.integers(0, 7)) == 0:
            known.clear()
        new = [span for span in spans if span.span_id not in known or REVISION in span.attributes()]
        known.update(span.span_id for span in spans)
        versions.append(Version(run, spans, new, to=draw(st.integers(0, 1))))
    return versions


def queries(tenant: str) -> Iterator[RunQuery]:
    """Yield lists in which the run of a tenant may be."""
    statuses = (None, *RUN_STATUSES, "another", ("completed", "failed"), ("completed", "running", "another"))
    for status, workflow_id in product(statuses, (None, *WORKFLOWS)):
        yield RunQuery(tenant=tenant, status=status, workflow_id=workflow_id)
    for status in (None, "completed", ("completed", "failed")):
        yield RunQuery(tenant=tenant, status=status, ended_since=T0 + 3 * SECOND)
    for before in (T0 + 65 * SECOND, 1 << 62):
        yield RunQuery(tenant=tenant, stuck_before=before)


@relaxed
@given(data=st.data())
def test_a_grown_run_is_as_if_it_was_sent_at_once(stores: Stores, data: st.DataObject) -> None:
    """After each request the document is the one that was sent; at last, everything that is read is the same."""
    tenant = next(tenants)
    trace_id = run_ids("r", tenant).trace_id
    for version in data.draw(histories(tenant)):
        write_spans(stores.grown[version.to], version.sent, tenant)
        for store in stores.grown:
            document = store.document("r", tenant)
            assert (document.text, document.incomplete) == (version.run.text, ())
    write_spans(stores.whole, version.all_spans, tenant)
    one, whole = stores.grown[0], stores.whole
    assert one.document("r", tenant) == whole.document("r", tenant)
    assert verify_run(one.spans(trace_id)) == verify_run(whole.spans(trace_id))
    for query in queries(tenant):
        assert one.search(query) == whole.search(query)
    assert one.unfinished() == whole.unfinished()
    assert one.suspended(T0) == whole.suspended(T0)
    assert sorted(one.stuck(1 << 62, 1 << 62), key=repr) == sorted(whole.stuck(1 << 62, 1 << 62), key=repr)
    assert list(one.find_damage()) == []
