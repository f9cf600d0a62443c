"""Sync while a gateway answers in place of the platform, or while the clock is wrong: no run is lost."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runspan.delivery import OtlpExporter
from runspan.delivery import connect as connect_exporter
from runspan.errors import BackendBusy
from runspan.model.timestamps import SECOND
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState, sync_binding
from runspan.sync.context import DAY, MAX_PAUSE, MINUTE
from runspan.sync.queues import plan_send
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.registry import REQUESTS
from support.cli import WAIT, running, runspan
from support.faulty_platform import LIST, FaultyPlatform, failure, platform
from support.receivers import Answer, http_receiver
from support.sync import (
    NOW,
    POLICY,
    LocalServer,
    eventually,
    following,
    mark_sent,
    planned,
    recent_document,
    run_document,
    run_of,
    sync_command,
    sync_once,
)

RUNS = [f"run_{number}" for number in range(5)]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a moment, after any number of failures."""
    for module in ("context", "list_crawler"):
        monkeypatch.setattr(f"runspan.sync.{module}.retry_at", lambda now, failures: now + SECOND // 50)


def states(checkpoint: Path) -> dict[str, TrackState]:
    with closing(sqlite3.connect(checkpoint)) as connection:
        return {run_id: TrackState(state) for run_id, state in connection.execute("SELECT run_id, state FROM runs")}


def requested(mock: FaultyPlatform, times: int) -> Callable[[], bool]:
    """Return a condition: every run was requested this often."""
    return lambda: all(mock.documents_asked().count(run_id) >= times for run_id in RUNS)


TROUBLES = pytest.mark.parametrize(
    "gateway",
    [
        (404, b"default backend - 404"),
        (404, failure("ROUTE_NOT_FOUND", "nothing is deployed here")),
        (302, b""),
        (400, failure("BAD_REQUEST", "no upstream")),
        (401, b"<html>sign in</html>"),
        (403, b"<html>blocked</html>"),
        (200, b"<html>Service is being deployed</html>"),
    ],
    ids=["no backend", "no route", "login", "bad", "sign in", "blocked", "maintenance"],
)


@TROUBLES
@pytest.mark.usefixtures("short_pauses")
def test_a_gateway_in_trouble_costs_no_run(
    source: LocalServer, target: LocalServer, checkpoint: Path, gateway: tuple[int, bytes]
) -> None:
    """With --follow: the list works, each document is requested many times, and all arrive afterwards."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url, gateway=gateway) as mock, following(mock.url, target.url, checkpoint) as engine:
        eventually(requested(mock, 12))
        assert engine.latest.counts.refused == engine.latest.counts.gone == 0
        assert engine.latest.backlog == len(RUNS)
        mock.gateway = None
        eventually(lambda: target.documents() == source.documents())
    assert set(states(checkpoint).values()) == {TrackState.ENDED}


@TROUBLES
@pytest.mark.usefixtures("short_pauses")
def test_a_gateway_in_trouble_is_no_success(
    source: LocalServer, target: LocalServer, checkpoint: Path, gateway: tuple[int, bytes]
) -> None:
    """A sync without --follow reports the runs as failing, and the next one fetches them."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url, gateway=gateway) as mock:
        report = sync_once(mock.url, target.url, checkpoint)
        assert {run_id for run_id, _ in report.failing} == set(RUNS)
        assert (report.complete, report.refused_now, report.counts.gone) == (False, (), 0)
        mock.gateway = None
        assert sync_once(mock.url, target.url, checkpoint).complete
    assert target.documents() == source.documents()


@pytest.mark.usefixtures("short_pauses")
def test_a_gateway_that_answers_for_the_list_too_is_waited_out(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """If the platform worked before, also before a restart, as the checkpoint shows."""
    source.put(run_document("run_0"))
    with platform(source.url) as mock:
        real = mock.answer

        def respond_with(answer: tuple[int, bytes]) -> None:
            mock.answer = lambda path, headers: answer  # type: ignore[method-assign]

        with following(mock.url, target.url, checkpoint):
            eventually(lambda: "run_0" in target.documents())
            for status, body in ((400, failure("BAD_REQUEST", "no upstream")), (404, b"default backend"), (302, b"")):
                respond_with((status, body))
                before = len(mock.arrivals)
                eventually(lambda before=before: len(mock.arrivals) > before + 3)  # type: ignore[misc]
            mock.answer = real  # type: ignore[method-assign]
            source.put(run_document("run_1", start=1))
            eventually(lambda: "run_1" in target.documents())
        respond_with((404, b"default backend"))
        before = len(mock.arrivals)
        with following(mock.url, target.url, checkpoint):
            eventually(lambda: len(mock.arrivals) > before + 3)
            mock.answer = real  # type: ignore[method-assign]
            source.put(run_document("run_2", start=2))
            eventually(lambda: "run_2" in target.documents())


@pytest.mark.usefixtures("short_pauses")
def test_a_run_is_gone_only_while_the_list_works(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """A platform that has lost its runs for a while responds with its own NOT_FOUND."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url, gateway=(404, failure("NOT_FOUND", "no such run"))) as mock:
        real, pages = mock.answer, []

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            if path.partition("?")[0] == LIST:
                pages.append(path)
                if len(pages) > 1:
                    return 500, failure("INTERNAL", "no database")
            return real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        with pytest.raises(BackendBusy):
            sync_once(mock.url, target.url, checkpoint, retry_max_time=2.0)
        assert requested(mock, 3)()
        assert set(states(checkpoint).values()) == {TrackState.NEW}
        mock.answer = real  # type: ignore[method-assign]
        assert sync_once(mock.url, target.url, checkpoint).counts.gone == len(RUNS)
        assert set(states(checkpoint).values()) == {TrackState.GONE}
        mock.gateway = None
        assert sync_once(mock.url, target.url, checkpoint).counts.sent == len(RUNS)
    assert target.documents() == source.documents()


@pytest.mark.usefixtures("short_pauses")
def test_a_list_is_read_again_before_many_runs_are_called_gone(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """Also if no scan is due: otherwise the sync would never end."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url) as mock:
        sync_once(mock.url, target.url, checkpoint)
        for run_id in RUNS:
            source.put(run_document(run_id, "failed"))
        mock.vanished.update(RUNS[:3])
        real, both_scans, pages = mock.answer, threading.Event(), []

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            response = real(path, headers)
            if path.partition("?")[0] == LIST:
                pages.append(path)
                if len(pages) == 2:  # of the full scan, and of the last scan of the top
                    both_scans.set()
            else:
                assert both_scans.wait(WAIT)
                time.sleep(0.2)  # until the second page has been handled
            return response

        mock.answer = answer  # type: ignore[method-assign]
        report = sync_once(mock.url, target.url, checkpoint)
    assert (report.counts.gone, report.counts.revisions) == (3, 2)
    assert report.counts.pages >= 3


def test_hints_about_the_receiver_are_for_its_reasons(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """A document that contains the same text gets no hint."""
    source.put(run_document("run_1"))
    args = ("--state-file", checkpoint, "--requests-per-minute", 0)
    with platform(source.url, replaced={"run_1": b'{"id":"HTTP 404","status":"completed"}'}) as mock:
        result = runspan("sync", mock.url, "--endpoint", target.url, *args, code=1)
        assert "HTTP 404" in result.stderr
        assert "hint:" not in result.stderr
        again = runspan("sync", mock.url, "--endpoint", target.url, *args, "--quiet", code=1)
        assert "1 run refused by an earlier sync" in again.stderr
        assert "'HTTP 404'" in again.stderr
    with http_receiver(lambda post: Answer(400, b"Txn is too big", content_type="text/plain")) as receiver:
        args = ("--state-file", checkpoint.with_name("other"), "--requests-per-minute", 0)
        result = runspan("sync", source.url, "--endpoint", receiver.url, *args, code=1)
        assert "hint: a span of that run exceeds" in result.stderr


# Clocks.


@pytest.mark.parametrize("ahead", [DAY, 20 * MINUTE])
def test_a_clock_that_is_set_back_stops_nothing(
    source: LocalServer, target: LocalServer, checkpoint: Path, ahead: int
) -> None:
    """New, unfinished and changed runs are fetched as before."""
    shift = [ahead]
    source.put(recent_document("goes on", "running"), recent_document("changes"))
    with following(
        source.url, target.url, checkpoint, clock=lambda: time.time_ns() + shift[0], heartbeat=SECOND
    ) as engine:
        eventually(lambda: set(target.documents()) == {"goes on", "changes"})
        shift[0] = 0
        source.put(recent_document("goes on"), recent_document("new"), recent_document("changes", "failed"))
        eventually(lambda: target.documents() == source.documents())
        assert engine.latest.polled_at is not None
        eventually(lambda: (engine.latest.polled_at or 0) <= time.time_ns())


@pytest.mark.usefixtures("short_pauses")
def test_a_list_that_is_not_read_ages_though_the_clock_is_set_back(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """The metrics must not say that the list was read a day from now."""
    shift = [DAY]
    source.put(run_document("run_1"))
    with (
        platform(source.url) as mock,
        following(mock.url, target.url, checkpoint, clock=lambda: time.time_ns() + shift[0]) as engine,
    ):
        eventually(lambda: "run_1" in target.documents())
        mock.down = True
        shift[0] = 0
        eventually(lambda: (engine.latest.polled_at or 0) < time.time_ns())
        first = engine.latest.polled_at or 0
        time.sleep(0.5)
        assert abs((engine.latest.polled_at or 0) - first) < SECOND // 4


def test_a_checkpoint_of_a_clock_that_was_ahead_delays_nothing(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """It was written with a wrong clock, and is opened with a correct one."""
    source.put(recent_document("goes on", "running"))
    with following(source.url, target.url, checkpoint, clock=lambda: time.time_ns() + DAY):
        eventually(lambda: "goes on" in target.documents())
    source.put(recent_document("goes on"), recent_document("new"))
    with following(source.url, target.url, checkpoint, rescan=3600 * SECOND):
        eventually(lambda: target.documents() == source.documents())


def test_due_times_beyond_the_longest_pause_are_clamped(checkpoint: Path) -> None:
    """No others are changed."""
    with closing(Checkpoint(checkpoint, sync_binding("a", "b"))) as made:
        for number, due in enumerate((0, NOW + MAX_PAUSE, NOW + MAX_PAUSE + 1, NOW + DAY, None)):
            made.save(TrackedRun(f"run_{number}", 1, TrackState.OPEN, due=due))
        made.save(TrackedRun("run_5", 1, TrackState.NEW, due=NOW + DAY, failures=1))
        made.clamp_due(NOW + MAX_PAUSE)
        found = made.get([f"run_{number}" for number in range(6)])
        made.commit()
    assert [found[f"run_{number}"].due for number in range(6)] == [0, NOW + MAX_PAUSE, 0, 0, None, 0]


def test_a_heartbeat_does_not_wait_for_a_clock_that_was_ahead() -> None:
    """An acknowledgement in the future counts as long ago."""
    tracked, run = TrackedRun("run_1", 0), run_of("running")
    mark_sent(tracked, planned(tracked, run, NOW), NOW)
    assert plan_send(tracked, run, NOW + MINUTE, POLICY) is None
    assert plan_send(tracked, run, NOW - DAY, POLICY) is not None


# Exporters.


def test_replaced_exporters_are_not_referenced(
    source: LocalServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose receiver refuses it replaces its exporter for days; its counters continue."""
    source.put(run_document("run_1"))
    made: list[weakref.ref[OtlpExporter]] = []
    registries: list[MetricsRegistry] = []

    def connect(*args: Any, **options: Any) -> OtlpExporter:
        if len(made) == 6:
            raise KeyboardInterrupt
        exporter = connect_exporter(*args, **options)
        made.append(weakref.ref(exporter))
        return exporter

    def create_registry(*args: Any, **options: Any) -> MetricsRegistry:
        registries.append(MetricsRegistry(*args, **options))
        return registries[0]

    monkeypatch.setattr("runspan.sync.engine._RECONNECT_AFTER", 0.01)
    monkeypatch.setattr("runspan.sync.engine._MAX_RECONNECT_DELAY", 0.01)
    monkeypatch.setattr("runspan.delivery.connect", connect)
    monkeypatch.setattr("runspan.cli.sync.MetricsRegistry", create_registry)
    with http_receiver(lambda post: Answer(401)) as receiver:
        args = ("--endpoint", receiver.url, "--state-file", checkpoint, "--follow", "--requests-per-minute", 0)
        runspan("sync", source.url, *args, code=130)
        gc.collect()
        assert sum(each() is not None for each in made) <= 1
        assert len(made) == 6
        assert registries[0].collect()[REQUESTS] == len(receiver.posts) >= 6


def test_refused_runs_are_reported_by_a_sync_that_follows_too(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """By its exit code, also if an earlier sync refused them."""
    source.put(run_document("run_1"), run_document("run_2"))
    with platform(source.url, replaced={"run_1": b'{"id":"run_1","id":"run_1"}'}) as mock:
        sync_command(mock.url, target.url, checkpoint, code=1)
        pace = ("--poll", "0.2s", "--requests-per-minute", 0)
        args = ("sync", mock.url, "--endpoint", target.url, "--state-file", checkpoint, "--follow", *pace)
        with running(*args) as child:
            source.put(run_document("run_3"))
            eventually(lambda: "run_3" in target.documents())
            assert child.end() == 1
        assert any("1 run refused by an earlier sync" in line for line in child.lines)
