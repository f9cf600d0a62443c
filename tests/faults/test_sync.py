"""``runspan sync --follow`` killed at random moments while the platform refuses, fails, drips and truncates."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from support.cli import generated, running, server
from support.faults import FaultLine, rounds
from support.faulty_platform import Faults, platform
from support.sync import LocalServer, documents, eventually, local_server, recent_document

pytestmark = pytest.mark.timeout(600)

SEED = 20261129
RUNS = 420
"""Three pages of the list, so that cursors are refused in the middle of a walk."""

FAULTS = Faults(
    limited=0.01,
    error=0.05,
    gateway=0.02,
    slow=0.05,
    cut=0.03,
    torn=0.03,
    reset=0.03,
    repeated=0.05,
    refused_cursor=0.3,
    dripped=0.05,
)
OPTIONS = ("--follow", "--poll", "0.2s", "--rescan", "0.5s", "--requests-per-minute", 0)


@pytest.mark.parametrize("times", rounds(2, 30))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_sync_ended(fault: FaultLine, tmp_path: Path, times: int, number: signal.Signals) -> None:
    """After each end the receiver has what the state file says, and at last every run of the platform, once and equal.

    Runs appear, go on and change meanwhile. The recovery is the time until both sides are equal.
    """
    random = Random(SEED)
    data, checkpoint = tmp_path / "target", tmp_path / "checkpoint"
    with (
        local_server(tmp_path / "source") as source,
        platform(source.url, faults=FAULTS, seed=SEED, pause=0.3) as mock,
        server(data) as (url, _),
    ):
        source.fill(*generated(RUNS, seed=SEED, unfinished=True).values())
        args = ("sync", mock.url, "--endpoint", url, "--state-file", checkpoint, *OPTIONS)
        for turn in range(times):
            with running(*args) as child:
                before = len(mock.arrivals)
                eventually(lambda before=before: len(mock.arrivals) > before)  # type: ignore[misc]
                time.sleep(random.uniform(0, 1.5))
                assert child.process.poll() is None, child.lines
                code = child.end(number)
                assert code == (-number if number == signal.SIGKILL else 0), child.lines
            fault.lost += _lost(checkpoint, data)
            _change(source, random, turn)
            fault.rounds += 1
        mock.faults, restarted = Faults(), time.monotonic()
        with running(*args) as child:
            _until_equal(source, url)
            fault.recovery = time.monotonic() - restarted
            assert child.end() == 0, child.lines
        found, expected = documents(url), source.documents()  # which hold each list to one item a run
        fault.lost += len(expected.keys() - found.keys())
        fault.wrong += sum(found[run_id] != text for run_id, text in expected.items() if run_id in found)
        fault.twice += len(found.keys() - expected.keys())
        fault.acknowledged += len(_rows(checkpoint, "SELECT 1 FROM runs WHERE acked_digest <> x''"))
        fault.refused += sum(mock.injected.values())
    assert mock.injected["refused_cursor"] > 0 or times < 10


def _change(source: LocalServer, random: Random, turn: int) -> None:
    """Let runs appear, go on and change."""
    source.put(recent_document(f"new_{turn}"))
    for run_id in random.sample(sorted(generated(RUNS, seed=SEED, unfinished=True)), 5):
        run = json.loads(source.store.document(run_id).text)
        status = random.choice([each for each in ("running", "completed", "failed") if each != run["status"]])
        # A list shows the duration too, so that no two versions look alike there, as they do without --recheck.
        source.put(run | {"status": status, "durationMs": random.getrandbits(30), "output": random.random()})


def _until_equal(source: LocalServer, url: str) -> None:
    deadline = time.monotonic() + 120
    while documents(url) != source.documents():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(query).fetchall()


def _lost(checkpoint: Path, data: Path) -> int:
    """Return how many acknowledged documents the receiver has not, nor the one that was sent after it."""
    stored = dict(_rows(data / "runspan.sqlite3", "SELECT CAST(run_id AS TEXT), substr(digest, 1, 16) FROM runs"))
    query = "SELECT run_id, acked_digest, sent_digest FROM runs WHERE acked_digest <> x''"
    return sum(stored.get(run_id) not in digests for run_id, *digests in _rows(checkpoint, query))
