"""The embedded store: a list item is verified before it is listed, and notes say what is special about an item."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conformance.harness import SECOND, T0, ids, make_run, running, write_spans
from runspan import encode
from runspan.backends.sqlite import SqliteStore, queries
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import RunQuery
from runspan.model.document import RUN_STATUSES, Run


def change(directory: Path, statement: str, *values: Any) -> None:
    """Change the database as damage of the disk would."""
    connection = sqlite3.connect(directory / FILE_NAME, isolation_level=None)
    connection.execute(statement, values)
    connection.close()


def flip(text: bytes, bit: int) -> bytes:
    damaged = bytearray(text)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("bit", [0, 77, 500, -1])
def test_a_flipped_bit_is_not_listed(store: SqliteStore, tmp_path: Path, bit: int) -> None:
    """The item is left out, ``partial`` has its run id, and the document, which has its own checksum, is still read."""
    for number in range(3):
        store.put(make_run(f"r{number}", T0 + number * SECOND), observed_at=T0)
    summary = make_run("r1", T0 + SECOND).summary()
    damaged = flip(summary, bit if bit >= 0 else 8 * len(summary) - 1)
    change(tmp_path, "UPDATE runs SET summary = ? WHERE run_id = ?", damaged, b"r1")
    page = store.search(RunQuery())
    assert ids(page) == ["r2", "r0"]
    assert page.partial == ("run r1 is left out: its list item does not have the recorded digest",)
    assert store.document("r1").text == make_run("r1", T0 + SECOND).text
    store.put(make_run("r1", T0 + SECOND, status="failed"), observed_at=T0)
    assert ids(store.search(RunQuery())) == ["r2", "r1", "r0"]


@pytest.mark.parametrize(
    ("column", "value"), [("time", T0 + 9 * SECOND), ("run_id", b"r\xff"), ("tenant", b"other"), ("checksum", b"")]
)
def test_a_changed_place_is_not_listed(store: SqliteStore, tmp_path: Path, column: str, value: Any) -> None:
    """Whose run it is and where it is listed are verified with it."""
    store.put(make_run("r1"), tenant="acme", observed_at=T0)
    change(tmp_path, f"UPDATE runs SET {column} = ?", value)
    for tenant in ("acme", "other"):
        page = store.search(RunQuery(tenant=tenant))
        assert page.items == []
        assert len(page.partial) == (tenant == ("other" if column == "tenant" else "acme"))


def test_pages_go_on_after_damaged_items(store: SqliteStore, tmp_path: Path) -> None:
    """However many there are, each page is as long as its limit, and many damaged items are counted."""
    for number in range(60):
        store.put(make_run(f"r{number:02}", T0 + number * SECOND), observed_at=T0)
    change(tmp_path, "UPDATE runs SET summary = zeroblob(20) WHERE run_id BETWEEN ? AND ?", b"r05", b"r54")
    first = store.search(RunQuery(limit=4))
    assert ids(first) == ["r59", "r58", "r57", "r56"]
    assert first.cursor is not None
    second = store.search(RunQuery(limit=4, cursor=first.cursor))
    assert ids(second) == ["r55", "r04", "r03", "r02"]
    assert second.partial[-1] == "and 30 more runs"
    assert second.cursor is not None
    last = store.search(RunQuery(limit=4, cursor=second.cursor))
    assert (ids(last), last.cursor, last.partial) == (["r01", "r00"], None, ())


@pytest.mark.parametrize(
    "filters", [{}, {"workflow_id": "wf"}, {"status": "failed"}, {"workflow_id": "wf", "status": "failed"}]
)
def test_runs_of_the_same_time_are_sorted_by_run_id(
    store: SqliteStore, tmp_path: Path, filters: dict[str, str]
) -> None:
    """However many there are, in whatever order they arrived, and with damaged ones among them."""
    order = [(7 * number) % 60 for number in range(60)]
    for number in order:
        store.put(make_run(f"r{number:02}", T0, workflowId="wf", status="failed"), observed_at=T0)
    store.put(make_run("later", T0 + SECOND, workflowId="wf", status="failed"), observed_at=T0)
    store.put(make_run("earlier", T0 - SECOND, workflowId="wf", status="failed"), observed_at=T0)
    change(tmp_path, "UPDATE runs SET summary = zeroblob(20) WHERE run_id BETWEEN ? AND ?", b"r30", b"r54")
    found: list[str] = []
    cursor = None
    while not found or cursor is not None:
        page = store.search(RunQuery(limit=4, cursor=cursor, **filters))
        assert len(page.items) == 4 or page.cursor is None
        found += ids(page)
        cursor = page.cursor
    sound = [number for number in range(60) if not 30 <= number <= 54]
    assert found == ["later", *[f"r{number:02}" for number in reversed(sound)], "earlier"]


def test_a_run_is_listed_only_for_its_own_workflow_and_status(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workflows, or a status that runspan does not know, may share the number by which an index finds them."""
    monkeypatch.setattr(queries, "workflow_key", lambda tenant, workflow_id: 1)
    monkeypatch.setattr(queries, "status_key", lambda status: 2)
    store.put(make_run("one", T0, workflowId="wf_1", status="failed"), observed_at=T0)
    store.put(make_run("two", T0, workflowId="wf_2", status="completed"), observed_at=T0)
    store.put(make_run("other", T0, workflowId="wf_1", status="failed"), tenant="other", observed_at=T0)
    assert ids(store.search(RunQuery(workflow_id="wf_1"))) == ["one"]
    assert ids(store.search(RunQuery(status="completed"))) == ["two"]
    assert ids(store.search(RunQuery(workflow_id="wf_2", status="failed"))) == []
    assert store.unfinished().runs == 0


def test_each_status_has_a_key_of_its_own() -> None:
    """A list by status reads no other runs."""
    statuses = (*RUN_STATUSES, "")
    assert len({queries.status_key(status.encode()) for status in statuses}) == len(statuses)


@pytest.mark.parametrize("text", [b'{"id":"none"}', b'{"id":"null","status":null}', b'{"id":"x","status":"x"}'])
def test_only_completed_runs_have_no_status_key(store: SqliteStore, tmp_path: Path, text: bytes) -> None:
    """A list of them skips the others without reading their rows."""
    store.put(make_run("completed", status="completed"), observed_at=T0)
    store.put(Run.from_json(text), observed_at=T0)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT run_id FROM runs WHERE status_key IS NULL").fetchall() == [(b"completed",)]
    assert ids(store.search(RunQuery(status="completed"))) == ["completed"]


def test_a_run_with_an_incomplete_newer_revision_is_marked(store: SqliteStore) -> None:
    """It is listed as of the older one, as GET returns it."""
    write_spans(store, encode(running("r", done=1), observed_at=T0))
    write_spans(store, encode(make_run("r"))[-1:])
    page = store.search(RunQuery())
    assert ids(page) == ["r"]
    (note,) = page.partial
    assert note.startswith("run r is listed as of an older revision: ")
    assert note.endswith(store.document("r").incomplete[0])
    write_spans(store, encode(make_run("r"))[:-1])
    assert store.search(RunQuery()).partial == ()


def by_otlp(store: SqliteStore, run: Run) -> None:
    write_spans(store, encode(run))


def in_parts(store: SqliteStore, run: Run) -> None:
    for span in encode(run):
        write_spans(store, [span])


@pytest.mark.parametrize("send", [by_otlp, in_parts])
def test_two_ends_of_a_run_are_a_conflict(store: SqliteStore, send: Callable[[SqliteStore, Run], None]) -> None:
    """The one that arrived last is returned and listed; the digest of the other is known."""
    one, other = make_run("r"), make_run("r", output={"corrected": True})
    for run, before in ((one, None), (other, one), (other, one), (one, other)):
        send(store, run)
        document = store.document("r")
        assert document.text == run.text
        expected = () if before is None else (_digest(before)[:32],)
        assert document.conflict == expected
        page = store.search(RunQuery())
        assert page.items == [run.summary()]
        note = "run r is one of 2 different documents that were sent as the same revision"
        assert page.partial == ((note,) if expected else ())


@pytest.mark.parametrize("split", [False, True])
def test_two_ends_that_arrive_together_are_a_conflict(store: SqliteStore, split: bool) -> None:
    """The one with the highest digest is returned, as over other backends, in whatever order the spans arrive."""
    runs = [make_run("r", output=number) for number in range(3)]
    step, *rest = [span for run in runs for span in encode(run)]
    for spans in [rest, [step]] if split else [[*rest, step]]:
        write_spans(store, spans)
    *hidden, newest = sorted(runs, key=_digest)
    document = store.document("r")
    assert document.text == newest.text
    assert sorted(document.conflict) == [_digest(run)[:32] for run in hidden]
    assert len(store.search(RunQuery()).partial) == 1


def test_a_correction_is_no_conflict(store: SqliteStore) -> None:
    """It ranks above the end, whether it is put or sent with a later revision."""
    write_spans(store, encode(make_run("r")))
    corrected = make_run("r", output={"corrected": True})
    write_spans(store, encode(corrected, observed_at=T0, after_root=True))
    assert store.document("r").text == corrected.text
    assert store.document("r").conflict == ()
    again = make_run("r", output={"corrected": "again"})
    store.put(again, observed_at=T0 + 1)
    assert store.document("r").text == again.text
    assert store.document("r").conflict == ()
    assert store.search(RunQuery()).partial == ()


def _digest(run: Run) -> str:
    return str(dict(encode(run)[-1].pairs())["runspan.digest"])
