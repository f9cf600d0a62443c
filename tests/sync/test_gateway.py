"""Sync while somebody else answers for the platform, or its clock is wrong: nothing is given up that can still come."""

from __future__ import annotations

import gc
import sqlite3
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runspan.delivery import OtlpExporter
from runspan.delivery import connect as delivery_to
from runspan.errors import BackendBusy, StoreError
from runspan.model.timestamps import SECOND
from runspan.sync import Binding, Checkpoint
from runspan.sync.checkpoint import TrackedRun, TrackState
from runspan.sync.policy import LONGEST_PAUSE, MINUTE, RefreshPolicy, plan_send
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.instruments import REQUESTS
from support.cli import running, runspan
from support.faulty_platform import LIST, FaultyPlatform, failure, platform
from support.receivers import Answer, http_receiver
from support.sync import Place, eventually, followed, once, run_document, synced
from sync.test_follow import now_document
from sync.test_policy import NOW, decided, run_of, sent

DAY = 86_400 * SECOND
RUNS = [f"run_{number}" for number in range(5)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again after a moment, however often it did."""
    for module in ("context", "list_crawler"):
        monkeypatch.setattr(f"runspan.sync.{module}.retry_at", lambda now, failures: now + SECOND // 50)


def states(checkpoint: Path) -> dict[str, TrackState]:
    with closing(sqlite3.connect(checkpoint)) as connection:
        return {run_id: TrackState(state) for run_id, state in connection.execute("SELECT run_id, state FROM runs")}


def asked(mock: FaultyPlatform, times: int) -> Callable[[], bool]:
    """Whether every run was asked for so often."""
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
@pytest.mark.usefixtures("impatient")
def test_a_gateway_in_trouble_costs_no_run(
    source: Place, target: Place, checkpoint: Path, gateway: tuple[int, bytes]
) -> None:
    """While it follows: the list works, each document was asked for many times, and all arrive once it is over."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url, gateway=gateway) as mock, followed(mock.url, target.url, checkpoint) as syncing:
        eventually(asked(mock, 12))
        assert syncing.latest.counts.refused == syncing.latest.counts.vanished == 0
        assert syncing.latest.backlog == len(RUNS)
        mock.gateway = None
        eventually(lambda: target.documents() == source.documents())
    assert set(states(checkpoint).values()) == {TrackState.ENDED}


@TROUBLES
@pytest.mark.usefixtures("impatient")
def test_a_gateway_in_trouble_is_no_success(
    source: Place, target: Place, checkpoint: Path, gateway: tuple[int, bytes]
) -> None:
    """A sync that goes once through leaves the runs for the next one, and says so."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url, gateway=gateway) as mock:
        report = once(mock.url, target.url, checkpoint)
        assert {run_id for run_id, _ in report.failing} == set(RUNS)
        assert (report.complete, report.refused_now, report.counts.vanished) == (False, (), 0)
        mock.gateway = None
        assert once(mock.url, target.url, checkpoint).complete
    assert target.documents() == source.documents()


@pytest.mark.usefixtures("impatient")
def test_a_gateway_that_answers_for_the_list_too_is_waited_out(source: Place, target: Place, checkpoint: Path) -> None:
    """Once the platform was there; and a service that starts while it is away knows from its checkpoint that it was."""
    source.put(run_document("run_0"))
    with platform(source.url) as mock:
        real = mock.answer

        def trouble(answer: tuple[int, bytes]) -> None:
            mock.answer = lambda path, headers: answer  # type: ignore[method-assign]

        with followed(mock.url, target.url, checkpoint):
            eventually(lambda: "run_0" in target.documents())
            for status, body in ((400, failure("BAD_REQUEST", "no upstream")), (404, b"default backend"), (302, b"")):
                trouble((status, body))
                before = len(mock.arrivals)
                eventually(lambda before=before: len(mock.arrivals) > before + 3)  # type: ignore[misc]
            mock.answer = real  # type: ignore[method-assign]
            source.put(run_document("run_1", start=1))
            eventually(lambda: "run_1" in target.documents())
        trouble((404, b"default backend"))
        before = len(mock.arrivals)
        with followed(mock.url, target.url, checkpoint):
            eventually(lambda: len(mock.arrivals) > before + 3)
            mock.answer = real  # type: ignore[method-assign]
            source.put(run_document("run_2", start=2))
            eventually(lambda: "run_2" in target.documents())


@pytest.mark.usefixtures("impatient")
def test_a_run_is_gone_only_while_the_list_works(source: Place, target: Place, checkpoint: Path) -> None:
    """A platform that lost sight of its runs for a while answers in its own words that each is not there."""
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
            once(mock.url, target.url, checkpoint, give_up=2.0)
        assert asked(mock, 3)()
        assert set(states(checkpoint).values()) == {TrackState.NEW}
        mock.answer = real  # type: ignore[method-assign]
        assert once(mock.url, target.url, checkpoint).counts.vanished == len(RUNS)
        assert set(states(checkpoint).values()) == {TrackState.GONE}
        mock.gateway = None
        assert once(mock.url, target.url, checkpoint).counts.sent == len(RUNS)
    assert target.documents() == source.documents()


@pytest.mark.usefixtures("impatient")
def test_a_list_is_read_again_before_many_runs_are_called_gone(source: Place, target: Place, checkpoint: Path) -> None:
    """Though nothing else asks for it: without that the sync would never end."""
    source.put(*(run_document(run_id) for run_id in RUNS))
    with platform(source.url) as mock:
        once(mock.url, target.url, checkpoint)
        for run_id in RUNS:
            source.put(run_document(run_id, "failed"))
        mock.vanished.update(RUNS[:3])
        real = mock.answer

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            if path.partition("?")[0] != LIST:
                time.sleep(0.2)  # later than the look at the top that ends a sync
            return real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        report = once(mock.url, target.url, checkpoint)
    assert (report.counts.vanished, report.counts.revisions) == (3, 2)
    assert report.counts.pages >= 3


def test_hints_about_the_receiver_are_for_its_reasons(source: Place, target: Place, checkpoint: Path) -> None:
    """A document that happens to tell the same words is the platform's."""
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
def test_a_clock_that_is_set_back_stops_nothing(source: Place, target: Place, checkpoint: Path, ahead: int) -> None:
    """New runs are found, unfinished ones looked at, and finished ones that changed, as if nothing had happened."""
    shift = [ahead]
    source.put(now_document("goes on", "running"), now_document("changes"))
    with followed(
        source.url, target.url, checkpoint, clock=lambda: time.time_ns() + shift[0], heartbeat=SECOND
    ) as syncing:
        eventually(lambda: set(target.documents()) == {"goes on", "changes"})
        shift[0] = 0
        source.put(now_document("goes on"), now_document("new"), now_document("changes", "failed"))
        eventually(lambda: target.documents() == source.documents())
        assert syncing.latest.polled is not None
        eventually(lambda: (syncing.latest.polled or 0) <= time.time_ns())


@pytest.mark.usefixtures("impatient")
def test_a_list_that_is_not_read_ages_though_the_clock_is_set_back(
    source: Place, target: Place, checkpoint: Path
) -> None:
    """Health must not say that the list was read a day from now."""
    shift = [DAY]
    source.put(run_document("run_1"))
    with (
        platform(source.url) as mock,
        followed(mock.url, target.url, checkpoint, clock=lambda: time.time_ns() + shift[0]) as syncing,
    ):
        eventually(lambda: "run_1" in target.documents())
        mock.down = True
        shift[0] = 0
        eventually(lambda: (syncing.latest.polled or 0) < time.time_ns())
        first = syncing.latest.polled or 0
        time.sleep(0.5)
        assert abs((syncing.latest.polled or 0) - first) < SECOND // 4


def test_a_checkpoint_of_a_clock_that_was_ahead_delays_nothing(source: Place, target: Place, checkpoint: Path) -> None:
    """It was written with a wrong clock, and is opened with the right one."""
    source.put(now_document("goes on", "running"))
    with followed(source.url, target.url, checkpoint, clock=lambda: time.time_ns() + DAY):
        eventually(lambda: "goes on" in target.documents())
    source.put(now_document("goes on"), now_document("new"))
    with followed(source.url, target.url, checkpoint, rescan=3600 * SECOND):
        eventually(lambda: target.documents() == source.documents())


def test_moments_beyond_the_longest_pause_are_brought_forward(checkpoint: Path) -> None:
    """And only these."""
    with closing(Checkpoint(checkpoint, Binding("a", "b"))) as made:
        made.begin()
        for number, due in enumerate((0, NOW + LONGEST_PAUSE, NOW + LONGEST_PAUSE + 1, NOW + DAY, None)):
            made.save(TrackedRun(f"run_{number}", 1, TrackState.OPEN, due=due))
        made.save(TrackedRun("run_5", 1, TrackState.NEW, due=NOW + DAY, failures=1))
        made.clamp_due(NOW + LONGEST_PAUSE)
        found = made.entries([f"run_{number}" for number in range(6)])
        made.commit()
    assert [found[f"run_{number}"].due for number in range(6)] == [0, NOW + LONGEST_PAUSE, 0, 0, None, 0]


def test_a_heartbeat_does_not_wait_for_a_clock_that_was_ahead() -> None:
    """What was sent a day from now was sent long ago."""
    entry, run = TrackedRun("run_1", 0), run_of("running")
    rhythm = RefreshPolicy(heartbeat=5 * MINUTE)
    sent(entry, decided(entry, run, NOW), NOW)
    assert plan_send(entry, run, NOW + MINUTE, rhythm) is None
    assert plan_send(entry, run, NOW - DAY, rhythm) is not None


# Deliveries.


def test_deliveries_that_were_replaced_are_let_go_of(
    source: Place, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service before a receiver that refuses it makes a new one again and again, for days; its counts go on."""
    source.put(run_document("run_1"))
    made: list[weakref.ref[OtlpExporter]] = []
    healths: list[MetricsRegistry] = []

    def connect(*args: Any, **settings: Any) -> OtlpExporter:
        if len(made) == 6:
            raise StoreError("enough")
        delivery = delivery_to(*args, **settings)
        made.append(weakref.ref(delivery))
        return delivery

    def watched(*args: Any, **settings: Any) -> MetricsRegistry:
        healths.append(MetricsRegistry(*args, **settings))
        return healths[0]

    monkeypatch.setattr("runspan.sync.engine._RECONNECT_AFTER", 0.01)
    monkeypatch.setattr("runspan.sync.engine._RECONNECT_LONGEST", 0.01)
    monkeypatch.setattr("runspan.delivery.connect", connect)
    monkeypatch.setattr("runspan.cli.sync.MetricsRegistry", watched)
    with http_receiver(lambda post: Answer(401)) as receiver:
        args = ("--endpoint", receiver.url, "--state-file", checkpoint, "--follow", "--requests-per-minute", 0)
        result = runspan("sync", source.url, *args, code=10)
        assert "enough" in result.stderr
        gc.collect()
        assert sum(each() is not None for each in made) <= 1
        assert len(made) == 6
        assert healths[0].collect()[REQUESTS] == len(receiver.posts) >= 6


def test_a_sync_that_follows_tells_of_what_is_refused_too(source: Place, target: Place, checkpoint: Path) -> None:
    """By its exit code, as long as anything is, whoever found it."""
    source.put(run_document("run_1"), run_document("run_2"))
    with platform(source.url, replaced={"run_1": b'{"id":"run_1","id":"run_1"}'}) as mock:
        synced(mock.url, target.url, checkpoint, code=1)
        pace = ("--poll", "0.2s", "--requests-per-minute", 0)
        args = ("sync", mock.url, "--endpoint", target.url, "--state-file", checkpoint, "--follow", *pace)
        with running(*args) as child:
            source.put(run_document("run_3"))
            eventually(lambda: "run_3" in target.documents())
            assert child.end() == 1
        assert any("1 run refused by an earlier sync" in line for line in child.lines)
