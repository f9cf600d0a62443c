"""Programs that take OTLP, started with the settings of ``deploy/`` on free ports of loopback and data in a folder."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.plan import Plan
from bench.processes import environment
from support.servers.process import Program, answers, free_ports

_DEPLOY: Final = Path(__file__).parent.parent / "deploy"
_START_SECONDS: Final = 300
_STOP_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Started:
    """A program that answers."""

    url: str
    """Of its query API."""
    otlp: str
    """The endpoint of OTLP/HTTP, without ``/v1/traces``."""
    pid: int


@contextmanager
def tempo(folder: Path, *, dedicated_columns: bool = True) -> Iterator[Started]:
    """Run Tempo with ``deploy/tempo.yaml``, which has the dedicated columns, or without them."""
    text, ports = _settings("tempo.yaml", "/var/tempo", folder, (3200, 9095, 4317, 4318))
    text = text.replace("server:\n", "server:\n  http_listen_address: 127.0.0.1\n  grpc_listen_address: 127.0.0.1\n", 1)
    if not dedicated_columns:
        text = re.sub(r"\n    block:\n(?:      .*\n)+", "\n", text)
    file = folder / "tempo.yaml"
    file.write_text(text)
    with _process(["tempo", f"-config.file={file}"], folder, f"http://127.0.0.1:{ports[0]}/ready") as pid:
        yield Started(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}", pid)


@contextmanager
def jaeger(folder: Path) -> Iterator[Started]:
    """Run Jaeger with ``deploy/jaeger.yaml``: Badger on disk."""
    text, ports = _settings("jaeger.yaml", "/var/jaeger", folder, (16686, 16685, 4317, 4318, 13133, 8888))
    file = folder / "jaeger.yaml"
    file.write_text(text.replace("host: 0.0.0.0", "host: 127.0.0.1"))
    with _process(["jaeger", "--config", str(file)], folder, f"http://127.0.0.1:{ports[4]}/status") as pid:
        yield Started(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}", pid)


def named_servers(*kinds: str) -> list[tuple[str, str]]:
    """Return the backend and the OTLP endpoint of the running servers of these kinds, tempo or jaeger.

    ``RUNSPAN_BENCH_BACKENDS`` names them as ``BACKEND=OTLP`` joined by spaces, for example
    ``jaeger+http://127.0.0.1:16686=http://127.0.0.1:4318``.
    """
    pairs = [pair.partition("=") for pair in os.environ.get("RUNSPAN_BENCH_BACKENDS", "").split()]
    return [(url, otlp) for url, _, otlp in pairs if url.partition("+")[0] in kinds]


@contextmanager
def read_by_runspan(plan: Plan, *kinds: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the ``named_servers``; without one, those programs of these kinds that are on the search path, started."""
    found = named_servers(*kinds)
    with ExitStack() as stack:
        for kind in () if found else kinds:
            if shutil.which(kind) is None:
                plan.say(f"{kind}: skipped, RUNSPAN_BENCH_BACKENDS names none and none is on the search path")
                continue
            folder = plan.folder / kind
            folder.mkdir()
            started = stack.enter_context({"tempo": tempo, "jaeger": jaeger}[kind](folder))
            found.append((f"{kind}+{started.url}", started.otlp))
        yield found


@contextmanager
def phoenix(folder: Path) -> Iterator[Started]:
    """Run Phoenix with its own settings: SQLite in a folder."""
    port, grpc, metrics = free_ports(3)
    own = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PROMETHEUS_PORT": str(metrics),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    url = f"http://127.0.0.1:{port}"
    with _process(["phoenix", "serve"], folder, f"{url}/healthz", own) as pid:
        yield Started(url, url, pid)


@contextmanager
def runspan(folder: Path, *, search: bool = False) -> Iterator[Started]:
    """Run ``runspan serve`` with the embedded store.

    search: with the index, whose cost is a figure of section store.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "runspan", "serve", "--data", str(folder / "data"), "--port", str(port)]
    if not search:
        command.append("--no-search")
    with _process(command, folder, f"{url}/readyz") as pid:
        yield Started(url, url, pid)


def _settings(name: str, data: str, folder: Path, used: Sequence[int]) -> tuple[str, list[int]]:
    """Return a file of ``deploy/`` with data in the folder, on loopback and other ports; and these, in order."""
    ports = free_ports(len(used))
    text = (_DEPLOY / name).read_text().replace(data, str(folder)).replace("0.0.0.0:", "127.0.0.1:")
    for port, free in zip(used, ports, strict=True):
        text = re.sub(rf"(:\s?){port}\b", rf"\g<1>{free}", text)
    return text, ports


@contextmanager
def _process(command: list[str], folder: Path, ready: str, own: Mapping[str, str] | None = None) -> Iterator[int]:
    program = Program(command, folder, {**environment(), **(own or {})})
    program.wait_until(lambda: answers(ready), _START_SECONDS)
    try:
        yield program.pid
    finally:
        program.stop(_STOP_SECONDS)
