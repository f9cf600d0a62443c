"""The state file of a sync: what it contains after a kill, what it belongs to, and which files are refused."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from runspan.errors import ConfigError, StoreError
from runspan.sync.checkpoint import Checkpoint, Due, ListPosition, TrackedRun, TrackState, sync_binding
from support.sync import Place

RUN_ID = "run_ü/\0/\\0/\\\\/😀"
BINDING = sync_binding("http://a", "http://b/v1/traces")


@contextmanager
def opened(place: Place, binding: dict[str, str] = BINDING) -> Iterator[Checkpoint]:
    with closing(Checkpoint(place, binding)) as checkpoint:
        yield checkpoint


def save(checkpoint: Checkpoint, *runs: TrackedRun) -> None:
    for run in runs:
        checkpoint.save(run)
    checkpoint.commit()


def tracked_run() -> TrackedRun:
    return TrackedRun(
        RUN_ID, 5, TrackState.OPEN, 7, 2, b"l", b"o", b"s", 1 << 62, b"a", True, 11, 13, "why\\", "wf_ü\0"
    )


def test_everything_comes_back(place: Place) -> None:
    """Each field of a run with any text, and how far the list was read."""
    position = ListPosition(1, 2, 3, 4, 5, "cursor", 6)
    with opened(place) as checkpoint:
        save(checkpoint, tracked_run())
        checkpoint.save_list_position("/", ListPosition(7))
        checkpoint.save_list_position("/", position)
        checkpoint.commit()
    with opened(place) as checkpoint:
        again = checkpoint.get([RUN_ID, "unknown"])
        expected = tracked_run()
        expected.stored_state = TrackState.OPEN
        assert again == {RUN_ID: expected}
        assert type(again[RUN_ID].run_span_sent) is bool
        assert checkpoint.list_position("/") == position
        assert checkpoint.list_position("other") == ListPosition()
        assert checkpoint.counts == {TrackState.OPEN: 1}


def test_the_backlog_comes_oldest_first_and_other_runs_by_their_due_time(place: Place) -> None:
    """Runs that are not due are in neither; a failed run is due by itself until it has failed too often."""
    with opened(place) as checkpoint:
        save(
            checkpoint,
            *(TrackedRun(f"new_{time}", time) for time in (30, 10, 20)),
            TrackedRun("new_failed", 5, due=90, failures=1),
            TrackedRun("new_failing", 4, due=90, failures=4),
            TrackedRun("open_late", 1, TrackState.OPEN, due=80),
            TrackedRun("open_now", 2, TrackState.OPEN, due=0),
            TrackedRun("changed", 3, TrackState.ENDED, due=-1),
            TrackedRun("ended", 3, TrackState.ENDED, due=None),
        )

        def ids(until: int, retry_until: int) -> tuple[list[str], list[str]]:
            new, known = (
                checkpoint.due_runs(Due(backlog, until, retry_until, max_failures=4), 9) for backlog in (True, False)
            )
            return [run.run_id for run in new], [run.run_id for run in known]

        assert ids(0, 50) == (["new_10", "new_20", "new_30"], ["changed", "open_now"])
        assert ids(0, 90) == (["new_failed", "new_10", "new_20", "new_30"], ["changed", "open_now"])
        assert ids(90, 90)[0][0] == "new_failing"
        assert ids(80, 80)[1][-1] == "open_late"
        assert checkpoint.next_retry(4) == 90
        assert checkpoint.oldest(TrackState.NEW) == 4
        assert checkpoint.backlog_by_time(10) == [(0, 2), (10, 1), (20, 1), (30, 1)]
        assert checkpoint.failing_count() == 2
        checkpoint.forget_failures()
        checkpoint.reschedule(TrackState.ENDED, since=4)
        checkpoint.commit()
        assert ids(0, 0)[0][:2] == ["new_failing", "new_failed"]
        assert "ended" not in ids(0, 0)[1]


def test_committed_changes_survive_a_kill_and_others_leave_no_trace(tmp_path: Path) -> None:
    """SIGKILL in the middle of a transaction; the lock goes with the process."""
    path = tmp_path / "cp"
    code = """
import os, signal, sys
from pathlib import Path
from runspan.sync.checkpoint import Checkpoint, TrackedRun, sync_binding
checkpoint = Checkpoint(Path(sys.argv[1]), sync_binding("http://a", "http://b/v1/traces"))
for number in range(20):
    checkpoint.save(TrackedRun(f"run_{number}", number))
    checkpoint.commit()
checkpoint.save(TrackedRun("run_lost", 1))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == -signal.SIGKILL
    with opened(path) as checkpoint:
        assert checkpoint.counts == {TrackState.NEW: 20}


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (sync_binding("http://x", BINDING["target"]), "source"),
        (sync_binding(BINDING["source"], "http://x"), "target"),
        (sync_binding(BINDING["source"], BINDING["target"], "acme"), "tenant"),
        (sync_binding(BINDING["source"], BINDING["target"], "", ("wf_1",)), "workflow"),
        (sync_binding(BINDING["source"], BINDING["target"], "", (), ("failed",)), "status"),
    ],
)
def test_a_checkpoint_belongs_to_one_source_target_tenant_and_filter(
    tmp_path: Path, place: Place, other: dict[str, str], name: str
) -> None:
    """The order of filters does not matter."""
    with opened(place):
        pass
    with pytest.raises(ConfigError, match=f"another {name}") as caught, opened(place, other):
        pass
    assert "with --state" in str(caught.value)
    with opened(tmp_path / "two", sync_binding("a", "b", "", ("x", "y"))):
        pass
    with opened(tmp_path / "two", sync_binding("a", "b", "", ("y", "x"))):
        pass


def test_another_format_is_refused(tmp_path: Path) -> None:
    """The file is not changed."""
    path = tmp_path / "cp"
    with opened(path) as checkpoint:
        save(checkpoint, tracked_run())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="another version"), opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """Another application's database, a file that is none, and a missing directory."""
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE something (x)")
    with pytest.raises(StoreError, match="another application"), opened(tmp_path / "db"):
        pass
    (tmp_path / "text").write_bytes(b"no database at all, but long enough to look at" * 100)
    with pytest.raises(StoreError, match="no SQLite database"), opened(tmp_path / "text"):
        pass
    with pytest.raises(StoreError), opened(tmp_path / "missing" / "cp"):
        pass


def test_only_the_user_may_read_the_file(tmp_path: Path) -> None:
    """It contains error messages of the platform."""
    with opened(tmp_path / "cp"):
        assert (tmp_path / "cp").stat().st_mode & 0o777 == 0o600
