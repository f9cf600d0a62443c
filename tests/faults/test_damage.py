"""A store's file whose bits were flipped, or whose write-ahead log was damaged: what is read is right, or refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest
from click.testing import CliRunner

from conformance.harness import T0
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.integrity import find_damage
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.cli import main
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


def rows_of(data: Path) -> dict[str, object] | None:
    """Return all columns of all rows, documents decompressed; None if they cannot be read.

    Without the mark of the last commit: it is random, so nothing says that it was another one. A log that was written
    after it does not fit any more, and is refused.
    """
    found: dict[str, object] = {}
    try:
        with closing(sqlite3.connect(f"{(data / FILE_NAME).as_uri()}?immutable=1", uri=True)) as connection:
            compression = Compression()
            compression.load(connection)
            for table in ("runs", "fragments", "foreign_spans", "dictionaries", "resources"):
                cursor = connection.execute(f"SELECT * FROM {table} NOT INDEXED ORDER BY id")
                names = [column[0] for column in cursor.description]
                for values in cursor:
                    row = dict(zip(names, values, strict=True))
                    if table == "runs":
                        row["document"] = compression.decompress(row["document"], connection)
                    found[f"{table} {row['id']}"] = row
    except (sqlite3.Error, UnicodeDecodeError, CorruptFrame, TypeError):
        return None
    return found


@pytest.mark.parametrize("rounds", [30, pytest.param(3000, marks=pytest.mark.campaign)])
def test_check_of_flipped_bits(fault: FaultLine, tmp_path: Path, complete: Path, rounds: int) -> None:
    """A check finds each change of a row; bits that no row needs may be different. Refused: what it has found."""
    random = Random(SEED + 1)
    sound = rows_of(complete)
    path = tmp_path / FILE_NAME
    for _ in range(rounds):
        shutil.copy(complete / FILE_NAME, path)
        flip(random, path)
        is_damaged = rows_of(tmp_path) != sound
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True, isolation_level=None)) as connection:
            found = list(find_damage(connection, Compression()))
        fault.acknowledged += is_damaged
        fault.refused += is_damaged and bool(found)
        fault.lost += is_damaged and not found
        fault.rounds += 1


@pytest.mark.parametrize("rounds", [10, pytest.param(400, marks=pytest.mark.campaign)])
def test_mending_flipped_bits(fault: FaultLine, tmp_path: Path, complete: Path, rounds: int) -> None:
    """What a check repairs and leaves is right and complete, and every run that it moved out can be sent again."""
    random = Random(SEED + 2)
    fault.acknowledged = len(TEXTS)
    for _ in range(rounds):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        shutil.copy(complete / FILE_NAME, tmp_path / FILE_NAME)
        for _ in range(random.choice((1, 1, 3, 20))):
            flip(random, tmp_path / FILE_NAME)
        result = CliRunner().invoke(main, ["check", "--data", str(tmp_path), "--repair", "--set-aside"])
        assert result.exit_code in (0, 1, 10), result.output
        fault.rounds += 1
        if result.exit_code:
            fault.refused += 1  # the schema or a dictionary is damaged
            continue
        with SqliteStore(tmp_path) as store:
            assert list(store.find_damage()) == []
            for run in RUNS:
                with suppress(NotFound):
                    fault.wrong += store.document(run.id).text != run.text
                store.put(run, observed_at=T0)
            items = store.search(RunQuery(limit=200)).items
            fault.lost += len({run.summary() for run in RUNS} - set(items))
            fault.twice += len(items) - len(set(items))
            fault.wrong += any(store.document(run.id).text != run.text for run in RUNS)
    assert fault.refused < rounds / 2


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
