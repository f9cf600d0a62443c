"""Recorders in processes that fork at any moment, are killed, and continue their runs from checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import pytest

from runspan import Run
from runspan.platform_api.client import run_path
from support.cli import WAIT, environment, server
from support.faults import FaultLine, rounds
from support.web import listed

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

SEED = 20261128
_ANSWER = b'{"success":true,"data":'

COMMON = """
    import json, os, sys, time, threading, signal, multiprocessing
    from random import Random
    from runspan import Recorder
    from runspan.recorder import ExportConfig
    url, seed, log = sys.argv[1], int(sys.argv[2]), os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    random = Random(seed)

    def note(kind, run):
        # What was confirmed is on record before anything else happens.
        line = json.dumps({"kind": kind, "id": run.id, "text": run.document().text.decode()})
        os.write(log, f"\\n{line}\\n".encode())

    def record(recorder, name, steps=3):
        with recorder.run("wf", run_id=name) as run:
            for number in range(steps):
                with run.step(f"s{number}") as step:
                    step.set_output(number)
        return run
"""


@dataclass
class Log:
    """What the processes noted: by run, every document that they knew to be delivered."""

    path: Path
    delivered: dict[str, list[bytes]] = field(default_factory=dict)

    def read(self) -> None:
        for line in filter(None, self.path.read_bytes().splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the kernel stops a killed process also between two pages of a write: nothing was noted
            self.delivered.setdefault(entry["id"], []).append(entry["text"].encode())

    def verify(self, fault: FaultLine, url: str, *, final: bool) -> None:
        """Count what is lost, wrong and there twice.

        final: whether each run has to be as it was noted last; else it may have gone on.
        """
        with httpx.Client(base_url=url, trust_env=False, timeout=WAIT) as client:
            ids = listed(client)
            for run_id, texts in self.delivered.items():
                if run_id not in ids:
                    fault.lost += 1
                    continue
                found = client.get(run_path(run_id)).content.removeprefix(_ANSWER)[:-1]
                bad = found != texts[-1] if final else not _goes_on(found, texts[-1])
                fault.wrong += bad
        fault.twice += len(ids) - len(set(ids))
        fault.acknowledged += sum(map(len, self.delivered.values()))


def _goes_on(found: bytes, noted: bytes) -> bool:
    """Return whether a document has at least the ended steps of an earlier version of it, unchanged."""
    later, earlier = Run.from_json(found), Run.from_json(noted)
    ended = [step for step in earlier.steps if step.status == "completed"]
    return later.id == earlier.id and all(step in later.steps for step in ended)


def script(body: str, url: str, seed: int, log: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMON) + textwrap.dedent(body), url, str(seed), str(log), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


FORKS = {
    "fork": """
    recorder = Recorder(endpoint=url, export=ExportConfig(snapshot_delay=0.005))
    stop = threading.Event()

    def engine(number):
        count = 0
        while not stop.is_set():
            run = record(recorder, f"{seed}_thread_{number}_{count}")
            if count % 5 == 0 and run.flush(30):
                note("delivered", run)
            count += 1

    threads = [threading.Thread(target=engine, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for number in range(15):
        time.sleep(random.uniform(0, 0.02))
        with recorder.run("wf", run_id=f"{seed}_parent_{number}") as around, around.step("before"):
            child = os.fork()
            if not child:
                for index in range(3):
                    run = record(recorder, f"{seed}_child_{number}_{index}")
                    assert run.flush(30), run.flush(0)
                    note("delivered", run)
                with around.step("in the child"):
                    pass
                assert not around.flush(0)
                assert recorder.shutdown(30).complete
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        assert around.flush(30), around.flush(0)
        note("delivered", around)
    stop.set()
    for thread in threads:
        thread.join()
    flushed = recorder.flush(60)
    assert flushed, flushed
    """,
    "multiprocessing": """
    recorder = Recorder(endpoint=url, export=ExportConfig(snapshot_delay=0.005))

    def work(number):
        run = record(recorder, f"{seed}_pool_{number}")
        assert run.flush(30), run.flush(0)
        note("delivered", run)
        return number

    with recorder.run("wf", run_id=f"{seed}_around") as around, around.step("pool"):
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert sorted(pool.imap_unordered(work, range(40))) == list(range(40))
        processes = [multiprocessing.get_context("fork").Process(target=work, args=(100 + n,)) for n in range(5)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
    assert around.flush(30)
    note("delivered", around)
    """,
    "prefork": """
    recorder = Recorder(endpoint=url, export=ExportConfig(snapshot_delay=0.005), exit_timeout=30)
    record(recorder, f"{seed}_master")
    workers = []
    for number in range(4):
        worker = os.fork()
        if not worker:
            def end(*_):
                raise SystemExit(0)
            signal.signal(signal.SIGTERM, end)
            count = 0
            while True:
                run = record(recorder, f"{seed}_worker_{number}_{count}")
                if count % 3 == 0 and run.flush(30):
                    note("delivered", run)
                count += 1
                time.sleep(0.005)
        workers.append(worker)
    for worker in workers:
        time.sleep(random.uniform(0.2, 0.5))
        os.kill(worker, signal.SIGTERM)
        assert os.waitpid(worker, 0)[1] == 0
    assert recorder.flush(30)
    """,
}


@pytest.mark.parametrize("kind", FORKS)
@pytest.mark.parametrize("times", rounds(1, 20))
def test_forks_of_a_recorder(fault: FaultLine, tmp_path: Path, times: int, kind: str) -> None:
    """While threads of the parent record and send: no deadlock, and every run of each process is there once, as that
    process has recorded it."""
    log = Log(tmp_path / "log")
    with server(tmp_path / "data") as (url, _):
        for number in range(times):
            child = script(FORKS[kind], url, number, log.path)
            out, err = child.communicate(timeout=240)
            assert (child.returncode, out) == (0, ""), err
            assert "Traceback" not in err
            fault.rounds += 1
        log.read()
        log.verify(fault, url, final=True)
    assert len(log.delivered) >= 10 * times


KILLED = """
    checkpoints = sys.argv[4]
    recorder = Recorder(endpoint=url, export=ExportConfig(snapshot_delay=0.005))
    print("recording", flush=True)

    def save(run):
        path = os.path.join(checkpoints, run.id)
        with open(path + ".part", "wb") as file:
            file.write(run.checkpoint())
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".part", path)

    def finish(run, first):
        for number in range(first, 6):
            with run.step(f"s{number}") as step:
                step.set_output("x" * random.randrange(2000))
            save(run)
            if run.flush(30):
                note("delivered", run)
        run.end()
        if run.flush(30):
            note("delivered", run)
            os.unlink(os.path.join(checkpoints, run.id))

    for name in sorted(os.listdir(checkpoints)):
        if not name.endswith(".part"):
            run = recorder.resume(open(os.path.join(checkpoints, name), "rb").read())
            note("resumed", run)
            finish(run, len(run.document().steps))
    print("resumed", flush=True)
    count = 0
    while len(sys.argv) < 6:
        run = recorder.run("wf", run_id=f"{seed}_{count}").start()
        save(run)
        finish(run, 0)
        count += 1
    assert recorder.flush(30)
"""


@pytest.mark.parametrize("times", rounds(3, 100))
def test_kill_of_a_recorder(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """SIGKILL at random moments: what ``flush`` has confirmed is there, and the next process goes on from the
    checkpoints; in the end every run that began has ended, once, with every step that was confirmed, unchanged."""
    random = Random(SEED)
    log = Log(tmp_path / "log")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with server(tmp_path / "data") as (url, _):
        for number in range(times):
            with script(KILLED, url, number, log.path, str(checkpoints)) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == "recording\n"
                began = time.monotonic()
                if random.random() < 0.8:
                    assert child.stdout.readline() == "resumed\n"
                    fault.recovery = max(fault.recovery, time.monotonic() - began)
                time.sleep(random.uniform(0, 0.7))
                child.kill()
                assert child.wait(WAIT) == -signal.SIGKILL
            fault.rounds += 1
        child = script(KILLED, url, times, log.path, str(checkpoints), "last")
        _, err = child.communicate(timeout=240)
        assert child.returncode == 0, err
        assert list(checkpoints.glob("*_*[0-9]")) == []
        log.read()
        log.verify(fault, url, final=False)
        with httpx.Client(base_url=url, trust_env=False, timeout=WAIT) as client:
            for run_id in log.delivered:
                run = Run.from_json(client.get(run_path(run_id)).content.removeprefix(_ANSWER)[:-1])
                fault.wrong += run.status != "completed" or [step.id for step in run.steps] != [
                    f"s{n}" for n in range(6)
                ]
