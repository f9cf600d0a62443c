"""Isolation of tenants: none reads or changes runs of another, whatever it knows of them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.errors import NotFound, TraceIncomplete
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes

NOW = 1_768_467_700_000_000_000
RUNNING = Run.from_json('{"id":"r","status":"running","steps":[{"id":"a","status":"running"}]}')
ENDED = Run.from_json('{"id":"r","status":"completed","steps":[{"id":"a","status":"completed","output":1}]}')
TRACE = run_ids("r", "acme").trace_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty store."""
    with SqliteStore(tmp_path / "data") as store:
        yield store


def send(store: SqliteStore, spans: list[Span], tenant: str) -> None:
    store.write(read_protobuf(request_bytes(Resource(), map(scoped_bytes, spans))), tenant)


def span_of(number: int, **attributes: str) -> Span:
    return Span(
        trace_id=TRACE,
        span_id=number.to_bytes(8, "big"),
        parent_id=b"",
        name="x",
        kind=1,
        start=NOW,
        end=NOW + 1,
        status=0,
        message="",
        shared=(),
        own=[(key.replace("_", "."), value) for key, value in attributes.items()],
    )


def test_another_tenant_cannot_hide_what_is_missing(store: SqliteStore) -> None:
    """Spans of another tenant in a trace change neither the document nor the report of what is missing."""
    store.put(RUNNING, tenant="acme", observed_at=NOW)
    *steps, run_span = encode(ENDED, tenant="acme")
    send(store, [run_span], "acme")
    before = store.document("r", "acme")
    assert before.incomplete
    send(store, [span_of(1, runspan_role="step")], "beta")
    send(store, steps, "beta")
    assert store.document("r", "acme") == before
    send(store, steps, "acme")
    assert store.document("r", "acme").text == ENDED.text
    assert not store.document("r", "acme").incomplete


def test_fragments_of_another_tenant_complete_nothing(store: SqliteStore) -> None:
    """A run whose steps another tenant sent stays incomplete."""
    *steps, run_span = encode(ENDED, tenant="acme")
    send(store, steps, "beta")
    send(store, [run_span], "acme")
    with pytest.raises(TraceIncomplete):
        store.document("r", "acme")


@pytest.mark.parametrize("stored", [False, True], ids=["no run stored", "run stored"])
def test_a_tenant_sees_its_own_spans_of_a_trace(store: SqliteStore, stored: bool) -> None:
    """With a tenant, a trace holds what that tenant sent, whether or not its run is stored."""
    if stored:
        store.put(ENDED, tenant="acme", observed_at=NOW)
    send(store, [span_of(1, db_statement="beta private")], "beta")
    send(store, [span_of(2, runspan_run_id="r")], "acme")
    assert not [span for span in store.spans(TRACE, "acme") if "db.statement" in span.attributes()]
    assert [span.span_id for span in store.spans(TRACE, "beta")] == [(1).to_bytes(8, "big")]
    with pytest.raises(NotFound):
        store.spans(TRACE, "gamma")


def test_fragments_of_another_tenant_do_not_prevent_a_purge(store: SqliteStore) -> None:
    """A run is purged although another tenant sent a step into its trace, and the step is deleted too."""
    send(store, encode(ENDED, tenant="acme"), "acme")
    forged = encode(ENDED, tenant="acme")[0]
    send(store, [msgspec.structs.replace(forged, own=[*forged.own, ("runspan.step.name", "x")])], "beta")
    assert store.stats().fragments == 1
    assert store.purge([(sha256(ENDED.text).digest(), "r")], "acme").deleted == 1
    assert store.stats().fragments == 0


def test_a_tenants_own_fragments_prevent_a_purge(store: SqliteStore) -> None:
    """A fragment may belong to a newer revision, of which no copy exists elsewhere."""
    send(store, encode(ENDED, tenant="acme"), "acme")
    own = encode(ENDED, tenant="acme")[0]
    send(store, [msgspec.structs.replace(own, own=[*own.own, ("runspan.step.name", "x")])], "acme")
    assert store.purge([(sha256(ENDED.text).digest(), "r")], "acme").named == ("r",)


def test_other_users_cannot_read_the_store(store: SqliteStore, tmp_path: Path) -> None:
    """Only the owner can access the directory and the files, whatever the umask."""
    store.put(ENDED, tenant="acme", observed_at=NOW)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for file in (tmp_path / "data").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name
