"""Every kind of damage is found and named, what follows from sound data is mended, and what is set aside can be sent
again."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from conformance.harness import T0
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.compression import Compression, CorruptFrame
from runspan.backends.sqlite.integrity import Damage, find_damage
from runspan.contracts import RunQuery
from runspan.errors import StoreError
from runspan.model.span import Span, run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.testing import generate
from support.corpus import cases

RUNS = [Run.from_json(text) for text in generate(40, seed=9, unfinished=True)]
SUMS = ("waiting_traces", "waiting_tenants")
TABLES = ("runs", "fragments", "foreign_spans", "dictionaries", "resources", "last_commit")


def write(store: SqliteStore, spans: list[Span], tenant: str = "") -> None:
    store.write(read_protobuf(request_bytes(Resource(), [scoped_bytes(span) for span in spans])), tenant)


def fill(store: SqliteStore) -> None:
    """A row in every table but that of dictionaries."""
    for run in RUNS[:20]:
        store.put(run, tenant="acme", observed_at=T0)
    for run in RUNS[20:]:
        write(store, encode(run, tenant="acme"), "acme")
    write(store, encode(Run.from_dict({"id": "cut", "steps": [{"id": "a", "status": "completed"}]}))[:1])
    write(store, [Span(run_ids("r", "").trace_id, b"12345678", b"", "SELECT", 3, T0, T0 + 1, 0, "", (), ())])


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """An open store."""
    with SqliteStore(tmp_path) as opened:
        fill(opened)
        yield opened


def execute(store: SqliteStore, *statements: str) -> None:
    """Change the store behind its back."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def dump(store: SqliteStore) -> dict[str, list[object]]:
    with closing(sqlite3.connect(store.path)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES[:-1]}


def test_a_sound_store_has_no_damage(store: SqliteStore) -> None:
    """Whatever documents it has, and while it is written."""
    runs = [Run.from_json(text) for text in cases().values()]
    for number, run in enumerate(runs):
        store.put(run, tenant=f"t{number}", observed_at=T0)
        write(store, encode(run, tenant=f"u{number}"), f"u{number}")
    rows = 0

    def count(more: int) -> None:
        nonlocal rows
        rows += more

    with closing(store.find_damage(count)) as found:
        assert list(found) == []
    assert rows == store.count_rows() >= 40 + 2 * len(runs) + 3


DAMAGES = {
    "document": ("document = CAST(substr(document, 1, 30) || x'00' || substr(document, 32) AS BLOB)", "set aside"),
    "no frame": ("document = x'00'", "set aside"),
    "digest": ("digest = zeroblob(16)", "set aside"),
    "step ids": ("step_ids = x'0102'", "set aside"),
    "revision": ("revision = -1", "set aside"),
    "superseded": ("superseded = x'01'", "set aside"),
    "resource": ("resource_id = 77", "set aside"),
    "time of writing": ("written_at = written_at + 1", "set aside"),
    "incomplete": ("incomplete = x'ff'", "set aside"),
    "tenant": ("tenant = CAST('acmf' AS BLOB)", "set aside"),
    "summary": ("summary = CAST('{}' AS BLOB)", "repair"),
    "checksum": ("checksum = zeroblob(8)", "repair"),
    "status": ("status = CAST('lost' AS BLOB)", "repair"),
    "workflow": ("workflow_id = NULL", "repair"),
    "run id": ("run_id = CAST('other' AS BLOB)", "repair"),
    "trace id": ("trace_id = zeroblob(16)", "repair"),
    "time": ("time = time + 1", "repair"),
    "end": ("ended = 5", "repair"),
    "observed": ("observed_at = iif(observed_at IS NULL, 5, NULL)", "repair"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_found_and_mended(store: SqliteStore, name: str) -> None:
    """It is named; repaired, it is as before; set aside, it can be sent again."""
    change, remedy = DAMAGES[name]
    before = dump(store)
    execute(store, f"UPDATE runs SET {change} WHERE id = 5")
    (found,) = store.find_damage()
    assert (found.table, found.row, found.remedy) == ("runs", 5, remedy)
    assert found.run_id == (RUNS[4].id if name != "run id" else "other")
    assert found.tenant == ("acme" if name != "tenant" else "acmf")
    if remedy == "repair":
        assert store.repair(found)
        assert dump(store) == before
    else:
        lines: list[bytes] = []
        assert store.take_out([found], lines.extend) == 1
        assert [json.loads(line)["run"] for line in lines] == [RUNS[4].id]
        store.put(RUNS[4], tenant="acme", observed_at=T0)
    assert list(store.find_damage()) == []
    assert store.document(RUNS[4].id, "acme").text == RUNS[4].text
    assert len(store.search(RunQuery(tenant="acme", limit=100)).items) == 40


def test_a_damaged_document_stays_until_it_is_set_aside(store: SqliteStore) -> None:
    """Its digest says that the run is stored, so a run that is sent again does not replace it."""
    execute(store, f"UPDATE runs SET {DAMAGES['document'][0]} WHERE id = 5")
    store.put(RUNS[4], tenant="acme", observed_at=T0)
    with pytest.raises(StoreError, match=r"runspan check --set-aside"):
        store.document(RUNS[4].id, "acme")


@pytest.mark.parametrize("value", ["NULL", "'text'", "5"])
def test_a_document_that_is_no_bytes_is_damage(store: SqliteStore, value: str) -> None:
    """Flipped bits of a row change the types of its columns, whatever the schema says."""
    with closing(sqlite3.connect(store.path)) as connection:
        (schema,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'runs'").fetchone()
    loose = schema.replace("document BLOB NOT NULL", "document").replace("STRICT", "")
    change = "UPDATE sqlite_schema SET sql = '{}' WHERE name = 'runs'"
    execute(store, "PRAGMA writable_schema = ON", change.format(loose))
    execute(store, f"UPDATE runs SET document = {value} WHERE id = 5")
    execute(store, "PRAGMA writable_schema = ON", change.format(schema))
    (found,) = store.find_damage()
    assert (found.table, found.row, found.remedy) == ("runs", 5, "set aside")
    with pytest.raises(StoreError, match=r"runspan check --set-aside"):
        store.document(RUNS[4].id, "acme")
    with closing(sqlite3.connect(store.path)) as connection:
        (document,) = connection.execute("SELECT document FROM runs WHERE id = 5").fetchone()
        with pytest.raises(CorruptFrame):
            Compression().decompress(document, connection)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fragments SET content = x'00'",
        "UPDATE fragments SET kind = 1 - kind",
        "UPDATE fragments SET kind = 2",
        "UPDATE fragments SET spans = 1000",
        "UPDATE fragments SET spans = -1",
        "UPDATE fragments SET fingerprint = zeroblob(16)",
        "UPDATE fragments SET span_id = zeroblob(8)",
        "UPDATE fragments SET received_at = 1",
        "UPDATE foreign_spans SET received_at = 1",
        "UPDATE fragments SET trace_id = zeroblob(16)",
        "UPDATE foreign_spans SET otlp = x'00'",
        "UPDATE foreign_spans SET digest = zeroblob(16)",
        "UPDATE foreign_spans SET span_id = zeroblob(8)",
        "UPDATE foreign_spans SET tenant = x'ff'",
    ],
)
def test_a_damaged_span_is_found_and_set_aside(store: SqliteStore, statement: str) -> None:
    """Fragments and foreign spans are compared with their columns."""
    execute(store, statement)
    found, *sums = store.find_damage()
    assert found.table == statement.split()[1]
    assert {(damage.table, damage.remedy) for damage in sums} <= {("waiting_traces", "repair")}
    assert all(map(store.repair, sums))
    assert store.take_out([found], list[bytes]().extend) == 1
    assert list(store.find_damage()) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE waiting_traces SET bytes = bytes + 1",
        "UPDATE waiting_traces SET newest = 0",
        "DELETE FROM waiting_traces",
        "INSERT INTO waiting_traces VALUES (x'00', x'00', 1, 1, 1)",
        "UPDATE waiting_tenants SET spans = spans - 1",
        "DELETE FROM waiting_tenants",
    ],
)
def test_damaged_sums_of_what_waits_are_computed_anew(store: SqliteStore, statement: str) -> None:
    """They follow from the spans that wait."""
    with closing(sqlite3.connect(store.path)) as connection:
        sums = [connection.execute(f"SELECT * FROM {table}").fetchall() for table in SUMS]
        execute(store, statement)
        found = list(store.find_damage())
        assert found
        assert all(damage.table in SUMS and damage.row is None for damage in found)
        assert all(map(store.repair, found))
        assert list(store.find_damage()) == []
        assert [connection.execute(f"SELECT * FROM {table}").fetchall() for table in SUMS] == sums


@pytest.mark.parametrize("change", ["missing = zeroblob(8)", "tried = tried + 1", "hint_checksum = NULL"])
def test_a_damaged_hint_is_dropped(tmp_path: Path, change: str) -> None:
    """Without it, the next span completes the run too."""
    run = Run.from_dict({"id": "cut", "steps": [{"id": name, "status": "completed"} for name in "ab"]})
    spans = encode(run)
    with SqliteStore(tmp_path) as store:
        write(store, spans[1:])
        assert list(store.find_damage()) == []
        execute(store, f"UPDATE fragments SET {change} WHERE kind = 1")
        (found,) = store.find_damage()
        assert (found.table, found.remedy) == ("fragments", "repair")
        assert store.repair(found)
        assert list(store.find_damage()) == []
        write(store, spans[:1])
        assert store.document("cut").text == run.text


def test_superseded_steps_are_checked(tmp_path: Path) -> None:
    """The steps that only an older revision has wait as a document, which is compared with the columns."""
    steps = [{"id": name, "status": "completed"} for name in "abc"]
    with SqliteStore(tmp_path) as store:
        for kept in (steps, steps[:1]):
            store.put(Run.from_dict({"id": "r", "status": "running", "steps": kept}), observed_at=T0 + 10 - len(kept))
        with closing(sqlite3.connect(store.path)) as connection:
            assert connection.execute("SELECT kind, spans FROM fragments").fetchall() == [(2, 2)]
        assert list(store.find_damage()) == []
        execute(store, "UPDATE fragments SET content = CAST(substr(content, 1, 40) || x'00' AS BLOB)")
        found, *_ = store.find_damage()
        assert (found.table, found.remedy) == ("fragments", "set aside")


def test_a_row_that_is_sound_again_is_not_taken_out(store: SqliteStore) -> None:
    """A sender may have replaced it between the check and the deletion."""
    execute(store, "UPDATE runs SET digest = zeroblob(16) WHERE id = 5")
    found = list(store.find_damage())
    store.put(RUNS[4], tenant="acme", observed_at=T0 + 1)
    assert store.take_out(found, list[bytes]().extend) == 0
    assert list(store.find_damage()) == []


def test_a_damaged_index_is_built_anew(store: SqliteStore) -> None:
    """All rows are sound, so nothing is set aside."""
    before = dump(store)
    store.vacuum()
    with closing(sqlite3.connect(store.path)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs_by_end'").fetchone()[0]
        (ended,) = connection.execute("SELECT ended FROM runs WHERE id = 5").fetchone()
    content = bytearray(store.path.read_bytes())
    at = content.index(ended.to_bytes(8, "big"), 4096 * (root - 1))
    assert at < 4096 * root
    content[at + 7] ^= 1
    store.close()
    store.path.write_bytes(content)
    with SqliteStore(store.path.parent) as opened:
        found = list(opened.find_damage())
        assert {(damage.table, damage.remedy) for damage in found} == {("runs_by_end", "repair")}
        assert all(map(opened.repair, found))
        assert list(opened.find_damage()) == []
        assert dump(opened) == before


def damage_page(store: SqliteStore) -> int:
    """Close the store and make one page of its runs unreadable. Return the number of runs."""
    with closing(sqlite3.connect(store.path)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs'").fetchone()[0]
        count: int = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    content = bytearray(store.path.read_bytes())
    page = content[4096 * (root - 1) :][:4096]
    cell = int.from_bytes(page[14:16], "big")  # the third child of the root, which has pages of rows below it
    leaf = int.from_bytes(page[cell : cell + 4], "big")
    content[4096 * (leaf - 1)] = 0x77
    store.close()
    store.path.write_bytes(content)
    return count


def test_reads_of_an_unreadable_page_are_counted(store: SqliteStore) -> None:
    """What SQLite itself finds damaged is in the metric too."""
    for text in generate(300, seed=10):
        store.put(Run.from_json(text), tenant="acme", observed_at=T0)
    store.vacuum()
    damage_page(store)
    read = 0
    with SqliteStore(store.path.parent) as opened:
        for run in RUNS:
            with suppress(StoreError):
                opened.document(run.id, "acme")
                read += 1
        assert 0 < opened.damaged_reads == len(RUNS) - read


def test_runs_on_an_unreadable_page_are_named(store: SqliteStore) -> None:
    """The index says which they are; the others are checked."""
    for run in generate(300, seed=10):
        store.put(Run.from_json(run), tenant="acme", observed_at=T0)
    store.vacuum()
    count = damage_page(store)
    with closing(sqlite3.connect(f"{store.path.as_uri()}?immutable=1", uri=True, isolation_level=None)) as connection:
        rows = 0

        def advance(more: int) -> None:
            nonlocal rows
            rows += more

        found = list(find_damage(connection, Compression(), advance))
    unreadable = [damage for damage in found if damage.row is not None]
    assert 0 < len(unreadable) < count
    assert all(damage.run_id and damage.tenant == "acme" and damage.remedy == "rebuild" for damage in unreadable)
    assert any(damage.row is None for damage in found)
    assert rows >= count


def test_a_damaged_dictionary_is_named_as_the_cause(store: SqliteStore) -> None:
    """Documents that need it look damaged too."""
    store._writer.submit(lambda c: c.execute("INSERT INTO dictionaries VALUES (32768, x'00', zeroblob(32))").rowcount)
    (found,) = store.find_damage()
    assert (found.table, found.remedy) == ("dictionaries", "restore")


def test_damage_says_where_it_is() -> None:
    """With run, tenant, row and table, as far as they are known."""
    assert str(Damage("no", "restore")) == "the file: no"
    assert str(Damage("no", "repair", "i")) == "i: no"
    assert str(Damage("no", "set aside", "runs", 3, "t", "r")) == "run r, tenant t (row 3 of runs): no"


def test_an_interrupted_check_reports_no_damage(store: SqliteStore) -> None:
    """A signal that arrives while SQLite calls back ends the check like one at any other moment."""
    for run in generate(300, seed=10):
        store.put(Run.from_json(run), tenant="acme", observed_at=T0)

    def interrupt(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runspan.backends.sqlite.integrity._PROGRESS_STEPS", 100)
        with pytest.raises(KeyboardInterrupt):
            list(store.find_damage(interrupt))
