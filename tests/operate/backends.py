"""The three backends behind the Collector, as they are shipped, each behind a gate that a test shuts and opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from operate.gate import Gate
from runspan import connect
from runspan.backends.runspan_api import RunspanApiReader
from runspan.errors import RunspanError
from support.cli import server
from support.servers import jaeger as jaegers
from support.servers import tempo as tempos
from support.servers.finding import USED, Place, find
from support.servers.process import Program, answers, free_ports
from support.servers.programs import ROOT

IMAGES = {"tempo": tempos.IMAGE, "jaeger": jaegers.IMAGE}


@dataclass(frozen=True)
class Backend:
    """gate: where the Collector sends. reader: the URL at which its runs are read."""

    name: str
    gate: Gate
    reader: str

    def lacks(self, texts: dict[str, bytes]) -> list[str]:
        """The runs that it does not give back byte for byte."""
        with closing(RunspanApiReader(self.reader) if "+" not in self.reader else connect(self.reader)) as reader:
            return [run_id for run_id, text in texts.items() if not _same(reader, run_id, text)]


def _same(reader: Any, run_id: str, text: bytes) -> bool:
    try:
        return bool(reader.document(run_id).text == text)
    except RunspanError:
        return False


@contextmanager
def runspan_backend(directory: Path) -> Iterator[Backend]:
    """``runspan serve`` on a store of its own."""
    with server(directory) as (url, _), Gate(httpx.URL(url).port or 0) as gate:
        yield Backend("runspan", gate, url)


@contextmanager
def shipped(name: str, directory: Path) -> Iterator[Backend | None]:
    """Tempo or Jaeger with the file in ``deploy``; None where the program is not on PATH."""
    place = find(name, IMAGES[name])
    if not isinstance(place, Place) or place.program is None:
        yield None
        return
    USED.add(place.how)
    query, otlp, *others = free_ports(6)
    settings = {"tempo": tempo_settings, "jaeger": jaeger_settings}[name](directory, query, otlp, others)
    file = directory / f"{name}.json"
    file.write_text(json.dumps(settings))  # JSON is YAML
    flag = {"tempo": f"-config.file={file}", "jaeger": f"--config={file}"}[name]
    program = Program([place.program, flag], directory)
    try:
        ready = f"http://127.0.0.1:{query}/ready" if name == "tempo" else f"http://127.0.0.1:{others[0]}/status"
        program.wait_until(lambda: answers(ready))
        with Gate(otlp) as gate:
            yield Backend(name, gate, f"{name}+http://127.0.0.1:{query}")
    finally:
        program.stop()


def tempo_settings(directory: Path, query: int, otlp: int, others: list[int]) -> dict[str, Any]:
    """``deploy/tempo.yaml`` below this directory and on these ports of loopback."""
    settings = _read("tempo", directory)
    settings["server"] |= {
        "http_listen_address": "127.0.0.1",
        "http_listen_port": query,
        "grpc_listen_address": "127.0.0.1",
        "grpc_listen_port": others[0],
    }
    protocols = settings["distributor"]["receivers"]["otlp"]["protocols"]
    protocols["grpc"]["endpoint"] = f"127.0.0.1:{otlp}"
    protocols["http"]["endpoint"] = f"127.0.0.1:{others[1]}"
    return settings


def jaeger_settings(directory: Path, query: int, otlp: int, others: list[int]) -> dict[str, Any]:
    """``deploy/jaeger.yaml`` below this directory and on these ports of loopback."""
    settings = _read("jaeger", directory)
    extensions, protocols = settings["extensions"], settings["receivers"]["otlp"]["protocols"]
    extensions["healthcheckv2"]["http"]["endpoint"] = f"127.0.0.1:{others[0]}"
    extensions["jaeger_query"]["http"]["endpoint"] = f"127.0.0.1:{query}"
    extensions["jaeger_query"]["grpc"]["endpoint"] = f"127.0.0.1:{others[1]}"
    protocols["grpc"]["endpoint"] = f"127.0.0.1:{otlp}"
    protocols["http"]["endpoint"] = f"127.0.0.1:{others[2]}"
    settings["service"]["telemetry"]["metrics"] = {"level": "none"}
    return settings


def _read(name: str, directory: Path) -> dict[str, Any]:
    text = (ROOT / "deploy" / f"{name}.yaml").read_text().replace(f"/var/{name}", f"{directory}/{name}")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings
