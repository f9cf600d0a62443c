"""``runspan sync --follow``: runs from start to end, outages of both sides, messages and metrics."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runspan.codec.fields import ROLE, ROLE_REVISION
from runspan.model.span import run_ids
from support.cli import WAIT, Running, running
from support.faulty_platform import EVERY_KIND, platform
from support.receivers import CLOSE, OK, Answer, Post, http_receiver
from support.sync import LocalServer, eventually, following, local_server, recent_document, run_ids_of


@contextmanager
def follow_command(source: str, target: str, directory: Path, *args: object) -> Iterator[Running]:
    """Run ``runspan sync --follow`` until the block ends. It must end with 0 when it is stopped."""
    options = ("--state-file", directory / "state", "--follow", "--poll", "0.2s", "--requests-per-minute", 0)
    with running("sync", source, "--endpoint", target, *options, *args) as child:
        yield child
        assert child.end(signal.SIGTERM) == 0, child.lines


class Log(list[str]):
    """The messages of a sync in this process."""

    def wait_for(self, pattern: str) -> None:
        eventually(lambda: any(re.search(pattern, line) for line in list(self)), pattern)


def test_runs_are_followed_from_their_start_to_their_end(
    source: LocalServer, target: LocalServer, tmp_path: Path
) -> None:
    """New, changing and ended runs, and an ended one that changes: soon both sides are equal. A running run that does
    not change is sent at each heartbeat."""
    source.put(recent_document("early"))
    args = ("--rescan", "0.5s", "--heartbeat", "0.5s")
    with platform(source.url, faults=EVERY_KIND, seed=4, pause=0.01) as mock:

        def same() -> bool:
            return target.documents() == source.documents()

        with follow_command(mock.url, target.url, tmp_path, *args) as child:
            eventually(same)
            source.put(recent_document("run_1", "pending"), recent_document("quiet", "running"))
            eventually(same)
            for status in ("running", "suspended", "running"):
                source.put(changed(source, "run_1", status))
                eventually(same)
            source.put(changed(source, "run_1", "completed"), recent_document("run_2"))
            eventually(same)
            source.put(changed(source, "run_1", "failed", error={"code": "LATE"}))
            eventually(same)
            before = newest_revision(target, "quiet")
            eventually(lambda: newest_revision(target, "quiet") > before, "no heartbeat came")
            assert same()
            assert child.process.poll() is None
    assert any("1 revision," in line for line in child.lines)


def changed(source: LocalServer, run_id: str, status: str, **members: Any) -> dict[str, Any]:
    """Return the source's document with another status."""
    return {**json.loads(source.documents()[run_id]), "status": status, **members}


def newest_revision(target: LocalServer, run_id: str) -> int:
    """Return the highest revision of a run that the receiver has."""
    spans = [span.attributes() for span in target.store.spans(run_ids(run_id).trace_id)]
    found = [span["runspan.revision"] for span in spans if span[ROLE] == ROLE_REVISION]
    return max(int(str(revision)) for revision in found)


def test_an_outage_of_the_platform_is_waited_out(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """It is logged, and runs that appear meanwhile arrive afterwards."""
    source.put(recent_document("before"))
    log = Log()
    with platform(source.url) as mock, following(mock.url, target.url, checkpoint, log=log.append):
        eventually(lambda: "before" in target.documents())
        mock.down = True
        source.put(recent_document("meanwhile"))
        log.wait_for(r"HTTP 503.*trying again")
        mock.down = False
        eventually(lambda: "meanwhile" in target.documents())
        assert target.documents() == source.documents()


def test_an_outage_of_the_receiver_is_waited_out(source: LocalServer, tmp_path: Path) -> None:
    """Fetching stops, the outage is logged, and the sync continues when the receiver is back at its address."""
    source.fill(*(recent_document(f"run_{number}") for number in range(50)))
    with local_server(tmp_path / "target") as target:
        url = target.url
    port = url.rpartition(":")[2]
    with follow_command(source.url, url, tmp_path, "--retry-max-time", "2s") as child:
        child.wait_for(r"trying again")
        with running("serve", "--data", tmp_path / "target", "--port", port) as server:
            server.wait_for("is serving")
            restarted = LocalServer(target.store, url)
            eventually(lambda: len(restarted.documents()) == 50)
            assert restarted.documents() == source.documents()
            assert server.end() == 0


def test_a_receiver_that_refuses_us_costs_the_platform_little(
    source: LocalServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its key is wrong only a few documents are fetched; afterwards all arrive."""
    monkeypatch.setattr("runspan.sync.engine._RECONNECT_AFTER", 0.5)
    source.fill(*(recent_document(f"run_{number}") for number in range(400)))
    refusing, accepted, log = True, set(), Log()

    def answer(post: Post) -> Answer:
        if refusing:
            return Answer(401)
        accepted.update(run_ids_of(post))
        return OK

    with (
        http_receiver(answer) as receiver,
        platform(source.url) as mock,
        following(mock.url, receiver.url.removesuffix("/v1/traces"), checkpoint, log=log.append),
    ):
        log.wait_for(r"HTTP 401.*trying again")
        assert len(mock.documents_asked()) < 100
        refusing = False
        eventually(lambda: len(accepted) == 400)


def test_runs_at_risk_of_retention_are_logged(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """If the rate limit is too low for the backlog, a warning says how many runs will be deleted."""
    source.fill(*(recent_document(f"run_{number}", days=6.9999) for number in range(60)))
    args = ("--retention", "free", "--requests-per-minute", 30)
    with follow_command(source.url, target.url, tmp_path, *args) as child:
        warning = child.wait_for(r"warning: at \S+ runs a second, the platform's retention will delete (\d+) runs")
        assert 0 < int(warning[1]) <= 60
        assert "--requests-per-minute" in warning.string


def test_progress_is_exported_as_metrics(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """Counts, backlog, ages and the margin to the retention, while it runs."""
    source.put(recent_document("run_1"), recent_document("run_2", "running", days=1))
    args = ("--metrics-listen", 0, "--retention", 7, "--rescan", "0.5s")
    with platform(source.url) as mock, follow_command(mock.url, target.url, tmp_path, *args) as child:
        url = child.wait_for(r"metrics at (\S+)")[1]

        def metrics() -> dict[str, float]:
            lines = httpx.get(url, trust_env=False).text.splitlines()
            samples = [line.split() for line in lines if line[0] != "#"]
            return {name.partition("{")[0]: float(value) for name, value in samples}

        eventually(lambda: metrics().get("runspan_export_runs_total", 0) >= 2)
        eventually(lambda: metrics().get("runspan_runs_unfinished") == 1)
        found = metrics()
        assert found["runspan_sync_runs_total"] >= 2
        assert found["runspan_sync_requests_total"] >= 3
        assert found["runspan_sync_backlog"] == found["runspan_sync_lag_seconds"] == 0
        assert 86_400 < found["runspan_runs_oldest_unfinished_age_seconds"] < 87_000
        assert found["runspan_sync_poll_age_seconds"] < 30
        assert "runspan_sync_retention_margin_seconds" not in found
        mock.vanished.add("run_3")  # listed, and not found for a while
        source.put(recent_document("run_3", days=6))
        eventually(lambda: metrics()["runspan_sync_backlog"] == 1)
        found = metrics()
        assert 6 * 86_400 < found["runspan_sync_lag_seconds"] < 6 * 86_400 + 600
        assert 86_400 - 600 < found["runspan_sync_retention_margin_seconds"] < 86_400
        mock.vanished.clear()


def test_a_stop_does_not_wait_as_long_as_the_platform_asks(
    source: LocalServer, target: LocalServer, tmp_path: Path
) -> None:
    """The command ends with 0, and has sent nothing before the time that the platform named."""
    source.put(*(recent_document(f"run_{number}") for number in range(3)))
    with platform(source.url, limit=4, window=3600) as mock:
        with follow_command(mock.url, target.url, tmp_path) as child:
            child.wait_for(r"asks to wait \d+ s; trying again")
            started = time.monotonic()
        assert time.monotonic() - started < 15
        assert mock.over_limit == 1


def test_a_stop_gives_the_receiver_its_grace_only(source: LocalServer, checkpoint: Path) -> None:
    """Also if the receiver never responds."""
    source.put(recent_document("run_1"))
    ended = threading.Event()

    def silence(post: Post) -> Answer:
        ended.wait(WAIT)
        return CLOSE

    with http_receiver(silence) as receiver:
        with following(source.url, receiver.url.removesuffix("/v1/traces"), checkpoint, grace=1.0):
            eventually(lambda: bool(receiver.posts))
            started = time.monotonic()
        assert 1 <= time.monotonic() - started < 10
        ended.set()


def test_a_sync_beside_one_that_follows_ends(source: LocalServer, target: LocalServer, tmp_path: Path) -> None:
    """It ends once the other one has read the list and nothing is left, and the other one continues."""
    source.put(recent_document("run_1"))
    with follow_command(source.url, target.url, tmp_path) as child:
        eventually(lambda: len(target.documents()) == 1)
        args = ("--endpoint", target.url, "--state-file", tmp_path / "state")
        with running("sync", source.url, *args) as second:
            assert second.process.wait(60) == 0
        source.put(recent_document("run_2"))
        eventually(lambda: len(target.documents()) == 2)
        assert child.process.poll() is None
