"""The fetch queue: which run is next."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from runspan.delivery import DeadLetters
from runspan.sync.checkpoint import Checkpoint, Due, TrackedRun, TrackState, sync_binding
from runspan.sync.context import HOUR, SyncConfig, SyncContext
from runspan.sync.queues import FetchQueue
from support.sync import NOW


def test_the_backlog_and_tracked_runs_take_turns(tmp_path: Path) -> None:
    """Each lane gets half of the requests while both have runs. While the backlog is closed, the other gets all."""
    with (
        closing(Checkpoint(tmp_path / "state", sync_binding("a", "b"))) as checkpoint,
        DeadLetters(str(tmp_path / "dead-letters")) as dead_letters,
    ):
        for number in range(3):
            checkpoint.save(TrackedRun(f"new_{number}", number))
            checkpoint.save(TrackedRun(f"open_{number}", number, TrackState.OPEN))
        checkpoint.commit()
        context = SyncContext(SyncConfig(), checkpoint, lambda: NOW, dead_letters, lambda message: None)
        queue = FetchQueue(context, lambda planned: None, is_contested=bool)
        first = queue.next_run(NOW, backlog=False)
        following = [queue.next_run(NOW, backlog=True) for _ in range(6)]
        found = [run.run_id if run else "" for run in (first, *following)]
    assert found == ["open_0", "new_0", "open_1", "new_1", "open_2", "new_2", ""]
    assert queue.in_flight == 6


def test_requests_are_left_to_a_worker_that_has_older_runs(tmp_path: Path) -> None:
    """While they do not suffice for both. Otherwise none waits, and runs that start soon after the oldest never do."""
    with ExitStack() as stack:
        letters = stack.enter_context(DeadLetters(str(tmp_path / "dead-letters")))
        contested = [False]

        def worker() -> tuple[Checkpoint, FetchQueue]:
            checkpoint = stack.enter_context(closing(Checkpoint(tmp_path / "state", sync_binding("a", "b"))))
            context = SyncContext(SyncConfig(), checkpoint, lambda: NOW, letters, lambda message: None)
            return checkpoint, FetchQueue(context, lambda planned: None, is_contested=lambda: contested[0])

        def next_of(checkpoint: Checkpoint, queue: FetchQueue) -> str:
            queue.wake()
            run = queue.next_run(NOW, backlog=True)
            checkpoint.commit()
            return run.run_id if run else ""

        first, second = worker(), worker()
        old = [TrackedRun(f"old_{number}", 1 + number, workflow="old") for number in range(3)]
        soon = TrackedRun("soon", HOUR // 2, workflow="soon")
        new = [TrackedRun(f"new_{number}", 2 * HOUR + number, workflow="new") for number in range(2)]
        for run in (*old, soon, *new):
            first[0].save(run)
        first[0].commit()
        assert next_of(*first) == "old_0"
        first[0].release({"old"})
        first[0].commit()
        contested[0] = True
        assert next_of(*second) == "soon"
        assert next_of(*second) == ""
        assert next_of(*first) == "old_1"
        for run in (*old, soon):
            run.state, run.due = TrackState.ENDED, None
            first[0].save(run)
        first[0].commit()
        assert next_of(*second) == "new_0"


def test_requests_that_suffice_are_used(tmp_path: Path) -> None:
    """However old the runs of the other worker are."""
    with ExitStack() as stack:
        letters = stack.enter_context(DeadLetters(str(tmp_path / "dead-letters")))
        first, second = (
            stack.enter_context(closing(Checkpoint(tmp_path / "state", sync_binding("a", "b")))) for _ in range(2)
        )
        first.save(TrackedRun("old", 1, workflow="old"))
        first.save(TrackedRun("new", 2 * HOUR, workflow="new"))
        first.commit()
        due = Due(backlog=True, until=0, retry_until=0, max_failures=3)
        assert [run.run_id for run in first.due_runs(due, 1)] == ["old"]
        first.commit()
        context = SyncContext(SyncConfig(), second, lambda: NOW, letters, lambda message: None)
        found = FetchQueue(context, lambda planned: None, is_contested=bool).next_run(NOW, backlog=True)
        assert found is not None
        assert found.run_id == "new"
