"""A store's file whose bits were flipped, or whose write-ahead log was damaged: what is read is right, or refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from conformance.harness import T0
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.codec.decode import verify_run
from runspan.contracts import RunQuery
from runspan.errors import NotFound, RunspanError, StoreError
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.testing import generate
from support.faults import FaultLine

T = TypeVar("T")
SEED = 20261128
RUNS = [Run.from_json(text) for text in generate(60, seed=SEED, unfinished=True)]
TEXTS = {run.id: run.text for run in RUNS}


def fill(store: SqliteStore) -> None:
    """Write documents, received spans, a run whose spans are incomplete and a foreign span: a row in every table."""
    for run in RUNS[:30]:
        store.put(run, observed_at=T0)
    for run in RUNS[30:]:
        write(store, encode(run))
    write(store, encode(Run.from_dict({"id": "cut", "steps": [{"id": "a", "status": "completed"}]}))[:1])
    foreign = Span(run_ids(RUNS[0].id, "").trace_id, b"12345678", b"", "SELECT", 3, T0, T0 + 1, 0, "", (), ())
    write(store, [foreign])


def write(store: SqliteStore, spans: list[Span]) -> None:
    store.write(read_protobuf(request_bytes(Resource(), [scoped_bytes(span) for span in spans])))


def read_everything(data: Path, fault: FaultLine) -> None:
    """Count what the store has wrong. What it refuses must be an error of runspan's tree."""
    try:
        store = SqliteStore(data)
    except RunspanError:
        fault.refused += 1
        return
    with store:
        for run_id, text in TEXTS.items():
            document = attempt(lambda run_id=run_id: store.document(run_id).text, fault)
            fault.wrong += document not in (None, text)
            spans = attempt(lambda run_id=run_id: store.spans(run_ids(run_id, "").trace_id), fault)
            fault.wrong += spans is not None and proved(spans) not in (None, text)
        for query in (RunQuery(limit=200), RunQuery(limit=200, status="failed")):
            page = attempt(lambda query=query: store.search(query), fault)
            if page is not None:
                right = {run.summary() for run in RUNS if query.status in (None, run.status)}
                fault.wrong += any(item not in right for item in page.items)
                fault.twice += len(page.items) - len(set(page.items))


def attempt(read: Callable[[], T], fault: FaultLine) -> T | None:
    """Return what is read; None for what is refused or gone."""
    try:
        return read()
    except NotFound:
        return None
    except RunspanError:
        fault.refused += 1
        return None


def proved(spans: list[Span]) -> bytes | None:
    """Return the document that a reader of the spans rebuilds; None if they prove none."""
    try:
        return verify_run(spans).run.text
    except RunspanError:
        return None


def copy_files(source: Path, target: Path) -> None:
    """Make the files of a directory those of another."""
    for leftover in target.iterdir():
        leftover.unlink()
    for file in source.iterdir():
        shutil.copy(file, target / file.name)


def flip(random: Random, file: Path) -> None:
    """Flip one to eight bits near each other."""
    content = bytearray(file.read_bytes())
    at = random.randrange(len(content))
    for _ in range(random.randint(1, 8)):
        content[min(len(content) - 1, at + random.randrange(16))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in one file."""
    data = tmp_path_factory.mktemp("complete")
    with SqliteStore(data) as store:
        fill(store)
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        tables = ("runs", "fragments", "foreign_spans", "resources")
        assert all(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
    return data


@pytest.mark.parametrize("rounds", [15, pytest.param(1500, marks=pytest.mark.campaign)])
def test_flipped_bits(fault: FaultLine, tmp_path: Path, complete: Path, rounds: int) -> None:
    """Bits of any page flip: of a table, an index, the list of free pages or the header."""
    random = Random(SEED)
    fault.acknowledged = len(TEXTS)
    for _ in range(rounds):
        copy_files(complete, tmp_path)
        flip(random, tmp_path / FILE_NAME)
        read_everything(tmp_path, fault)
        fault.rounds += 1
    assert fault.refused


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a store whose process ended without closing it: most rows are in the write-ahead log."""
    data, copy = tmp_path_factory.mktemp("open"), tmp_path_factory.mktemp("killed")
    with SqliteStore(data) as store:
        fill(store)
        for file in data.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy / file.name)
    return copy


@pytest.mark.parametrize("rounds", [15, pytest.param(1500, marks=pytest.mark.campaign)])
def test_damaged_write_ahead_log(fault: FaultLine, tmp_path: Path, killed: Path, rounds: int) -> None:
    """Bits of the log flip, or it is cut: it ends there, and what was written before is read."""
    random = Random(SEED)
    fault.acknowledged = len(TEXTS)
    for _ in range(rounds):
        copy_files(killed, tmp_path)
        log = tmp_path / f"{FILE_NAME}-wal"
        if random.random() < 0.5:
            flip(random, log)
        else:
            log.write_bytes(log.read_bytes()[: random.randrange(log.stat().st_size)])
        read_everything(tmp_path, fault)
        fault.rounds += 1


def test_an_index_that_leads_to_another_run(tmp_path: Path) -> None:
    """Both rows are sound, so only the run that is read shows that it is not the one asked for."""
    with SqliteStore(tmp_path) as store:
        for run in RUNS[:3]:
            store.put(run, observed_at=T0)
    content = (tmp_path / FILE_NAME).read_bytes()
    trace_id = run_ids(RUNS[1].id, "").trace_id
    # An entry of the index of trace ids: its size, the types of its columns, the id and the number of the row.
    entry = bytes([20, 3, 12 + 2 * len(trace_id), 1]) + trace_id
    assert content.count(entry + b"\x02") == 1
    (tmp_path / FILE_NAME).write_bytes(content.replace(entry + b"\x02", entry + b"\x03"))
    with SqliteStore(tmp_path) as store:
        for read in (lambda: store.document(RUNS[1].id), lambda: store.spans(trace_id)):
            with pytest.raises(StoreError, match="another run"):
                read()
        assert store.document(RUNS[2].id).text == RUNS[2].text
