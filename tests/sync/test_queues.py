"""The fetch queue: which of two lanes the next run comes from."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from runspan.delivery import DeadLetters
from runspan.sync.checkpoint import Checkpoint, TrackedRun, TrackState, sync_binding
from runspan.sync.context import SyncConfig, SyncContext
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
        queue = FetchQueue(context, lambda planned: None)
        first = queue.next_run(NOW, backlog=False)
        following = [queue.next_run(NOW, backlog=True) for _ in range(6)]
        found = [run.run_id if run else "" for run in (first, *following)]
    assert found == ["open_0", "new_0", "open_1", "new_1", "open_2", "new_2", ""]
    assert queue.in_flight == 6
