"""The embedded store: a disk that is full, because of the store or of others."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from conformance.harness import SECOND, T0, make_run
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import RunQuery
from runspan.errors import NotFound, StoreFull
from support.faults import fill

DAY = 86_400 * SECOND
OLD, NEW = T0, T0 + 20 * DAY
"""Two times of which the first is past retention when the second is not."""


def noisy(run_id: str, started: int, size: int = 50_000) -> Run:
    """A run that does not compress to less than half of its size, which is in bytes."""
    return make_run(run_id, started, input={"noise": os.urandom(size // 2).hex()})


def put_until_full(
    store: SqliteStore, started: int, size: int = 50_000, *, others: Path | None = None
) -> dict[str, Run]:
    """Store runs until one is refused; return the others. others: a file that takes all other space after each."""
    stored: dict[str, Run] = {}
    while True:
        run = noisy(f"{started}-{len(stored)}", started, size)
        try:
            store.put(run, observed_at=T0)
        except StoreFull:
            return stored
        stored[run.id] = run
        if others is not None:
            fill(others.with_name(f"{others.name}-{len(stored)}"))


def assert_stored(store: SqliteStore, runs: dict[str, Run]) -> None:
    for run in runs.values():
        assert store.document(run.id).text == run.text
    listed: set[bytes] = set()
    query = RunQuery(limit=200)
    while True:
        page = store.search(query)
        listed.update(page.items)
        if page.cursor is None:
            break
        query = RunQuery(limit=200, cursor=page.cursor)
    assert listed == {run.summary() for run in runs.values()}


def opened(disk: Path) -> SqliteStore:
    return SqliteStore(disk / "data", retention_days=7, clock=lambda: OLD)


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_retention_makes_room(small_disk: Path, size: int) -> None:
    """However large the runs are, those past retention are deleted, the others stay, and writes succeed again."""
    with opened(small_disk) as store:
        young = {run.id: run for run in (noisy(f"young-{number}", NEW) for number in range(20))}
        for run in young.values():
            store.put(run, observed_at=T0)
        old = put_until_full(store, OLD, size)
        assert_stored(store, young | old)
        with pytest.raises(StoreFull):
            store.check()
        assert store.expire(NEW) == len(old)
        assert_stored(store, young)
        store.check()
        more = put_until_full(store, NEW, size)
        assert len(more) >= len(old) * 0.8
        assert_stored(store, young | more)


def test_a_purge_makes_room(small_disk: Path) -> None:
    """Runs in an archive are deleted by another connection while the server has the store open."""
    with opened(small_disk) as server, opened(small_disk) as archive:
        runs = put_until_full(server, OLD)
        items = [(sha256(run.text).digest(), run.id) for run in runs.values()]
        report = archive.purge(items[10:])
        archive.vacuum()
        assert (report.deleted, report.changed) == (len(runs) - 10, 0)
        kept = dict(list(runs.items())[:10])
        assert_stored(server, kept)
        assert len(put_until_full(server, NEW)) > len(runs) // 2


def test_others_fill_the_disk(small_disk: Path) -> None:
    """When other programs have taken all that is left, runs past retention are still deleted, and give the space back.

    The write-ahead log is then longer than what is free, and the database must grow to take it.
    """
    with opened(small_disk) as store:
        old = {run.id: run for run in (noisy(f"old-{number}", OLD) for number in range(150))}
        for run in old.values():
            store.put(run, observed_at=T0)
        fill(small_disk / "others")
        young = put_until_full(store, NEW, others=small_disk / "more")
        assert_stored(store, old | young)
        assert store.expire(NEW) == len(old)
        assert_stored(store, young)
        store.put(noisy("fits", NEW), observed_at=T0)


def test_writes_leave_the_reserve_alone(small_disk: Path) -> None:
    """Only deletions use the reserved space, and once it is gone writes fail until there is room for it."""
    spare = small_disk / "spare"
    spare.write_bytes(bytes(2 << 20))
    with opened(small_disk) as store:
        put_until_full(store, OLD)
        reserve = next((small_disk / "data").glob("*-reserve"))
        assert reserve.stat().st_blocks * 512 >= 4 << 20
        os.truncate(reserve, 0)
        fill(small_disk / "others")
        with pytest.raises(StoreFull):
            store.put(make_run("refused"), observed_at=T0)
        (small_disk / "others").unlink()
        spare.unlink()
        store.put(make_run("fits", NEW), observed_at=T0)
        assert reserve.stat().st_blocks * 512 >= 4 << 20


@pytest.mark.parametrize("closed", [False, True])
def test_opening_on_a_full_disk(small_disk: Path, closed: bool) -> None:
    """After a crash or a stop of a server on a full disk, the next start opens the store, and retention goes on."""
    data = small_disk / "data"
    with opened(small_disk) as store:
        runs = put_until_full(store, OLD)
        if not closed:
            killed = small_disk.parent / "killed"
            killed.mkdir()
            for file in data.iterdir():
                (killed / file.name).write_bytes(file.read_bytes())
    if not closed:
        for file in data.iterdir():
            file.unlink()
        for file in killed.iterdir():
            if not file.name.endswith("-shm"):
                (data / file.name).write_bytes(file.read_bytes())
        fill(small_disk / "others")
    with opened(small_disk) as store:
        assert_stored(store, runs)
        assert store.expire(NEW) == len(runs)
        store.put(make_run("fits", NEW), observed_at=T0)
        with pytest.raises(NotFound):
            store.document(next(iter(runs)))
