"""A Tempo and a Jaeger that are frozen, and restarted, while runs are exported to them and read from them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from runspan import RunspanError, connect
from runspan.contracts import TraceReader
from support.cli import generated, process, write_ndjson
from support.faults import FaultLine, rounds
from support.servers import finding, jaeger, tempo
from support.servers.process import Program, answers

pytestmark = pytest.mark.timeout(600)

SEED = 20261130
RUNS = 40
"""In each round."""


@dataclass
class Backend:
    """A server of a test's own."""

    url: str
    """Of the backend, for readers."""
    otlp: str
    program: Program
    command: list[str]
    directory: Path
    is_ready: Callable[[], bool]

    def freeze(self, seconds: float) -> None:
        """Stop its process for a while."""
        self.program.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.program.send_signal(signal.SIGCONT)

    def restart(self, seconds: float) -> None:
        """End it as its operator does, and start it again after a while, with its data."""
        self.program.stop()
        time.sleep(seconds)
        self.program = Program(self.command, self.directory)
        self.program.wait_until(self.is_ready)


@contextmanager
def backend(kind: str, directory: Path) -> Iterator[Backend]:
    """A Tempo or a Jaeger on disk. The test is skipped without their programs."""
    place = finding.require(kind, tempo.IMAGE if kind == "tempo" else jaeger.IMAGE)
    if place.program is None:
        pytest.skip("only a program of this machine can be frozen")
    if kind == "tempo":
        server: tempo.Tempo | jaeger.Jaeger = tempo.start_tempo(place, directory)
        command = [place.program, f"-config.file={directory / 'tempo.json'}"]
        ready = f"{server.url}/ready"
    else:
        server = jaeger.start_jaeger(place, directory, jaeger.BADGER)
        command = [place.program, "--config", str(directory / "jaeger.json")]
        ready = f"{server.url}/api/services"
    assert server.program is not None
    found = Backend(f"{kind}+{server.url}", server.otlp, server.program, command, directory, lambda: answers(ready))
    try:
        yield found
    finally:
        found.program.kill()


@dataclass
class Reading:
    """A thread that reads confirmed runs all the time: each is as it was sent, or refused with a reason."""

    reader: TraceReader
    line: FaultLine
    confirmed: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            random = Random(SEED)
            while not stop.wait(0.01):
                if self.confirmed:
                    self.read(random.choice(list(self.confirmed)))

        with ThreadPoolExecutor(1) as thread:
            ended = thread.submit(work)
            try:
                yield
            finally:
                stop.set()
            ended.result(60)

    def read(self, run_id: str) -> bool:
        """Read a run. Return False if it was refused, and count it if it was wrong."""
        try:
            text = self.reader.document(run_id, "").text
        except RunspanError as error:
            self.line.refused += 1
            if type(error) is RunspanError or not str(error):
                self.problems.append(f"{run_id}: {error!r}")
            return False
        if text != self.confirmed[run_id]:
            self.line.wrong += 1
            self.problems.append(f"{run_id}: {text[:200]!r}")
        return True


@pytest.mark.parametrize("times", rounds(2, 15))
@pytest.mark.parametrize("kind", ["tempo", "jaeger"])
def test_frozen(fault: FaultLine, tmp_path: Path, kind: str, times: int) -> None:
    """Exports wait for a backend that hangs, and readers refuse in time."""
    _disturb(fault, tmp_path, kind, times, Backend.freeze)


@pytest.mark.parametrize("times", rounds(1, 10))
def test_restarted(fault: FaultLine, tmp_path: Path, times: int) -> None:
    """Exports wait for a Jaeger that is restarted, which keeps what it has confirmed on disk."""
    _disturb(fault, tmp_path, "jaeger", times, Backend.restart)


def _disturb(fault: FaultLine, folder: Path, kind: str, times: int, disturb: Callable[[Backend, float], None]) -> None:
    random = Random(SEED)
    (folder / "server").mkdir()
    with backend(kind, folder / "server") as server:
        reader = connect(server.url, env={"RUNSPAN_BACKEND_TIMEOUT": "2"})
        reading = Reading(reader, fault)
        with reading.running(), ThreadPoolExecutor(1) as thread:
            for turn in range(times):
                texts = generated(RUNS, seed=SEED + turn)
                file = write_ndjson(folder / f"runs{turn}.ndjson", texts)
                args = ("export", file, "--endpoint", server.otlp, "--batch-spans", 64, "--retry-max-time", "60s")
                exported = thread.submit(process, *args, env={"OTEL_EXPORTER_OTLP_TIMEOUT": "2"})
                time.sleep(random.uniform(0.3, 1.5))
                disturb(server, random.uniform(0.2, 3.0))
                ended = time.monotonic()
                exported.result(120)
                reading.confirmed.update(texts)
                fault.acknowledged += len(texts)
                _until_read(reading, next(iter(texts)))
                fault.recovery = max(fault.recovery, time.monotonic() - ended)
                fault.rounds += 1
        fault.lost += sum(not reading.read(run_id) for run_id in list(reading.confirmed))
        assert reading.problems == []
        reader.close()


def _until_read(reading: Reading, run_id: str) -> None:
    """Wait until a run of the last export can be read."""
    deadline = time.monotonic() + 60
    while not reading.read(run_id):
        assert time.monotonic() < deadline, "the backend does not answer"
        time.sleep(0.05)
