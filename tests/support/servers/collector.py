"""The Collector for tests: ``otel-collector.yaml`` as it stands, on free ports, told by environment variables alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from support.servers.process import Program, answers, free_ports
from support.servers.programs import ROOT, require_program

CONFIG: Final = ROOT / "otel-collector.yaml"
ALL: Final = ("otlp_grpc/tempo", "otlp_grpc/jaeger", "otlp_http/runspan")
PORTS: Final = ("GRPC", "HTTP", "SPANS", "HEALTH", "OWN", "CHECK")


@dataclass
class Collector:
    """A Collector that was started in a directory, where its queue stays when it is killed."""

    directory: Path
    env: dict[str, str]
    ports: dict[str, int]
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Starts it, or starts it again, on the same ports and the same queue; returns when it is ready."""
        self.program = Program(
            [require_program("otelcol"), "--config", str(CONFIG)], self.directory, {**os.environ, **self.env}
        )
        self.program.wait_until(lambda: answers(self.url("CHECK")))

    def url(self, port: str) -> str:
        """The address of one of its ports: GRPC, HTTP, SPANS, HEALTH, OWN or CHECK."""
        return f"http://127.0.0.1:{self.ports[port]}"

    @property
    def otlp(self) -> str:
        """Where it takes OTLP/HTTP."""
        return self.url("HTTP")

    def own(self, name: str, **labels: str) -> float:
        """The sum of one of its own metrics over all series with these labels; 0 when there is none."""
        return total(self.url("OWN"), name, labels)

    def counted(self, name: str, **labels: str) -> float:
        """The same of the metrics of runs and steps."""
        return total(self.url("SPANS"), name, labels)

    def all_counted(self, names: Iterable[str], **labels: str) -> list[float]:
        """The same of several of them, which are asked for and parsed once."""
        samples = told(self.url("SPANS"))
        return [sum_of(samples, name, labels) for name in names]

    def log(self) -> str:
        """What it has logged since its last start."""
        return self.program.log.read_text(errors="replace")

    def stop(self) -> None:
        """Ends it. Calling it twice is allowed."""
        self.program.stop()


def start_collector(
    directory: Path,
    *,
    tempo: str = "",
    jaeger: str = "",
    runspan: str = "",
    env: Mapping[str, str] | None = None,
) -> Collector:
    """A Collector with the backends that are given, and no others. env: more variables, without their common prefix."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    backends = {"TEMPO": tempo, "JAEGER": jaeger, "RUNSPAN": runspan}
    exporters = [exporter for exporter, address in zip(ALL, backends.values(), strict=True) if address]
    settings = {
        "QUEUE": str(directory / "queue"),
        "EXPORTERS": f"[{', '.join(exporters)}]",
        **{name: address for name, address in backends.items() if address},
        **{f"{name}_PORT": str(port) for name, port in ports.items()},
        **(env or {}),
    }
    named = {f"RUNSPAN_COLLECTOR_{name}": value for name, value in settings.items()}
    return Collector(directory, named, ports)


def total(url: str, name: str, labels: Mapping[str, str]) -> float:
    """The sum over the samples of this name and these labels in what an address tells Prometheus."""
    return sum_of(told(url), name, labels)


def told(url: str) -> list[Sample]:
    """All samples of what an address tells Prometheus."""
    return [sample for family in text_string_to_metric_families(scraped(url)) for sample in family.samples]


def sum_of(samples: Iterable[Sample], name: str, labels: Mapping[str, str]) -> float:
    """The sum over the samples of this name and these labels."""
    names = {name, f"{name}_total"}  # the parser adds the ending to counters that have none
    return sum(sample.value for sample in samples if sample.name in names and labels.items() <= sample.labels.items())


def scraped(url: str) -> str:
    """What an address tells Prometheus, in the older text format."""
    return httpx.get(f"{url}/metrics", timeout=10, trust_env=False).raise_for_status().text
