"""The embedded store: runs of a newer runspan, for which other statuses end a step or a run, stay as they were sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conformance.harness import SECOND, T0, make_run, otlp, running, write_spans
from runspan import Run, decode, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.revision import StoredRevision, from_row, iter_spans
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.codec.decode import verify_run
from runspan.codec.encode import RunEncoder
from runspan.codec.fields import REVISION, ROOT_REVISION
from runspan.contracts import Document
from runspan.errors import StoreError
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf

TIMES = {"startedAt": "2026-01-15T09:00:01.000Z", "completedAt": "2026-01-15T09:00:02.000Z"}
IDS = [bytes([number] * 8) for number in range(1, 4)]


def run_of(statuses: Sequence[str], status: str = "completed", **members: Any) -> Run:
    steps = [{"id": f"s{number}", "status": each, **TIMES} for number, each in enumerate(statuses)]
    return Run.from_dict({"id": "r", "status": status, **TIMES, **members, "steps": steps})


def newer_spans(run: Run, ended: Sequence[bool], *, observed_at: int | None = None) -> list[Span]:
    """Return the spans of a writer for which these steps have ended."""
    ids = [span_id for span_id, has_ended in zip(IDS, ended, strict=False) if has_ended]
    return RunEncoder(run, "", observed_at=observed_at).spans(ids, ended)


def with_revision(span: Span, revision: Any) -> Span:
    own = {**span.attributes(), REVISION: revision}
    return msgspec.structs.replace(span, shared=(), own=list(own.items()))


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [
        (["completed", "cancelled"], [True, True]),
        (["completed", "cancelled", "running"], [True, True, False]),
        (["cancelled", "skipped"], [True, False]),
        (["completed", "completed"], [False, False]),
    ],
    ids=["more", "more, one open", "as many, others", "none"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_the_manifest_decides_which_steps_have_a_span(
    store: SqliteStore, statuses: list[str], ended: list[bool], apart: bool
) -> None:
    """The run is read, its spans are those that were sent, and later spans of the trace are accepted."""
    run = run_of(statuses)
    spans = newer_spans(run, ended)
    assert decode(spans) == run
    for part in [[span] for span in spans] if apart else [spans]:
        write_spans(store, part)
    assert store.document("r") == Document(run.text)
    again = store.spans(run_ids("r").trace_id)
    assert [span.span_id for span in again] == [span.span_id for span in spans]
    assert decode(again) == run
    changed, other = run_of(["completed"], note=1), make_run("other")
    write_spans(store, [*newer_spans(changed, [True], observed_at=T0)[:1], *encode(other)])
    assert store.document("other").text == other.text
    assert store.document("r").text == run.text


def test_a_snapshot_may_say_that_its_run_has_ended(store: SqliteStore) -> None:
    """It keeps its revision, so the next snapshot replaces it, whether its spans arrive together or apart."""
    write_spans(store, RunEncoder(run_of(["completed"]), "", observed_at=T0, is_root=False).spans())
    assert verify_run(store.spans(run_ids("r").trace_id)).revision == T0
    newer = encode(run_of(["completed", "completed"], "running"), observed_at=T0 + 5)
    write_spans(store, newer[-1:])
    assert len(store.document("r").incomplete) == 1
    write_spans(store, newer[:-1])
    assert store.document("r") == Document(run_of(["completed", "completed"], "running").text)


def test_a_run_span_may_have_an_unknown_status(store: SqliteStore) -> None:
    """The writer decides what ends a run: an older snapshot does not replace it."""
    run = run_of(["completed"], "archived")
    write_spans(store, RunEncoder(run, "", observed_at=T0, is_root=True).spans())
    for span in reversed(encode(run_of(["completed", "completed"], "running"), observed_at=T0 + 5)):
        write_spans(store, [span])
    assert store.document("r").text == run.text
    assert verify_run(store.spans(run_ids("r").trace_id)).revision == ROOT_REVISION


@pytest.mark.parametrize("revision", [-1, "first", True])
def test_a_revision_span_without_a_revision_ranks_lowest(store: SqliteStore, revision: Any) -> None:
    """It is read only while there is no other."""
    spans = encode(run_of(["completed", "running"], "running"), observed_at=T0)
    write_spans(store, [*spans[:-1], with_revision(spans[-1], revision)])
    assert store.document("r").text == run_of(["completed", "running"], "running").text
    assert decode(store.spans(run_ids("r").trace_id)).text == store.document("r").text
    write_spans(store, encode(run_of(["completed"]), observed_at=T0))
    assert store.document("r").text == run_of(["completed"]).text


@pytest.mark.parametrize("observed_at", [None, T0])
def test_what_encode_writes_needs_no_column(observed_at: int | None) -> None:
    """The ids of the steps are stored only where another writer chose others."""
    for run in (make_run("r"), running("r"), Run.from_json('{"id":"r"}'), Run.from_json('{"id":"r","steps":null}')):
        spans = encode(run, tenant="t", observed_at=observed_at)
        verified = verify_run(spans)
        stored = from_row(run, "t", verified.revision, None, verified.position)
        column = stored.packed_step_ids()
        assert (column is None) is (verified.revision >= ROOT_REVISION)  # one that grows has them always
        assert from_row(run, "t", verified.revision, column, verified.position) == stored
        assert otlp(list(iter_spans(stored))) == otlp(spans)


@pytest.mark.parametrize("step_ids", [[IDS[0], b""], [b"", IDS[0]], IDS[:2], [b"", b""]])
def test_the_ids_of_steps_come_back_from_their_column(step_ids: list[bytes]) -> None:
    """Whichever steps have a span."""
    run = run_of(["completed", "running"])
    packed = StoredRevision(run, "", T0, step_ids, T0).packed_step_ids()
    assert from_row(run, "", T0, packed, T0).step_ids == step_ids


def test_a_damaged_row_affects_no_other_run(store: SqliteStore, tmp_path: Path) -> None:
    """The document is returned, its spans are an error with the run id, and spans to merge with them are rejected."""
    run = make_run("r")
    write_spans(store, encode(run, step_ids=IDS[:2]))
    connection = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    connection.execute("UPDATE runs SET step_ids = zeroblob(24)")
    connection.close()
    with pytest.raises(StoreError, match="made into spans again"):
        store.spans(run_ids("r").trace_id)
    other = make_run("other")
    late = encode(make_run("r", at=T0 + SECOND))[:1]
    written = store.write(read_protobuf(otlp([*late, *encode(other)])))
    assert [rejection.spans for rejection in written.rejected] == [1]
    assert store.document("other").text == other.text
    assert store.document("r").text == run.text
