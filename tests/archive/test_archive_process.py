"""Archives with real servers: thousands of runs out of one and into another, kills, and runs that change meanwhile."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import uuid4

import httpx
import pytest

from runspan import Run
from runspan.backends.runspan_api import RunspanApiReader
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.contracts import RunQuery
from runspan.sources.archive import archives_in
from runspan.testing import generate
from support.archives import fill, finished, held, past
from support.cli import Running, process, running, runspan, server, write_ndjson

SEED = 20261125
RUNS = 5200
KILLS = 5
FILES = 13
"""Of an archive of these runs with 1 MiB in a file, at least."""
WAIT = 120


@pytest.fixture(scope="module")
def texts() -> dict[str, bytes]:
    return past(RUNS, seed=SEED, unfinished=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, bytes]) -> Iterator[tuple[str, Path]]:
    """A server that has all of the runs, over OTLP: its URL and data directory."""
    folder = tmp_path_factory.mktemp("source")
    path = write_ndjson(folder / "runs.ndjson", texts)
    with server(folder / "data") as (url, _):
        done = process("export", path, "--endpoint", url, "--json")
        assert json.loads(done.stdout)["runs_accepted"] == RUNS
        yield url, folder / "data"


def everything(url: str, data: Path) -> dict[str, bytes]:
    """Every document that a server lists, from its store; some of them from its API too."""
    with closing(RunspanApiReader(url)) as reader, SqliteStore(data) as store:
        page = reader.search(RunQuery(limit=200))
        ids = [json.loads(item)["id"] for item in page.items]
        while page.cursor is not None:
            page = reader.search(RunQuery(limit=200, cursor=page.cursor))
            ids += [json.loads(item)["id"] for item in page.items]
        assert len(ids) == len(set(ids))
        found = {run_id: store.document(run_id).text for run_id in ids}
        for run_id in Random(SEED).sample(ids, min(100, len(ids))):
            assert reader.document(run_id).text == found[run_id]
    return found


@pytest.mark.campaign
def test_thousands_of_runs_from_one_server_into_another(
    source: tuple[str, Path], tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """From the REST API of one, through an archive that is checked, into another that had nothing: equal, byte for
    byte, and no run more."""
    url, _ = source
    ended = finished(texts)
    assert len(ended) >= 5000
    done = process("archive", "--before", "1h", "--to", tmp_path / "to", "--backend", url, "--json")
    report = json.loads(done.stdout)
    assert (report["runs"], report["complete"]) == (len(ended), True)
    assert report["skipped"]["unfinished"]["runs"] == RUNS - len(ended)
    process("archive", "--check", tmp_path / "to")
    with server(tmp_path / "other") as (other, _):
        done = process("export", report["archive"], "--endpoint", other, "--json")
        assert json.loads(done.stdout)["runs_accepted"] == len(ended)
        assert everything(other, tmp_path / "other") == ended


@pytest.mark.campaign
def test_kills_leave_nothing_that_looks_finished(
    source: tuple[str, Path], tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """Killed at random moments, at every size of what was written until then, the folder holds either no archive or a
    complete one; the last run resumes what is there and finishes it, and everything is in it once."""
    _, data = source
    random = Random(SEED)
    to = tmp_path / "to"
    args = ("archive", "--before", "1h", "--to", to, "--data", data, "--quiet", "--file-size", 1)
    for target in sorted(random.sample(range(FILES - 2), KILLS)):
        with running(*args) as child:
            _until_it_wrote(child, to, target)
            time.sleep(random.uniform(0, 0.05))
            child.process.kill()
            assert child.process.wait(WAIT) == -signal.SIGKILL
        for folder in archives_in(str(to)):
            assert held(folder) == finished(texts)
    process(*args)
    folders = archives_in(str(to))
    assert folders
    for folder in folders:
        assert held(folder) == finished(texts)
        assert len(list(Path(folder).glob("*.zst"))) >= FILES
    assert [entry.name for entry in to.iterdir() if entry.suffix == ".partial"] == []
    process("archive", "--check", to)


def test_a_run_that_changes_while_it_is_archived_is_never_purged(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """While `archive --purge` works on the store of a server that lives, other runs are corrected through that server;
    every run is afterwards in the archive or in the store, and every correction that was acknowledged is in one of
    them."""
    ended = dict(list(finished(texts).items())[:2500])
    path = write_ndjson(tmp_path / "runs.ndjson", ended)
    random = Random(SEED)
    order = random.sample(sorted(ended), 600)
    corrected: dict[str, bytes] = {}
    args = ("archive", "--before", "1h", "--to", tmp_path / "to", "--data", tmp_path / "data", "--purge", "--json")
    with server(tmp_path / "data", "--writes-per-minute", 0) as (url, _):
        process("export", path, "--endpoint", url)
        with (
            running(*args, prints_on="stdout") as child,
            httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
        ):
            _until_it_works(child, tmp_path / "to")
            for run_id in order:
                if child.process.poll() is not None:
                    break
                text = ended[run_id][:-1] + b',"correctedBy":"somebody"}'
                answer = client.post("/api/v1/runs", content=text, headers={"content-type": "application/json"})
                if answer.status_code == 503:  # the store waited too long for the other process
                    continue
                assert answer.status_code in {200, 201}
                corrected[run_id] = text
            assert child.process.wait(WAIT) == 0
            report = json.loads(child.wait_for("{").string)
        left = everything(url, tmp_path / "data")
    assert corrected
    archive = held(report["archive"])
    assert archive.keys() == ended.keys()
    for run_id, text in archive.items():
        newest = corrected.get(run_id, ended[run_id])
        assert text in {ended[run_id], newest}
        assert left.get(run_id, text) == newest
    assert report["purged"]["changed"] > 0
    assert report["purged"]["deleted"] >= len(ended) - len(left)
    assert report["purged"]["deleted"] > 1000
    with closing(sqlite3.connect(tmp_path / "data" / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.campaign
def test_kills_of_a_purge_leave_every_run_somewhere(tmp_path: Path, texts: dict[str, bytes]) -> None:
    """Killed again and again while it deletes, it leaves a sound store and every run in an archive that is intact; the
    last one deletes the rest."""
    random = Random(SEED)
    ended = dict(list(finished(texts).items())[:1500])
    data, to = tmp_path / "data", tmp_path / "to"
    with SqliteStore(data) as store:
        fill(store, ended)
    args = ("archive", "--before", "1h", "--to", to, "--data", data, "--purge")
    left = len(ended)
    for number in range(1, 3):
        with running(*args) as child:
            _until(child, lambda count=number: to.exists() and len(archives_in(str(to))) == count)  # type: ignore[misc]
            time.sleep(random.uniform(0, 0.03))
            child.process.kill()
            assert child.process.wait(WAIT) == -9
        with SqliteStore(data) as store:
            assert store.stats().runs <= left
            left = store.stats().runs
        assert {run_id: text for folder in archives_in(str(to)) for run_id, text in held(folder).items()} == ended
        if not left:
            break
    process(*args)
    with SqliteStore(data) as store:
        assert store.stats().runs == 0
    with closing(sqlite3.connect(data / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_sigterm_ends_an_archive_that_the_next_one_goes_on_with(
    source: tuple[str, Path], tmp_path: Path, texts: dict[str, bytes]
) -> None:
    """It ends as interrupted, without a stack trace, and loses no file that is written."""
    _, data = source
    args = ("archive", "--before", "1h", "--to", tmp_path / "to", "--data", data, "--file-size", 1)
    with running(*args) as child:
        _until_it_wrote(child, tmp_path / "to", 2)
        ended_by = child.end()
    assert ended_by == 130
    assert not any("Traceback" in line for line in child.lines)
    process(*args)
    (folder,) = archives_in(str(tmp_path / "to"))
    assert held(folder) == finished(texts)


def _until_it_works(child: Running, to: Path) -> None:
    """Returns once the folder is there that it writes into, which is when it begins to read."""
    _until(child, to.exists)


def _until_it_wrote(child: Running, to: Path, files: int) -> None:
    """Returns once so many files are in the unfinished archive."""
    _until_it_works(child, to)
    _until(child, lambda: len(list(to.glob("*.partial/*.zst"))) >= files)


def _until(child: Running, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert child.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("backend", ["tempo", "jaeger_memory", "jaeger_badger"])
def test_runs_out_of_a_trace_backend(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A Tempo and a Jaeger are archived as the embedded store is: every finished run of the window, byte for byte."""
    remote = request.getfixturevalue(backend)
    url = f"{backend.partition('_')[0]}+{remote.url}"
    began = datetime.now(UTC) - timedelta(days=9)
    made = generate(150, seed=uuid4().int % 10_000, start=began, span_days=5, unfinished=True)
    texts = {run.id: run.text for run in map(Run.from_json, made)}
    tenant = f"t{uuid4().hex[:12]}"
    path = write_ndjson(tmp_path / "runs.ndjson", texts)
    process("export", path, "--endpoint", remote.otlp, "--tenant", tenant)
    args = ("archive", "--before", "3d", "--since", "10d", "--backend", url, "--tenant", tenant, "--json", "--to")
    deadline = time.monotonic() + WAIT
    while (report := json.loads(process(*args, tmp_path / uuid4().hex).stdout))["runs"] < len(finished(texts)):
        assert time.monotonic() < deadline, report
        time.sleep(1)  # a Tempo lists what it has written down, which is a while after it accepted it
    assert held(report["archive"]) == finished(texts)
    assert report["skipped"]["unfinished"]["runs"] == len(texts) - len(finished(texts))
    assert json.loads((Path(report["archive"]) / "manifest.json").read_text())["source"] == url.partition("+")[0]
    output = runspan("export", report["archive"], "--dry-run", code=2).output
    assert f"--tenant {tenant}" in output
    assert "nothing was sent" in runspan("export", report["archive"], "--dry-run", "--tenant", tenant).stderr
