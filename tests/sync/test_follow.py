"""``runspan sync --follow``: runs as they come and go on, outages of both sides, and what it tells meanwhile."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from runspan.codec.fields import ROLE, ROLE_REVISION
from runspan.model.ids import run_ids
from support.cli import WAIT, Running, running
from support.faulty_platform import EVERY_KIND, platform
from support.receivers import CLOSE, OK, Answer, Post, http_receiver
from support.sync import LocalServer, eventually, local_server, make_directory, run_document, run_ids_of


@contextmanager
def following(source: str, target: str, folder: Path, *args: object) -> Iterator[Running]:
    """A sync that follows at a quick pace, and ends well when it is stopped."""
    pace = ("--poll", "0.2s", "--requests-per-minute", 0)
    with running(
        "sync", source, "--endpoint", target, "--state-file", folder / "checkpoint", "--follow", *pace, *args
    ) as child:
        yield child
        assert child.end(signal.SIGTERM) == 0, child.lines


def recent_document(run_id: str, status: str = "completed", days: float = 0.0, **members: Any) -> dict[str, Any]:
    """A run that started so many days ago."""
    start = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return run_document(run_id, status, **members) | {"startedAt": start, "createdAt": start}


def test_runs_are_followed_from_their_start_to_their_end(
    source: LocalServer, target: LocalServer, tmp_path: Path
) -> None:
    """New ones, changing ones, ended ones, and a finished one that changes: within moments the two are equal, and a
    run that is nothing but running is told of again and again."""
    source.put(recent_document("early"))
    args = ("--rescan", "1s", "--heartbeat", "1s")
    with platform(source.url, faults=EVERY_KIND, seed=4, pause=0.01) as mock:

        def same() -> bool:
            return target.documents() == source.documents()

        with following(mock.url, target.url, tmp_path, *args) as child:
            eventually(same)
            source.put(recent_document("run_1", "pending"), recent_document("quiet", "running"))
            eventually(same)
            for status in ("running", "suspended", "running"):
                source.put(source_run("run_1", source, status))
                eventually(same)
            source.put(source_run("run_1", source, "completed"), recent_document("run_2"))
            eventually(same)
            source.put(source_run("run_1", source, "failed", error={"code": "LATE"}))
            eventually(same)
            seen = newest(target, "quiet")
            eventually(lambda: newest(target, "quiet") > seen, "no heartbeat came")
            assert same()
            assert child.process.poll() is None
    assert any("1 revision," in line for line in child.lines)


def source_run(run_id: str, source: LocalServer, status: str, **members: Any) -> dict[str, Any]:
    """The run as it is, in another status."""
    return {**json.loads(source.documents()[run_id]), "status": status, **members}


def newest(target: LocalServer, run_id: str) -> int:
    """The highest revision of a run that the receiver has."""
    spans = [span.attributes() for span in target.store.spans(run_ids(run_id).trace_id)]
    found = [span["runspan.revision"] for span in spans if span[ROLE] == ROLE_REVISION]
    return max(int(str(revision)) for revision in found)


def test_an_outage_of_the_platform_is_waited_out(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """It says so, asks on, and what happened meanwhile arrives afterwards."""
    source.put(recent_document("before"))
    with platform(source.url) as mock, following(mock.url, target.url, tmp_path) as child:
        eventually(lambda: "before" in target.documents())
        mock.down = True
        source.put(recent_document("meanwhile"))
        child.wait_for(r"HTTP 503.*trying again")
        mock.down = False
        eventually(lambda: "meanwhile" in target.documents())
        assert target.documents() == source.documents()


def test_an_outage_of_the_receiver_is_waited_out(source: LocalServer, tmp_path: Path) -> None:
    """It stops fetching, says so, and goes on when the receiver is back at its address."""
    source.fill(*(recent_document(f"run_{number}") for number in range(50)))
    with local_server(tmp_path / "target") as target:
        url = target.url
    port = url.rpartition(":")[2]
    with following(source.url, url, tmp_path, "--retry-max-time", "2s") as child:
        child.wait_for(r"trying again")
        with running("serve", "--data", tmp_path / "target", "--port", port) as server:
            server.wait_for("is serving")
            back = LocalServer(target.store, url)
            eventually(lambda: len(back.documents()) == 50)
            assert back.documents() == source.documents()
            assert server.end() == 0


def test_a_receiver_that_refuses_us_costs_the_platform_little(source: LocalServer, tmp_path: Path) -> None:
    """While its key is wrong some documents tell that, not all of them again and again; then all arrive."""
    source.fill(*(recent_document(f"run_{number}") for number in range(400)))
    refusing, taken = True, set()

    def answer(post: Post) -> Answer:
        if refusing:
            return Answer(401)
        taken.update(run_ids_of(post))
        return OK

    with (
        http_receiver(answer) as receiver,
        platform(source.url) as mock,
        following(mock.url, receiver.url, tmp_path) as child,
    ):
        child.wait_for(r"HTTP 401.*trying again")
        assert len(mock.documents_asked()) < 100
        refusing = False
        eventually(lambda: len(taken) == 400)


def test_a_retention_edge_that_comes_too_close_is_told(
    source: LocalServer, target: LocalServer, tmp_path: Path
) -> None:
    """At the pace that is allowed, some of the backlog will be deleted before its turn: a warning says how many."""
    source.fill(*(recent_document(f"run_{number}", days=6.9999) for number in range(60)))
    args = ("--retention", "free", "--requests-per-minute", 30)
    with following(source.url, target.url, tmp_path, *args) as child:
        told = child.wait_for(r"warning: at \S+ runs a second, the platform's retention will delete (\d+) runs")
        assert 0 < int(told[1]) <= 60
        assert "--requests-per-minute" in told.string


def test_how_it_stands_is_told_as_metrics(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """Counts, backlog, ages and the margin to the retention's edge, while it runs."""
    source.put(recent_document("run_1"), recent_document("run_2", "running", days=1))
    with (
        platform(source.url) as mock,
        following(mock.url, target.url, tmp_path, "--metrics-listen", 0, "--retention", 7, "--rescan", "1s") as child,
    ):
        url = child.wait_for(r"metrics at (\S+)")[1]

        def numbers() -> dict[str, float]:
            lines = httpx.get(url, trust_env=False).text.splitlines()
            return {name: float(value) for name, value in (line.split() for line in lines if line[0] != "#")}

        eventually(lambda: numbers().get("runspan_export_runs_total", 0) >= 2)
        eventually(lambda: numbers().get("runspan_runs_unfinished") == 1)
        found = numbers()
        assert found["runspan_sync_runs_total"] >= 2
        assert found["runspan_sync_requests_total"] >= 3
        assert found["runspan_sync_backlog"] == found["runspan_sync_lag_seconds"] == 0
        assert 86_400 < found["runspan_runs_oldest_unfinished_age_seconds"] < 87_000
        assert found["runspan_sync_poll_age_seconds"] < 30
        assert "runspan_sync_retention_margin_seconds" not in found
        mock.vanished.add("run_3")  # listed, and not there for a while
        source.put(recent_document("run_3", days=6))
        eventually(lambda: numbers()["runspan_sync_backlog"] == 1)
        found = numbers()
        assert 6 * 86_400 < found["runspan_sync_lag_seconds"] < 6 * 86_400 + 600
        assert 86_400 - 600 < found["runspan_sync_retention_margin_seconds"] < 86_400
        mock.vanished.clear()


def test_a_stop_does_not_wait_as_long_as_the_platform_asks(
    source: LocalServer, target: LocalServer, tmp_path: Path
) -> None:
    """Nor for a receiver that never answers: it ends within its grace, and well."""
    source.put(*(recent_document(f"run_{number}") for number in range(3)))
    with platform(source.url, limit=4, window=3600) as mock:
        with following(mock.url, target.url, tmp_path) as child:
            child.wait_for(r"asks to wait \d+ s; trying again")
            begun = time.monotonic()
        assert time.monotonic() - begun < 15
        assert mock.over_limit == 1
    ended = threading.Event()

    def silence(post: Post) -> Answer:
        ended.wait(WAIT)
        return CLOSE

    with http_receiver(silence) as receiver:
        with following(source.url, receiver.url, make_directory(tmp_path / "other")):
            eventually(lambda: bool(receiver.posts))
            begun = time.monotonic()
        assert 5 < time.monotonic() - begun < 30
        ended.set()


def test_two_followers_of_one_checkpoint_are_refused(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """The second one ends with the store's exit code, and the first goes on."""
    source.put(recent_document("run_1"))
    with following(source.url, target.url, tmp_path) as child:
        eventually(lambda: len(target.documents()) == 1)
        args = ("--endpoint", target.url, "--state-file", tmp_path / "checkpoint")
        with running("sync", source.url, *args) as second:
            assert second.process.wait(60) == 10
            second.read_to_the_end()
        assert re.search("another process is using the state file of a sync", "".join(second.lines))
        source.put(recent_document("run_2"))
        eventually(lambda: len(target.documents()) == 2)
        assert child.process.poll() is None
