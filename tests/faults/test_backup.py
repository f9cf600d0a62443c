"""Backups, restores and checks while a server is under load, while processes are killed, and of damaged files."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.backends.sqlite.backup import restore_backup, write_backup
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.errors import StoreError
from runspan.testing import generate
from support.cli import command, environment, running
from support.faults import FaultLine, MixedLoad
from support.servers.process import free_ports

pytestmark = pytest.mark.timeout(900)

SEED = 20261128


def rounds(few: int, many: int) -> list[object]:
    """Return the numbers of rounds: a few in every test run, many in the campaign."""
    return [few, pytest.param(many, marks=pytest.mark.campaign)]


def silent(*_: object) -> None:
    """Show no progress."""


@contextmanager
def killed_after(seconds: float, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is killed after a while, unless it has ended."""
    with subprocess.Popen(
        command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
    ) as child:
        yield child
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()


def seconds_of(*args: object) -> float:
    """Return how long a command takes."""
    began = time.monotonic()
    subprocess.run(command(*args), check=True, capture_output=True, env=environment())
    return time.monotonic() - began


@pytest.mark.parametrize("times", rounds(2, 20))
def test_backup_under_load(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """What was confirmed before a backup began is in it, and all of it is sound, though the server is killed too."""
    random = Random(SEED)
    (port,) = free_ports(1)
    data, target = tmp_path / "data", tmp_path / "backup"
    load = MixedLoad(f"http://127.0.0.1:{port}", SEED, fault)
    with load.running():
        for number in range(times):
            with running("serve", "--data", data, "--port", port) as child:
                child.wait_for("is serving")
                fault.recovery = max(fault.recovery, load.wait_for_write(time.monotonic()))
                before = dict(load.confirmed)
                backup = subprocess.Popen(
                    command("backup", "--data", data, "--to", target, "--overwrite"),
                    stderr=subprocess.PIPE,
                    env=environment(),
                )
                if number % 2:
                    time.sleep(random.uniform(0, 1.0))
                    child.end(signal.SIGKILL)
                _, shown = backup.communicate(timeout=120)
                assert backup.returncode == 0, shown.decode()
            restored = tmp_path / f"restored-{number}"
            restore_backup(target, restored, overwrite=False, on_progress=silent)
            _verify(restored, before, load, fault)
            shutil.rmtree(restored)
            fault.rounds += 1
    with running("serve", "--data", data, "--port", port) as child:
        child.wait_for("is serving")
        load.verify()


def _verify(data: Path, confirmed: dict[str, bytes], load: MixedLoad, fault: FaultLine) -> None:
    """Count what a restored store lacks of the runs that were confirmed, and what nobody sent."""
    with SqliteStore(data) as store, closing(sqlite3.connect(store.path)) as connection:
        stored = {row[0].decode() for row in connection.execute("SELECT run_id FROM runs")}
        fault.lost += len(confirmed.keys() - stored)
        for run_id in stored:
            text = store.document(run_id).text
            sent = load.sent[run_id]
            oldest = sent.index(confirmed[run_id]) if run_id in confirmed else 0
            fault.wrong += text not in sent[oldest:]


def filled(data: Path, count: int, seed: int) -> dict[str, bytes]:
    """Write runs to a store; return their texts."""
    runs = [Run.from_json(text) for text in generate(count, seed=seed)]
    with SqliteStore(data) as store:
        for run in runs:
            store.put(run, observed_at=1)
    return {run.id: run.text for run in runs}


def contents(data: Path) -> dict[str, bytes]:
    with SqliteStore(data) as store, closing(sqlite3.connect(store.path)) as connection:
        assert list(store.find_damage()) == []
        ids = [row[0].decode() for row in connection.execute("SELECT run_id FROM runs")]
        return {run_id: store.document(run_id).text for run_id in ids}


@pytest.mark.parametrize("times", rounds(3, 50))
def test_backup_killed(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """The backup of before stays, or the new one is complete; the next backup succeeds."""
    random = Random(SEED)
    data, target = tmp_path / "data", tmp_path / "backup"
    texts = filled(data, 300, 1)
    fault.acknowledged = len(texts)
    target.write_bytes(b"of before")
    longest = seconds_of("backup", "--data", data, "--to", tmp_path / "first")
    for _ in range(times):
        with killed_after(random.uniform(0.3, 1.05) * longest, "backup", "--data", data, "--to", target, "--overwrite"):
            pass
        if target.read_bytes()[:9] != b"of before":
            restore_backup(target, tmp_path / "restored", overwrite=True, on_progress=silent)
            fault.wrong += contents(tmp_path / "restored") != texts
            shutil.rmtree(tmp_path / "restored")
            target.write_bytes(b"of before")
        fault.rounds += 1
    write_backup(data, [], target, overwrite=True, on_progress=silent)
    restore_backup(target, tmp_path / "restored", overwrite=False, on_progress=silent)
    fault.wrong += contents(tmp_path / "restored") != texts
    assert contents(data) == texts


@pytest.mark.parametrize("times", rounds(4, 50))
def test_restore_killed(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """The directory has the old runs or the new ones, never a mixture, and the next command finishes the rest."""
    random = Random(SEED)
    data, source, target = tmp_path / "data", tmp_path / "source", tmp_path / "backup"
    new, old = filled(source, 200, 2), filled(data, 300, 3)
    fault.acknowledged = len(old) + len(new)
    write_backup(source, [], target, overwrite=False, on_progress=silent)
    shutil.copytree(data, tmp_path / "pristine")
    args = ("restore", "--from", target, "--data", data, "--overwrite")
    longest = seconds_of(*args)
    outcomes = {"old": 0, "new": 0}
    for _ in range(times):
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "pristine", data)
        log = data / f"{FILE_NAME}-wal"
        log.write_bytes(random.randbytes(100))  # no log of the new file
        with killed_after(random.uniform(0.5, 1.02) * longest, *args):
            pass
        if log.exists():
            log.unlink()
        found = contents(data)
        outcomes["old" if found == old else "new"] += 1
        fault.wrong += found not in (old, new)
        if found == old:
            restore_backup(target, data, overwrite=True, on_progress=silent)
            fault.wrong += contents(data) != new
        fault.lost += len(list(data.glob("replaced-*"))) != 1
        fault.rounds += 1
    assert sum(outcomes.values()) == times


@pytest.mark.parametrize("times", rounds(10, 600))
def test_stale_log(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """A log over a file that it does not belong to is refused, and one that it does belong to is applied."""
    random = Random(SEED)
    states = _states(tmp_path, random)
    fault.acknowledged = sum(len(runs) for _, _, runs in states)
    data = tmp_path / "data"
    for _ in range(times):
        (database, own_log, _), (_, log, runs) = random.choice(states), random.choice(states)
        data.mkdir()
        shutil.copy(database, data / FILE_NAME)
        expected = runs if log.stat().st_size else set(contents(data))
        shutil.copy(log, data / f"{FILE_NAME}-wal")
        try:
            found = set(contents(data))
        except StoreError as error:
            if "not of this database" not in str(error):
                raise
            fault.refused += 1
            fault.lost += log == own_log
        else:
            fault.wrong += found != expected
        shutil.rmtree(data)
        fault.rounds += 1
    assert 0 < fault.refused < times


def _states(folder: Path, random: Random) -> list[tuple[Path, Path, set[str]]]:
    """Return copies of the files of two stores over time, of one killed and continued twice, and the runs of each."""
    states: list[tuple[Path, Path, set[str]]] = []
    runs = iter([Run.from_json(text) for text in generate(2000, seed=4)])

    def grow(data: Path, steps: int) -> None:
        with SqliteStore(data) as store:
            with closing(sqlite3.connect(store.path)) as connection:
                known = {row[0].decode() for row in connection.execute("SELECT run_id FROM runs")}
            for _ in range(steps):
                for _ in range(random.randint(1, 15)):
                    run = next(runs)
                    store.put(run, observed_at=1)
                    known.add(run.id)
                if random.random() < 0.5:
                    store.vacuum()
                elif random.random() < 0.3:
                    with closing(sqlite3.connect(store.path)) as connection:
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                copies = folder / f"state-{len(states)}", folder / f"log-{len(states)}"
                shutil.copy(store.path, copies[0])
                shutil.copy(f"{store.path}-wal", copies[1])
                states.append((*copies, set(known)))

    grow(folder / "one", 12)
    shutil.copytree(folder / "one", folder / "fork")
    grow(folder / "one", 8)
    grow(folder / "fork", 8)
    grow(folder / "other", 12)
    return states
