"""Sync and its receiver are killed at random moments: no acknowledged run is lost, doubled or wrong."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from support.cli import Running, generated, process, running, server
from support.faulty_platform import EVERY_KIND, Faults, FaultyPlatform, platform
from support.receivers import CLOSE, OK, Answer, Post, http_receiver
from support.sync import LocalServer, documents, eventually, local_server, run_document

SEED = 20261125
RUNS = 240
KILLS = 6
DEADLINE = 90
OPTIONS = ("--requests-per-minute", 0, "--concurrency", 4)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[LocalServer, FaultyPlatform]]:
    """The runs, behind a platform that is slow and fails, so that every kill interrupts something."""
    faults = Faults(**{**vars(EVERY_KIND), "slow": 0.9, "limited": 0.0})
    with local_server(tmp_path / "source") as made, platform(made.url, faults=faults, seed=SEED, pause=0.04) as mock:
        made.fill(*generated(RUNS, seed=SEED, unfinished=True).values())
        yield made, mock


def stored(data: Path) -> int:
    """Return the number of runs in the receiver's file, read by another process than the server."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        count: int = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
        return count


def digests(data: Path) -> dict[str, bytes]:
    """Return the beginning of the digest of each document that the receiver has, by run id."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        rows = connection.execute("SELECT run_id, digest FROM runs").fetchall()
        return {run_id.decode(): digest[:16] for run_id, digest in rows}


def until_stored(data: Path, count: int, syncing: Running) -> None:
    """Wait until the receiver has this many runs, while the sync runs."""
    deadline = time.monotonic() + DEADLINE
    while stored(data) < count:
        assert syncing.process.poll() is None, syncing.lines
        assert time.monotonic() < deadline
        time.sleep(0.001)


def acknowledged(checkpoint: Path) -> dict[str, bytes]:
    """Return the beginning of the digest of each acknowledged document, by run id."""
    with closing(sqlite3.connect(checkpoint, timeout=30)) as connection:
        return dict(connection.execute("SELECT run_id, acked_digest FROM runs WHERE acked_digest <> x''").fetchall())


def moments(random: Random) -> list[int]:
    return sorted(random.sample(range(1, RUNS * 6 // 10), KILLS))


def change_some(source: LocalServer, random: Random) -> None:
    """Let runs continue, end, and change after their end."""
    for run_id in random.sample(sorted(generated(RUNS, seed=SEED, unfinished=True)), 5):
        run = json.loads(source.store.document(run_id).text)
        source.put(run | {"status": random.choice(["running", "completed", "failed"]), "output": random.random()})


@pytest.mark.campaign
def test_kills_of_the_sync_lose_and_double_nothing(tmp_path: Path, source: tuple[LocalServer, FaultyPlatform]) -> None:
    """After each kill the receiver has every acknowledged document as it was sent, and the next sync resumes. After the
    last one both sides are equal, although runs changed meanwhile."""
    made, mock = source
    random = Random(SEED)
    data, checkpoint = tmp_path / "target", tmp_path / "checkpoint"
    with server(data) as (url, child):
        args = ("sync", mock.url, "--endpoint", url, "--state-file", checkpoint, *OPTIONS)
        before = 0
        for moment in moments(random):
            with running(*args) as syncing:
                until_stored(data, max(moment, before + 1), syncing)
                time.sleep(random.uniform(0, 0.05))
                assert syncing.end(signal.SIGKILL) == -signal.SIGKILL
            found = digests(data)
            before = len(found)
            # Of a run that was fetched again, the receiver may have a newer document than the acknowledged one.
            older = {run_id for run_id, digest in acknowledged(checkpoint).items() if found[run_id] != digest}
            assert older - sent_since(checkpoint) == set()
            change_some(made, random)
        mock.faults = EVERY_KIND
        process(*args, "--recheck", "9000d")
        assert documents(url) == made.documents()
        assert child.end() == 0
    assert intact(data)


def sent_since(checkpoint: Path) -> set[str]:
    """Return the runs of which another document was sent after the last acknowledged one."""
    with closing(sqlite3.connect(checkpoint, timeout=30)) as connection:
        return {row[0] for row in connection.execute("SELECT run_id FROM runs WHERE sent_digest <> acked_digest")}


def intact(data: Path) -> bool:
    """Return whether SQLite finds the file intact."""
    with closing(sqlite3.connect(f"file:{data}/runspan.sqlite3?mode=ro", uri=True, timeout=30)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


@pytest.mark.campaign
def test_kills_of_the_receiver_lose_and_double_nothing(
    tmp_path: Path, source: tuple[LocalServer, FaultyPlatform]
) -> None:
    """One sync survives all kills of the server that it sends to, and then both sides are equal."""
    made, mock = source
    random = Random(SEED + 1)
    data, checkpoint = tmp_path / "target", tmp_path / "checkpoint"
    with server(data) as (url, child):
        assert child.end() == 0
    port = url.rpartition(":")[2]
    args = ("--endpoint", url, "--state-file", checkpoint, *OPTIONS, "--retry-max-time", "60s")
    with running("sync", mock.url, *args, "--json", prints_on="stdout") as syncing:
        before = 0
        for moment in moments(random):
            with running("serve", "--data", data, "--port", port) as child:
                child.wait_for("is serving")
                until_stored(data, max(moment, before + 1), syncing)
                time.sleep(random.uniform(0, 0.05))
                assert child.end(signal.SIGKILL) == -signal.SIGKILL
            before = stored(data)
            assert before < RUNS
        with running("serve", "--data", data, "--port", port) as child:
            child.wait_for("is serving")
            assert syncing.process.wait(DEADLINE) == 0
            syncing.read_to_the_end()
            report = json.loads(syncing.lines[-1])
            assert report["complete"]
            assert report["counts"]["sent"] + report["counts"]["snapshots"] == RUNS
            assert documents(url) == made.documents()
            assert len(acknowledged(checkpoint)) == RUNS
            assert child.end() == 0
    assert intact(data)


def test_a_kill_between_request_and_response_sends_the_same_spans_again(tmp_path: Path) -> None:
    """Byte for byte, snapshots too: the revision is stored before it is sent."""
    killed = threading.Event()

    def answer(post: Post) -> Answer:
        if killed.is_set():
            return OK
        killed.wait(DEADLINE)
        return CLOSE

    with local_server(tmp_path / "source") as source, http_receiver(answer) as receiver:
        source.fill(*(run_document(f"run_{n}", ("completed", "running")[n % 2], start=n) for n in range(40)))
        args = ("sync", source.url, "--endpoint", receiver.url, "--state-file", tmp_path / "checkpoint")
        with running(*args) as syncing:
            eventually(lambda: len(receiver.posts) > 0)
            assert syncing.end(signal.SIGKILL) == -signal.SIGKILL
        first = {span.SerializeToString() for span in receiver.posts[0].spans}
        killed.set()
        process(*args)
        taken = {span.SerializeToString() for span in receiver.taken}
    assert any(b"(revision)" in span for span in first)
    assert first <= taken
