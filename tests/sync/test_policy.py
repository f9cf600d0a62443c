"""The decisions of a sync without I/O: how to send a document, when to fetch again, and where a scan ends."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import decode, encode
from runspan.codec.fields import ROOT_REVISION
from runspan.export import ObservedRun
from runspan.model.document import Run
from runspan.model.timestamps import SECOND, canonical_text
from runspan.platform_api.schema import RunListItem, RunListPage
from runspan.sync.checkpoint import TrackedRun, TrackState
from runspan.sync.context import DAY, HOUR, MINUTE, ListFilter, SyncConfig, retry_at
from runspan.sync.list_crawler import ListScan, since_parameter
from runspan.sync.queues import PlannedSend, known_digest, plan_send, refresh_at
from runspan.sync.report import at_risk_of_retention
from support.sync import NOW, POLICY, mark_sent, planned, run_of


def test_a_finished_run_is_written_once() -> None:
    """The first document of an ended run is its run span; the same document is not sent again."""
    tracked, run = TrackedRun("run_1", 0), run_of("completed")
    first = planned(tracked, run, NOW)
    assert first == PlannedSend(tracked, run, sha256(run.text).digest()[:16], ROOT_REVISION)
    assert first.observed == ObservedRun(run, 0)
    mark_sent(tracked, first, NOW)
    assert plan_send(tracked, run, NOW + DAY, POLICY) is None


def test_a_changed_finished_run_is_a_revision_above_its_run_span() -> None:
    """The receiver reads the newer document, in whichever order both arrive."""
    tracked, old, new = TrackedRun("run_1", 0), run_of("completed"), run_of("completed", 2)
    mark_sent(tracked, planned(tracked, old, NOW), NOW)
    change = planned(tracked, new, NOW + HOUR)
    assert change.observed == ObservedRun(new, NOW + HOUR, after_root=True)
    spans = [*encode(new, observed_at=NOW + HOUR, after_root=True), *encode(old)]
    assert decode(spans) == new
    mark_sent(tracked, change, NOW + HOUR)
    back = planned(tracked, old, NOW + 2 * HOUR)
    assert back.revision > change.revision


def test_a_reopened_run_ends_above_everything_before() -> None:
    """After its run span, every document is a revision, unfinished or not."""
    tracked = TrackedRun("run_1", 0)
    ranks = []
    for hour, run in enumerate([run_of("running"), run_of("failed"), run_of("running", 1), run_of("completed", 2)]):
        item = planned(tracked, run, NOW + hour * HOUR)
        mark_sent(tracked, item, NOW + hour * HOUR)
        ranks.append(item.revision)
    assert ranks == sorted(set(ranks))
    assert ranks[0] < ROOT_REVISION == ranks[1] < ranks[2]


@pytest.mark.parametrize("status", ["running", "completed"])
def test_what_may_have_arrived_is_sent_again_as_the_same_spans(status: str) -> None:
    """After a kill between request and response, the same document gets the same revision, so the same span ids."""
    tracked, run = TrackedRun("run_1", 0), run_of(status)
    first = planned(tracked, run, NOW)
    mark_sent(tracked, first, NOW, acked=False)
    assert planned(tracked, run, NOW + DAY) == first


def test_a_change_after_an_unacknowledged_run_span_is_a_revision() -> None:
    """Two run spans with one id would let the receiver choose between two documents."""
    tracked, run = TrackedRun("run_1", 0), run_of("completed")
    mark_sent(tracked, planned(tracked, run, NOW), NOW, acked=False)
    assert planned(tracked, run_of("completed", 7), NOW + 1).revision == ROOT_REVISION + NOW + 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-DAY, DAY)), min_size=1, max_size=12))
def test_revisions_only_rise_whatever_the_clock_does(history: list[tuple[int, int]]) -> None:
    """A later document has a higher revision, also if the clock was set back."""
    documents = [run_of("running"), run_of("running", 1), run_of("completed"), run_of("failed", 3)]
    tracked, spans, last = TrackedRun("run_1", 0), [], None
    for choice, shift in history:
        run = documents[choice]
        item = plan_send(tracked, run, NOW + shift, POLICY)
        if item is None:
            assert last == run
            continue
        assert not tracked.sent_digest or item.revision > tracked.sent_revision
        mark_sent(tracked, item, NOW + shift)
        last = run
        after_root = item.revision > ROOT_REVISION
        spans += encode(run, observed_at=item.revision % ROOT_REVISION, after_root=after_root)
    assert decode(spans) == last


def run_started(at: int) -> Run:
    """Return a running run that started then, in nanoseconds since 1970."""
    return Run.from_dict({**run_of("running").to_dict(), "startedAt": canonical_text(at)})


def test_an_unchanged_running_run_is_sent_at_the_heartbeat() -> None:
    """Not before; an old or a suspended run less and less often; never if heartbeats are off."""
    tracked, run = TrackedRun("run_1", 0, changed_at=NOW), run_started(NOW)
    mark_sent(tracked, planned(tracked, run, NOW), NOW)
    assert plan_send(tracked, run, NOW + 4 * MINUTE, POLICY) is None
    again = planned(tracked, run, NOW + 5 * MINUTE)
    assert again.revision == NOW + 5 * MINUTE
    assert plan_send(tracked, run, NOW + DAY, SyncConfig(heartbeat=0)) is None
    old = run_started(NOW - 16 * HOUR)
    mark_sent(tracked, planned(tracked, old, NOW), NOW)
    assert plan_send(tracked, old, NOW + 59 * MINUTE, POLICY) is None
    assert plan_send(tracked, old, NOW + HOUR, POLICY) is not None
    waits = run_of("suspended")
    mark_sent(tracked, planned(tracked, waits, NOW), NOW + 2 * DAY)
    assert plan_send(tracked, waits, NOW + 2 * DAY + HOUR, POLICY) is None
    assert plan_send(tracked, waits, NOW + 3 * DAY, POLICY) is not None


def test_a_run_is_fetched_less_often_the_longer_it_does_not_change() -> None:
    """From the poll interval up to ten minutes; a running one at every heartbeat; a finished one never."""
    tracked, run = TrackedRun("run_1", 0, changed_at=NOW), run_of("suspended")
    pauses = [
        (refresh_at(tracked, run, NOW + age, POLICY) or 0) - NOW - age for age in (0, MINUTE, 10 * MINUTE, HOUR, DAY)
    ]
    assert pauses == [15 * SECOND, 15 * SECOND, MINUTE, 6 * MINUTE, 10 * MINUTE]
    assert refresh_at(tracked, run_of("running"), NOW + DAY, POLICY) == NOW + DAY + 5 * MINUTE
    assert refresh_at(tracked, run_of("failed"), NOW, POLICY) is None


def test_only_what_the_receiver_has_and_need_not_get_again_is_known() -> None:
    """Not a document that may not have arrived, nor one that a heartbeat repeats, nor one of a run that is refused."""
    tracked, run = TrackedRun("run_1", 0), run_started(NOW)
    assert known_digest(tracked, NOW, POLICY) == b""
    plan = planned(tracked, run, NOW)
    mark_sent(tracked, plan, NOW)
    tracked.state = TrackState.OPEN
    assert known_digest(tracked, NOW + 4 * MINUTE, POLICY) == plan.digest
    assert known_digest(tracked, NOW + 5 * MINUTE, POLICY) == known_digest(tracked, NOW - MINUTE, POLICY) == b""
    assert known_digest(tracked, NOW + DAY, SyncConfig(heartbeat=0)) == plan.digest
    assert refresh_at(tracked, None, NOW + DAY, POLICY) == refresh_at(tracked, run, NOW + DAY, POLICY)
    tracked.state = TrackState.ENDED
    assert known_digest(tracked, NOW + DAY, POLICY) == plan.digest
    assert refresh_at(tracked, None, NOW + DAY, POLICY) is None
    tracked.state = TrackState.REFUSED
    assert known_digest(tracked, NOW + DAY, POLICY) == b""
    tracked.state, tracked.acked_digest = TrackState.ENDED, b""
    assert known_digest(tracked, NOW + DAY, POLICY) == b""


def test_failures_are_retried_after_growing_pauses() -> None:
    """Up to ten minutes, after any number of failures."""
    pauses = [(retry_at(NOW, failures) - NOW) // SECOND for failures in (1, 2, 3, 10, 11, 5000)]
    assert pauses == [1, 2, 4, 512, 600, 600]


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        (0, "1h"),
        (50 * MINUTE, "1h"),
        (58 * MINUTE, "24h"),
        (23 * HOUR, "24h"),
        (DAY, "7d"),
        (29 * DAY, "30d"),
        (30 * DAY, None),
    ],
)
def test_since_is_one_of_the_windows_that_the_platform_documents(back: int, expected: str | None) -> None:
    """The shortest that reaches the edge even if the two clocks differ by minutes."""
    assert since_parameter(NOW - back, NOW) == expected


def test_runs_at_risk_of_retention_are_counted() -> None:
    """The oldest are fetched first, and deleted runs take no time."""
    retention = 30 * DAY
    hour_old = [(NOW - HOUR, 10_000)]
    assert at_risk_of_retention(hour_old, per_second=15, retention=retention, now=NOW) == 0
    edge = [(NOW - retention + 100 * SECOND, 2000), (NOW - retention + DAY, 2000)]
    assert at_risk_of_retention(edge, per_second=15, retention=retention, now=NOW) == 500
    assert at_risk_of_retention(edge, per_second=0.001, retention=retention, now=NOW) == 4000 - 86
    assert at_risk_of_retention([(NOW - 2 * retention, 7)], per_second=15, retention=retention, now=NOW) == 7
    assert at_risk_of_retention([], per_second=15, retention=retention, now=NOW) == 0


# Scans.


def page(*times: int, cursor: str | None) -> RunListPage:
    return RunListPage(tuple(RunListItem(f"run_{time}", time, b"") for time in times), cursor)


def test_a_scan_ends_at_a_page_below_the_edge_or_at_the_end() -> None:
    """One run below the edge among others above it does not: the order of equal times is undefined."""
    scan = ListScan(ListFilter(), edge=50, full=False, started=1000)
    assert not scan.advance(page(100, 49, 60, cursor="a"))
    assert scan.newest == 100
    assert not scan.advance(page(cursor="b"))
    assert scan.advance(page(49, 48, cursor="c"))
    assert ListScan(ListFilter(), edge=0, full=True, started=1000).advance(page(100, cursor=None))


def test_a_scan_does_not_go_in_circles() -> None:
    """A repeated cursor is an error, and does not move the scan."""
    scan = ListScan(ListFilter(), edge=0, full=True, started=1000)
    scan.advance(page(100, cursor="a"))
    scan.advance(page(90, cursor="b"))
    for back in ("b", "a"):
        with pytest.raises(ValueError, match="second time"):
            scan.advance(page(100, cursor=back))
    assert scan.cursor == "b"


def test_a_run_from_the_future_hides_no_others() -> None:
    """The newest known time is never after the start of the scan."""
    scan = ListScan(ListFilter(), edge=0, full=True, started=1000)
    scan.advance(page(10**18, 90, cursor=None))
    assert scan.newest == 1000
    empty = ListScan(ListFilter(), edge=0, full=True, started=1000)
    assert empty.advance(page(cursor=None))
    assert empty.newest == 1000
