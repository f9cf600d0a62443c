"""Many runs from one server to another through a platform with faults, within the rate limit.

``RUNSPAN_TEST_SYNC_RUNS=20000 RUNSPAN_TEST_SYNC_RATE=6000`` is the full test, which takes minutes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from support.cli import generated, process, server, write_ndjson
from support.faulty_platform import EVERY_KIND, platform
from support.sync import documents

RUNS = int(os.environ.get("RUNSPAN_TEST_SYNC_RUNS", "450"))
PER_MINUTE = int(os.environ.get("RUNSPAN_TEST_SYNC_RATE", "2400"))
CONCURRENCY = 8


@pytest.mark.campaign
def test_many_runs_arrive_and_the_limit_is_kept(tmp_path: Path) -> None:
    """Counted on arrival: no minute has more requests than allowed, and no ten seconds more than their share, except
    for the few in flight. The platform's own limit, a tenth higher, is never hit."""
    texts = generated(RUNS, seed=20, unfinished=True)
    path = write_ndjson(tmp_path / "runs.ndjson", texts)
    with server(tmp_path / "a") as (source, _), server(tmp_path / "b") as (target, _):
        process("export", path, "--endpoint", source)
        with platform(source, faults=EVERY_KIND, seed=1, limit=PER_MINUTE * 10 // 9) as mock:
            started = time.monotonic()
            args = ("--requests-per-minute", PER_MINUTE, "--concurrency", CONCURRENCY, "--json")
            done = process("sync", mock.url, "--endpoint", target, "--state-file", tmp_path / "checkpoint", *args)
            seconds = time.monotonic() - started
        report = json.loads(done.stdout)
        assert report["complete"]
        assert report["requests"] == len(mock.arrivals) > RUNS
        assert documents(source) == documents(target) == texts
    figures = {
        "runs": RUNS,
        "seconds": round(seconds, 1),
        "requests": len(mock.arrivals),
        "retries": report["retries"],
        "faults": dict(mock.injected),
        "most in 60 s": mock.most_in(60.0),
        "most in 10 s": mock.most_in(10.0),
        "allowed a minute": PER_MINUTE,
        "refused by the limit": mock.over_limit,
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    assert mock.over_limit == 0
    in_flight = CONCURRENCY + 1
    assert mock.most_in(60.0) <= PER_MINUTE + in_flight
    assert mock.most_in(10.0) <= PER_MINUTE // 6 + in_flight
    assert set(mock.injected) >= {"limited", "error", "gateway", "slow", "cut", "torn", "reset"}
