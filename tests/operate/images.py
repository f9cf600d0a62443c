"""What ``compose.yaml`` starts, what ``deploy/Dockerfile`` makes it from, and what those images hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from operate.boards import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@dataclass(frozen=True)
class Image:
    """An image by its own Dockerfile, which ``source`` names.

    user: the numeric user and group that it runs as. owned: the folders that belong to that user.
    programs: some that it has, which a health check may run.
    """

    user: str
    source: str
    owned: frozenset[str] = frozenset()
    programs: frozenset[str] = frozenset()


_BUSYBOX = frozenset({"sh", "wget", "/bin/busybox"})

IMAGES = {
    # Distroless: no shell. /var/tempo is copied with --chown=10001:10001 --chmod=0700.
    "grafana/tempo:3.0.3": Image(
        "10001:10001",
        "grafana/tempo v3.0.3, cmd/tempo/Dockerfile and cmd/tempo/main.go",
        frozenset({"/var/tempo"}),
        frozenset({"/tempo"}),
    ),
    # Alpine, whose busybox has wget. No folder of its own.
    "jaegertracing/jaeger:2.20.0": Image(
        "10001:0",
        "jaegertracing/jaeger v2.20.0, cmd/jaeger/Dockerfile and scripts/build/docker/base/Dockerfile",
        programs=frozenset({"sh", "wget"}),
    ),
    # From scratch: nothing but the program, its certificates and its configuration.
    "otel/opentelemetry-collector-contrib:0.159.0": Image(
        "10001:10001",
        "open-telemetry/opentelemetry-collector-releases v0.159.0, distributions/otelcol-contrib/Dockerfile",
    ),
    # prometheus/busybox:latest is busybox:uclibc, which docker-library/busybox links statically; nobody is 65534.
    "prom/prometheus:v3.13.1": Image(
        "65534:65534", "prometheus/prometheus v3.13.1, Dockerfile", frozenset({"/prometheus"}), _BUSYBOX
    ),
    "prom/alertmanager:v0.28.1": Image(
        "65534:65534", "prometheus/alertmanager v0.28.1, Dockerfile", frozenset({"/alertmanager"}), _BUSYBOX
    ),
    # Alpine with bash and curl. The data folder belongs to 472:0, with mode 0777.
    "grafana/grafana:13.1.3": Image(
        "472:0", "grafana/grafana 13, Dockerfile", frozenset({"/var/lib/grafana"}), frozenset({"sh", "wget", "curl"})
    ),
}


@dataclass
class Stage:
    """A stage of a Dockerfile. lines: its instructions but FROM, each on one line."""

    image: str
    lines: list[str] = field(default_factory=list)

    @property
    def tag(self) -> str:
        return self.image.partition("@")[0]


def stages() -> dict[str, Stage]:
    """The stages of ``deploy/Dockerfile`` by name."""
    found: dict[str, Stage] = {}
    text = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Dockerfile").read_text())
    for line in text.splitlines():
        if begins := re.fullmatch(r"FROM (\S+) AS (\w+)", line):
            last = found[begins[2]] = Stage(begins[1])
        elif line and not line.startswith("#"):
            last.lines.append(line)
    return found


STAGES = stages()
