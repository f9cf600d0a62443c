"""Jaeger for tests: all in one process, traces in memory, in Badger or in OpenSearch, and how to start it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from support.servers.finding import Place, container_engine
from support.servers.process import START_SECONDS, Failed, Program, free_ports

IMAGE: Final = "jaegertracing/jaeger:2.20.0@sha256:46a886260e04002d8f45e213fc39063fa11a50446048fdaa64786fc0840cb9f8"
MEMORY: Final = "memory"
BADGER: Final = "badger"
OPENSEARCH: Final = "opensearch"
MAX_TRACES: Final = 100_000


@dataclass
class Jaeger:
    """A Jaeger that answers. url: its query API. otlp: where it takes OTLP/HTTP. how: where it comes from."""

    url: str
    otlp: str
    how: str
    program: Program | None = None
    container: Any = None

    def stop(self) -> None:
        """Ends the server when a test started it."""
        if self.program is not None:
            self.program.stop()
        if self.container is not None:
            self.container.remove(force=True)


def config(
    storage: str,
    directory: str,
    host: str,
    ports: list[int],
    max_traces: int = MAX_TRACES,
    ui: str = "",
    opensearch: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a complete configuration. There is no batch processor, so that what was accepted can be read at once.

    ui: the folder of Jaeger's pages, if it has to serve other ones than its own. opensearch: settings of that storage.
    """
    query, query_grpc, otlp, health = ports
    stores: dict[str, dict[str, Any]] = {
        MEMORY: {"max_traces": max_traces},
        BADGER: {
            "ephemeral": False,
            "directories": {"keys": f"{directory}/keys", "values": f"{directory}/values"},
            "ttl": {"spans": "87600h"},
        },
        OPENSEARCH: {"bulk_processing": {"flush_interval": "20ms"}, **(opensearch or {})},
    }
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"logs": {"level": "warn"}, "metrics": {"level": "none"}, "traces": {"level": "none"}},
        },
        "extensions": {
            "healthcheckv2": {"use_v2": True, "http": {"endpoint": f"{host}:{health}"}},
            "jaeger_storage": {"backends": {"store": {storage: stores[storage]}}},
            "jaeger_query": {
                "enable_tracing": False,
                "storage": {"traces": "store"},
                "http": {"endpoint": f"{host}:{query}", "keep_alives_enabled": True},
                "grpc": {"endpoint": f"{host}:{query_grpc}"},
                **({"ui": {"assets_path": ui}} if ui else {}),
            },
        },
        "receivers": {
            "otlp": {"protocols": {"http": {"endpoint": f"{host}:{otlp}", "max_request_body_size": 64 << 20}}}
        },
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "store"}},
    }


def start_jaeger(
    place: Place,
    directory: Path,
    storage: str = MEMORY,
    *,
    max_traces: int = MAX_TRACES,
    ui: str = "",
    opensearch: Mapping[str, Any] | None = None,
) -> Jaeger:
    """Start a Jaeger in a directory. A server that the environment names has the storage that it has.

    ui: the folder of pages that a program serves. opensearch: settings of that storage.
    """
    if place.urls is not None:
        return Jaeger(*place.urls, place.how)
    file = directory / "jaeger.json"
    if place.program is not None:
        ports = free_ports(4)
        file.write_text(
            json.dumps(config(storage, str(directory), "127.0.0.1", ports, max_traces, ui, opensearch))
        )  # JSON is YAML
        program = Program([place.program, "--config", str(file)], directory)
        program.wait_until(lambda: is_ready(f"http://127.0.0.1:{ports[3]}"))
        return Jaeger(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[2]}", place.how, program)
    if storage == OPENSEARCH:  # which is reached over loopback, as by a program
        ports = free_ports(4)
        settings = config(storage, "/tmp", "127.0.0.1", ports, opensearch=opensearch)
    else:
        ports = []
        settings = config(storage, "/tmp", "0.0.0.0", [16686, 16685, 4318, 13133], max_traces)
    file.write_text(json.dumps(settings))
    file.chmod(0o644)
    return _container(place, file, ports)


def is_ready(health: str) -> bool:
    """Whether the health check says that every component works."""
    try:
        return bool(httpx.get(f"{health}/status", timeout=2, trust_env=False).json()["status"] == "StatusOK")
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def _container(place: Place, file: Path, host_ports: list[int]) -> Jaeger:
    """Start a container. host_ports: those of its configuration, if it uses the network of this machine."""
    engine, _ = container_engine()
    ports = ("16686/tcp", "4318/tcp", "13133/tcp")
    container = engine.containers.run(
        place.image,
        ["--config", "/etc/runspan/jaeger.json"],
        volumes={str(file): {"bind": "/etc/runspan/jaeger.json", "mode": "ro"}},
        **({"network_mode": "host"} if host_ports else {"ports": dict.fromkeys(ports, ("127.0.0.1", None))}),
        detach=True,
    )
    try:
        container.reload()
        published = (
            [host_ports[index] for index in (0, 2, 3)]
            if host_ports
            else [container.ports[port][0]["HostPort"] for port in ports]
        )
        url, otlp, health = [f"http://127.0.0.1:{port}" for port in published]
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(health):
            if time.monotonic() > deadline:
                raise Failed(container.logs(tail=20).decode(errors="replace"))
            time.sleep(0.2)
    except BaseException:
        container.remove(force=True)
        raise
    return Jaeger(url, otlp, place.how, container=container)
