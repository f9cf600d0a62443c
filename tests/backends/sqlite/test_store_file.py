"""The embedded store: its file, its format, its compression and its indexes."""

from __future__ import annotations

import os
import sqlite3
from base64 import b64encode
from pathlib import Path
from random import Random

import pytest
import zstandard

from conformance.harness import T0, ids, make_run, otlp
from runspan import Run, encode
from runspan.backends import connect
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite import store as store_module
from runspan.backends.sqlite.lists import statements
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import Capabilities, Cursor, RunQuery
from runspan.errors import ConfigError, StoreError
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.storage.data_directory import STORE_LOCK
from runspan.testing import generate


def raw(directory: Path) -> sqlite3.Connection:
    return sqlite3.connect(directory / FILE_NAME, isolation_level=None)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_format_is_refused_untouched(tmp_path, version):
    """The error names both formats and what to do."""
    SqliteStore(tmp_path).close()
    connection = raw(tmp_path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StoreError) as caught:
        SqliteStore(tmp_path)
    assert (caught.value.expected, caught.value.got) == ("format 1", f"format {version}")
    assert "use that version" in caught.value.hint
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_another_applications_database_is_refused_untouched(tmp_path):
    """A file that is a database of something else is not written to."""
    connection = raw(tmp_path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(StoreError, match="another application"):
        SqliteStore(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """Nor is any other file overwritten."""
    (tmp_path / FILE_NAME).write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreError, match="no SQLite database"):
        SqliteStore(tmp_path)


def test_a_path_that_is_no_directory_is_an_error(tmp_path):
    """The path of a file is no directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        SqliteStore(tmp_path / "file" / "data")
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_an_error(tmp_path):
    """A store that cannot be written is not opened."""
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"cannot be opened|read-only"):
        SqliteStore(tmp_path)


def test_a_damaged_document_is_an_error_with_the_run_id(tmp_path):
    """Whatever bit of a stored document is flipped, it is an error or still the same text, never another."""
    run = make_run("damaged")
    with SqliteStore(tmp_path) as store:
        store.put(run, observed_at=T0)
        connection = raw(tmp_path)
        connection.execute("PRAGMA synchronous = OFF")
        (frame,) = connection.execute("SELECT document FROM runs").fetchone()
        refused = []
        for position in range(len(frame)):
            damaged = bytearray(frame)
            damaged[position] ^= 1 << position * 3 % 8
            connection.execute("UPDATE runs SET document = ?", (bytes(damaged),))
            try:
                assert store.document("damaged").text == run.text
            except StoreError as error:
                refused.append(error.where)
        connection.close()
        assert len(refused) > len(frame) * 0.9
        assert all("run damaged" in where for where in refused)


def test_a_damaged_document_does_not_fail_other_runs_of_a_request(tmp_path):
    """Spans to merge with it are rejected with its trace id, and a complete newer revision replaces it."""
    with SqliteStore(tmp_path) as store:
        store.put(make_run("damaged"), observed_at=T0)
        connection = raw(tmp_path)
        connection.execute("UPDATE runs SET document = x'00'")
        connection.close()
        newer = make_run("damaged", status="failed")
        written = store.write(read_protobuf(otlp([encode(newer)[0], *encode(make_run("other"))])))
        assert written.accepted == 3
        assert "cannot be read" in written.rejected[0].reason
        store.put(newer, observed_at=T0)
        assert store.document("damaged").text == newer.text


def test_the_dictionary_is_trained_once_and_outlives_the_process(tmp_path):
    """Documents before, after and in another process are all read, and compressed with it.

    The last request of those before may have been compressed before there was one, and stored when all were
    compressed again.
    """
    runs = [Run.from_json(text) for text in generate(1300, seed=3)]
    with SqliteStore(tmp_path) as store, SqliteStore(tmp_path) as other:
        for start in range(0, 1100, 100):
            store.write(read_protobuf(otlp([span for run in runs[start : start + 100] for span in encode(run)])))
        store._training.join()
        store.put(runs[1100], observed_at=T0)
        assert other.document(runs[1100].id).text == runs[1100].text
    with SqliteStore(tmp_path) as store:
        for run in runs[1101:]:
            store.put(run, observed_at=T0)
        for run in runs:
            assert store.document(run.id).text == run.text
        assert list(store.find_damage()) == []
    connection = raw(tmp_path)
    assert connection.execute("SELECT count(*) FROM dictionaries").fetchone() == (1,)
    frames = [frame for (frame,) in connection.execute("SELECT document FROM runs")]
    assert sum(not zstandard.get_frame_parameters(frame).dict_id for frame in frames) <= 100
    alone = zstandard.ZstdCompressor()
    assert sum(map(len, frames)) < 0.6 * sum(len(alone.compress(run.text)) for run in runs)
    connection.close()


def test_the_write_ahead_log_stays_within_64_mb(tmp_path):
    """However much is written, and while lists are read."""
    longest = 0
    with SqliteStore(tmp_path) as store:
        for number in range(90):
            payload = b64encode(Random(number).randbytes(750_000)).decode()
            store.put(make_run(f"r{number}", output={"payload": payload}), observed_at=T0)
            assert len(store.search(RunQuery(limit=1)).items) == 1
            longest = max(longest, (tmp_path / f"{FILE_NAME}-wal").stat().st_size)
        assert (tmp_path / FILE_NAME).stat().st_size > 30 << 20
    assert 30 << 20 < longest <= 64_000_000


def test_documents_too_similar_for_training_are_stored(tmp_path):
    """Training may fail; the store then continues without a dictionary."""
    with SqliteStore(tmp_path) as store:
        spans = [span for number in range(1001) for span in encode(Run.from_dict({"id": f"{number}"}))]
        assert store.write(read_protobuf(otlp(spans))).rejected == ()
        assert store.document("1000").text == b'{"id":"1000"}'
        assert store.stats().runs == 1001


@pytest.mark.parametrize("workflow", [None, "wf"])
@pytest.mark.parametrize("status", [None, "failed", "completed"])
@pytest.mark.parametrize("since", [None, T0])
@pytest.mark.parametrize("cursor", [None, Cursor(T0, "r")])
def test_every_list_is_read_from_an_index(tmp_path, workflow, status, since, cursor):
    """No list scans the table or sorts: its cost does not grow with the number of runs."""
    with SqliteStore(tmp_path) as store:
        ((statement, values, _),) = statements(RunQuery("t", workflow, status, since, 50, cursor))
        plan = [store._fetch_one(f"EXPLAIN QUERY PLAN {statement}", values)[3]]
    (line,) = plan
    assert line.startswith("SEARCH runs USING INDEX runs_by_")
    for column, value in (("workflow_key", workflow), ("status_key", status == "failed" or None)):
        assert (f"{column}=?" in line) is (value is not None)
    assert ("time" in line.partition("(")[2]) is (since is not None or cursor is not None)


@pytest.mark.parametrize("time", [0, (1 << 63) - 1, 1 << 63, 9_999_999_999_999_999_999])
def test_any_cursor_that_parses_is_accepted(tmp_path, time):
    """A client may send a cursor of any time that fits the form."""
    with SqliteStore(tmp_path) as store:
        store.put(make_run("r"), observed_at=T0)
        page = store.search(RunQuery(cursor=Cursor.parse(Cursor(time, "\U0001f680").token())))
        assert ids(page) == (["r"] if time > T0 else [])


@pytest.mark.parametrize(("budget", "sizes"), [(1, [1] * 7), (5500, [2, 2, 2, 1]), (1 << 20, [3, 3, 1])])
def test_a_page_ends_at_its_bytes_and_continues_at_its_cursor(tmp_path, monkeypatch, budget, sizes):
    """Large summaries make short pages of one run at least, and the pages together are the complete list."""
    monkeypatch.setattr(store_module, "PAGE_BYTES", budget)
    with SqliteStore(tmp_path) as store:
        for number in range(7):
            error = {"code": "X", "message": "m" * 2000}
            store.put(make_run(f"r{number}", status="failed", error=error), observed_at=T0)
        pages = [store.search(RunQuery(limit=3))]
        while pages[-1].cursor is not None:
            pages.append(store.search(RunQuery(limit=3, cursor=pages[-1].cursor)))
    assert [len(page.items) for page in pages] == sizes
    assert sorted(run_id for page in pages for run_id in ids(page)) == [f"r{number}" for number in range(7)]


def test_a_closed_store_is_one_file(tmp_path):
    """Closing moves the write-ahead log into the database, so a copy of the file is complete."""
    store = SqliteStore(tmp_path)
    store.put(make_run("r", 0), observed_at=T0)
    assert store.document("r").text
    store.close()
    assert {file.name for file in tmp_path.iterdir()} == {FILE_NAME, STORE_LOCK}


def test_the_store_says_what_it_can_do(tmp_path):
    """Durable, deleting, and keeping foreign spans."""
    with SqliteStore(tmp_path) as store:
        assert store.capabilities == Capabilities(durable_writes=True, deletes=True, foreign_spans=True)
        store.check()


def test_connect_opens_the_embedded_store(tmp_path):
    """A URL has the directory, in which the store is created."""
    store = connect(f"sqlite:{tmp_path}/new directory?#%41", retention_days=7)
    store.put(make_run("r", T0 + 10**18), observed_at=T0)
    store.close()
    assert (tmp_path / "new directory?#%41" / FILE_NAME).exists()


@pytest.mark.parametrize("url", ["", "sqlite:", "data", "postgres://x", "SQLITE:x"])
def test_connect_says_what_a_url_looks_like(url):
    """Any other text is refused with the form that is accepted."""
    with pytest.raises(ConfigError, match="sqlite:DIR"):
        connect(url)
