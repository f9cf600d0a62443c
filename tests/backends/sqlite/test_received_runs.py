"""The embedded store: runs that were read as a whole have the rows that their spans would have."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from conformance.harness import T0, foreign_otlp, make_run, otlp, running
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.backends.sqlite.waiting import Limits
from runspan.contracts import Rejection
from runspan.model.span import run_ids
from runspan.otlp.bulk_reader import read_request
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_reader import ParsedRequest, read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes
from runspan.testing import generate
from support.corpus import cases

RUNS = [Run.from_json(text) for text in generate(40, seed=5)]
CASES = [Run.from_json(text) for text in cases().values() if len(text) < 20_000]
BIG = make_run("big", steps=[{"id": f"s{number}", "status": "completed"} for number in range(20)])
TABLES = {
    "runs": "trace_id, tenant, run_id, workflow_id, status, time, ended, revision, digest, observed_at, superseded,"
    " incomplete, checksum, summary, document, step_ids, resource_id, row_checksum",
    "fragments": "trace_id, tenant, span_id, fingerprint, kind, spans, missing, tried, content",
    "foreign_spans": "trace_id, tenant, span_id, digest, otlp",
    "resources": "id, content",
}


def written(*runs: Run, tenant: str = "") -> bytes:
    return request_bytes(
        Resource(), chain.from_iterable([write_run(run, tenant=tenant, observed_at=1) for run in runs])
    )


def rows_and_rejections(
    folder: Path, read: Callable[[bytes], ParsedRequest], requests: Sequence[bytes]
) -> tuple[dict[str, list[tuple[object, ...]]], list[list[Rejection]]]:
    """Return all rows of a new store, and what it rejected."""
    with SqliteStore(folder, clock=lambda: T0, limits=Limits(max_steps=15)) as store:
        rejected = [sorted(store.write(read(body)).rejected, key=str) for body in requests]
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        rows = {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table}"), key=repr)
            for table, columns in TABLES.items()
        }
    return rows, rejected


REQUESTS: dict[str, list[bytes]] = {
    "new": [written(*RUNS)],
    "corpus": [written(run) for run in CASES],
    "repeated": [written(*RUNS), written(*RUNS[:5]), written(*RUNS[3:9])],
    "after a snapshot": [otlp(encode(running("r"), observed_at=T0)), written(make_run("r"))],
    "before a snapshot": [written(make_run("r")), otlp(encode(running("r"), observed_at=T0))],
    "after some spans": [otlp(encode(RUNS[0])[1:]), written(RUNS[0], RUNS[1])],
    "other steps": [otlp(encode(make_run("r", steps=[{"id": "x", "status": "failed"}]))[:1]), written(make_run("r"))],
    "corrected": [written(make_run("r")), written(make_run("r", output=1)), written(make_run("r"))],
    "of another tenant": [written(*RUNS[:3], tenant="other")],
    "too many steps": [written(BIG, *RUNS[:3])],
    "with foreign spans": [
        written(*RUNS[:3]) + foreign_otlp(run_ids(RUNS[1].id).trace_id, b"foreign1", "GET /"),
        foreign_otlp(run_ids(RUNS[0].id).trace_id, b"foreign2", "GET /") + written(RUNS[0], RUNS[4]),
    ],
}


@pytest.mark.parametrize("requests", REQUESTS.values(), ids=REQUESTS)
def test_the_rows_are_the_same(tmp_path: Path, requests: list[bytes]) -> None:
    """Whatever was stored before, and whatever is rejected."""
    found = [rows_and_rejections(tmp_path / read.__name__, read, requests) for read in (read_protobuf, read_request)]
    assert found[0] == found[1]
