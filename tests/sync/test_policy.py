"""What sync decides, without a platform: how to write a document, when to look again, where a walk ends."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run, decode, encode
from runspan.codec.fields import ROOT_REVISION
from runspan.export import ObservedRun
from runspan.model.timestamps import SECOND
from runspan.platform_api import RunListItem, RunListPage
from runspan.sync.checkpoint import TrackedRun, TrackState
from runspan.sync.list_scan import ListFilter, ListScan
from runspan.sync.policy import (
    DAY,
    HOUR,
    MINUTE,
    PlannedSend,
    RefreshPolicy,
    at_risk_of_retention,
    plan_send,
    refresh_at,
    retry_at,
    since_parameter,
)
from support.sync import run_document

NOW = 1_800_000_000 * SECOND
RHYTHM = RefreshPolicy(refresh=15 * SECOND, heartbeat=5 * MINUTE)


def run_of(status: str, output: int = 0) -> Run:
    return Run.from_dict(run_document("run_1", status, output=output))


def digest_of(run: Run) -> bytes:
    return sha256(run.text).digest()[:16]


def sent(entry: TrackedRun, item: PlannedSend, at: int, *, acked: bool = True) -> None:
    """What the checkpoint says after a document was handed over, and taken."""
    entry.sent, entry.revision = item.digest, item.revision
    entry.rooted = entry.rooted or item.revision == ROOT_REVISION
    if acked:
        entry.acked, entry.sent_at = item.digest, at
        entry.state = TrackState.ENDED if item.run.finished else TrackState.OPEN


def decided(entry: TrackedRun, run: Run, now: int) -> PlannedSend:
    item = plan_send(entry, run, now, RHYTHM)
    assert item is not None
    return item


def test_a_finished_run_is_written_once() -> None:
    """The first document of a run that has ended is its run span; the same document again is nothing to send."""
    entry, run = TrackedRun("run_1", 0), run_of("completed")
    first = decided(entry, run, NOW)
    assert first == PlannedSend(run, digest_of(run), ROOT_REVISION)
    assert first.document is run
    sent(entry, first, NOW)
    assert plan_send(entry, run, NOW + DAY, RHYTHM) is None


def test_a_changed_finished_run_is_a_revision_above_its_run_span() -> None:
    """What the receiver makes of both is the newer document, whichever order they arrive in."""
    entry, old, new = TrackedRun("run_1", 0), run_of("completed"), run_of("completed", 2)
    sent(entry, decided(entry, old, NOW), NOW)
    change = decided(entry, new, NOW + HOUR)
    assert change.document == ObservedRun(new, NOW + HOUR, after_root=True)
    spans = [*encode(new, observed_at=NOW + HOUR, after_root=True), *encode(old)]
    assert decode(spans) == new
    sent(entry, change, NOW + HOUR)
    back = decided(entry, old, NOW + 2 * HOUR)
    assert back.revision > change.revision


def test_a_run_that_was_reopened_ends_a_second_time_above_everything_before() -> None:
    """After its run span was written, every further document is a revision, unfinished or not."""
    entry = TrackedRun("run_1", 0)
    ranks = []
    for hour, run in enumerate([run_of("running"), run_of("failed"), run_of("running", 1), run_of("completed", 2)]):
        item = decided(entry, run, NOW + hour * HOUR)
        sent(entry, item, NOW + hour * HOUR)
        ranks.append(item.revision)
    assert ranks == sorted(set(ranks))
    assert ranks[0] < ROOT_REVISION == ranks[1] < ranks[2]


@pytest.mark.parametrize("status", ["running", "completed"])
def test_what_may_have_arrived_is_sent_again_as_the_same_spans(status: str) -> None:
    """After a kill between sending and the answer, the same document gets the same revision, so the same span ids."""
    entry, run = TrackedRun("run_1", 0), run_of(status)
    first = decided(entry, run, NOW)
    sent(entry, first, NOW, acked=False)
    assert decided(entry, run, NOW + DAY) == first


def test_a_change_after_a_run_span_that_may_have_arrived_is_no_second_run_span() -> None:
    """Two run spans with one id would let the receiver choose between two documents."""
    entry, run = TrackedRun("run_1", 0), run_of("completed")
    sent(entry, decided(entry, run, NOW), NOW, acked=False)
    assert decided(entry, run_of("completed", 7), NOW + 1).revision == ROOT_REVISION + NOW + 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-DAY, DAY)), min_size=1, max_size=12))
def test_revisions_only_rise_whatever_the_clock_does(history: list[tuple[int, int]]) -> None:
    """What was seen later always ranks higher, also when the clock was set back between."""
    documents = [run_of("running"), run_of("running", 1), run_of("completed"), run_of("failed", 3)]
    entry, spans, last = TrackedRun("run_1", 0), [], None
    for choice, shift in history:
        run = documents[choice]
        item = plan_send(entry, run, NOW + shift, RHYTHM)
        if item is None:
            assert last == run
            continue
        assert not entry.sent or item.revision > entry.revision
        sent(entry, item, NOW + shift)
        last = run
        after_root = item.revision > ROOT_REVISION
        spans += encode(run, observed_at=item.revision % ROOT_REVISION, after_root=after_root)
    assert decode(spans) == last


def test_an_unchanged_running_run_is_told_of_again_at_the_heartbeat() -> None:
    """Not before; a suspended one, which waits for days, ever more seldom; never when heartbeats are off."""
    entry, run = TrackedRun("run_1", 0, changed_at=NOW), run_of("running")
    sent(entry, decided(entry, run, NOW), NOW)
    assert plan_send(entry, run, NOW + 4 * MINUTE, RHYTHM) is None
    again = decided(entry, run, NOW + 5 * MINUTE)
    assert again.revision == NOW + 5 * MINUTE
    assert plan_send(entry, run, NOW + DAY, RefreshPolicy(heartbeat=0)) is None
    waits = run_of("suspended")
    sent(entry, decided(entry, waits, NOW), NOW + 2 * DAY)
    assert plan_send(entry, waits, NOW + 2 * DAY + HOUR, RHYTHM) is None
    assert plan_send(entry, waits, NOW + 3 * DAY, RHYTHM) is not None


def test_a_run_is_looked_at_less_often_the_longer_nothing_changed() -> None:
    """Within bounds: at the poll's pace at first; a running one at every heartbeat; a finished one never."""
    entry, run = TrackedRun("run_1", 0, changed_at=NOW), run_of("suspended")
    pauses = [
        (refresh_at(entry, run, NOW + age, RHYTHM) or 0) - NOW - age for age in (0, MINUTE, 10 * MINUTE, HOUR, DAY)
    ]
    assert pauses == [15 * SECOND, 15 * SECOND, MINUTE, 6 * MINUTE, 10 * MINUTE]
    assert refresh_at(entry, run_of("running"), NOW + DAY, RHYTHM) == NOW + DAY + 5 * MINUTE
    assert refresh_at(entry, run_of("failed"), NOW, RHYTHM) is None


def test_what_fails_is_tried_again_after_growing_pauses() -> None:
    """Up to ten minutes, however often it failed."""
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
    """The shortest that surely reaches the edge, though the two clocks differ by minutes."""
    assert since_parameter(NOW - back, NOW) == expected


def test_runs_that_retention_deletes_before_their_turn_are_counted() -> None:
    """The oldest are fetched first, and what is deleted by then takes no time."""
    retention = 30 * DAY
    hour_old = [(NOW - HOUR, 10_000)]
    assert at_risk_of_retention(hour_old, per_second=15, retention=retention, now=NOW) == 0
    edge = [(NOW - retention + 100 * SECOND, 2000), (NOW - retention + DAY, 2000)]
    assert at_risk_of_retention(edge, per_second=15, retention=retention, now=NOW) == 500
    assert at_risk_of_retention(edge, per_second=0.001, retention=retention, now=NOW) == 4000 - 86
    assert at_risk_of_retention([(NOW - 2 * retention, 7)], per_second=15, retention=retention, now=NOW) == 7
    assert at_risk_of_retention([], per_second=15, retention=retention, now=NOW) == 0


# Walks.


def page(*times: int, cursor: str | None) -> RunListPage:
    return RunListPage(tuple(RunListItem(f"run_{time}", time, b"") for time in times), cursor)


def test_a_walk_ends_at_a_page_below_the_edge_or_at_the_end() -> None:
    """One run below the edge between others above it ends nothing: the order of a moment is the platform's own."""
    sweep = ListScan(ListFilter(), edge=50, full=False, began=1000)
    assert not sweep.take(page(100, 49, 60, cursor="a"))
    assert sweep.top == 100
    assert not sweep.take(page(cursor="b"))
    assert sweep.take(page(49, 48, cursor="c"))
    assert ListScan(ListFilter(), edge=0, full=True, began=1000).take(page(100, cursor=None))


def test_a_walk_does_not_go_in_circles() -> None:
    """A page that leads back is an error, and does not move the walk."""
    sweep = ListScan(ListFilter(), edge=0, full=True, began=1000)
    sweep.take(page(100, cursor="a"))
    sweep.take(page(90, cursor="b"))
    for back in ("b", "a"):
        with pytest.raises(ValueError, match="second time"):
            sweep.take(page(100, cursor=back))
    assert sweep.cursor == "b"


def test_a_run_from_the_future_hides_nothing() -> None:
    """The newest that is known never is after the moment at which the walk began."""
    sweep = ListScan(ListFilter(), edge=0, full=True, began=1000)
    sweep.take(page(10**18, 90, cursor=None))
    assert sweep.top == 1000
    empty = ListScan(ListFilter(), edge=0, full=True, began=1000)
    assert empty.take(page(cursor=None))
    assert empty.top == 1000
