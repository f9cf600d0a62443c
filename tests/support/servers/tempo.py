"""Tempo for tests: the settings that keep runs whole and make them searchable soon, and how to start it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from support.servers.finding import Place, container_engine
from support.servers.process import START_SECONDS, Failed, Program, answers, free_ports

IMAGE: Final = "grafana/tempo:3.0.3@sha256:0296560ac66f8a3600d7fb3014a52c189d4d9c3549ad6ff441bf2409855d68d5"
_ALWAYS: Final = "438000h"
"""Fifty years. The server counts back from now in unsigned seconds, so it must not reach past 1970."""
_MESSAGE_BYTES: Final = 128 << 20
_INTERNAL: Final = {"max_send_msg_size": _MESSAGE_BYTES, "max_recv_msg_size": _MESSAGE_BYTES}


@dataclass
class Tempo:
    """A Tempo that answers. url: its query API. otlp: where it takes OTLP/HTTP. how: where it comes from."""

    url: str
    otlp: str
    how: str
    program: Program | None = None
    container: Any = None

    @property
    def version(self) -> str:
        """What the server says of itself."""
        return str(httpx.get(f"{self.url}/api/status/buildinfo", trust_env=False).json().get("version", ""))

    def stop(self) -> None:
        """Ends the server when a test started it; at once, since it takes seconds to write down what nobody reads."""
        if self.program is not None:
            self.program.kill()
        if self.container is not None:
            self.container.remove(force=True)


def config(directory: str, host: str, ports: list[int], *, from_blocks: bool = False) -> dict[str, Any]:
    """A whole configuration.

    Searches look at the live store alone, where a run can be found within a second whatever its age; from_blocks: at
    the blocks on disk for all that is older than a minute, as in production, where that takes several seconds.
    """
    http, grpc, otlp_grpc, otlp_http = ports
    return {
        "server": {
            "http_listen_address": host,
            "http_listen_port": http,
            "grpc_listen_address": "127.0.0.1",
            "grpc_listen_port": grpc,
            "grpc_server_max_recv_msg_size": _MESSAGE_BYTES,
            "grpc_server_max_send_msg_size": _MESSAGE_BYTES,
            "log_level": "warn",
        },
        "distributor": {
            "max_attribute_bytes": 0,
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"{host}:{otlp_grpc}", "max_recv_msg_size_mib": 64},
                        "http": {"endpoint": f"{host}:{otlp_http}", "max_request_body_size": 64 << 20},
                    }
                }
            },
        },
        "live_store": {
            "max_trace_idle": "200ms",
            "max_trace_live": "1s",
            "flush_check_period": "100ms",
            "max_block_duration": "2s" if from_blocks else "10s",
            "complete_block_timeout": "20m" if from_blocks else _ALWAYS,
            "shutdown_marker_dir": f"{directory}/marker",
            "wal": {"path": f"{directory}/live", "ingestion_time_range_slack": _ALWAYS},
        },
        "query_frontend": {
            "query_end_cutoff": "0s",
            "search": {"max_duration": "0s", "query_backend_after": "1m" if from_blocks else _ALWAYS},
        },
        "querier": {"frontend_worker": {"grpc_client_config": _INTERNAL}},
        "live_store_client": {"grpc_client_config": _INTERNAL},
        "backend_scheduler": {"local_work_path": f"{directory}/scheduler"},
        "backend_worker": {"finish_on_shutdown_timeout": "1s", "compaction": {"block_retention": _ALWAYS}},
        "storage": {
            "trace": {
                "backend": "local",
                "blocklist_poll": "1s" if from_blocks else "5s",
                "wal": {"path": f"{directory}/wal"},
                "local": {"path": f"{directory}/blocks"},
            }
        },
        "overrides": {
            "defaults": {
                "global": {"max_bytes_per_trace": 0},
                "ingestion": {
                    "rate_limit_bytes": 200_000_000,
                    "burst_size_bytes": 200_000_000,
                    "max_traces_per_user": 0,
                },
            }
        },
        "usage_report": {"reporting_enabled": False},
    }


def start_tempo(
    place: Place, directory: Path, changes: Mapping[str, Any] | None = None, *, from_blocks: bool = False
) -> Tempo:
    """A Tempo in a directory. changes: to the configuration, dotted names to values; impossible for a named server."""
    if place.urls is not None:
        return Tempo(*place.urls, place.how)
    if place.program is not None:
        ports = free_ports(4)
        settings = changed(config(str(directory), "127.0.0.1", ports, from_blocks=from_blocks), changes or {})
        file = directory / "tempo.json"
        file.write_text(json.dumps(settings))  # JSON is YAML
        url, otlp = f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[3]}"
        program = Program([place.program, f"-config.file={file}"], directory)
        program.wait_until(lambda: answers(f"{url}/ready"))
        return Tempo(url, otlp, place.how, program)
    return _container(place, directory, changed(config("/tmp", "0.0.0.0", [3200, 9095, 4317, 4318]), changes or {}))


def changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with each dotted name set to its value."""
    for name, value in changes.items():
        *path, last = name.split(".")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return settings


def _container(place: Place, directory: Path, settings: dict[str, Any]) -> Tempo:
    engine, _ = container_engine()
    file = directory / "tempo.json"
    file.write_text(json.dumps(settings))
    file.chmod(0o644)
    container = engine.containers.run(
        place.image,
        ["-config.file=/etc/runspan/tempo.json"],
        volumes={str(file): {"bind": "/etc/runspan/tempo.json", "mode": "ro"}},
        ports={"3200/tcp": ("127.0.0.1", None), "4318/tcp": ("127.0.0.1", None)},
        detach=True,
    )
    try:
        container.reload()
        urls = [f"http://127.0.0.1:{container.ports[port][0]['HostPort']}" for port in ("3200/tcp", "4318/tcp")]
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{urls[0]}/ready"):
            if time.monotonic() > deadline:
                raise Failed(container.logs(tail=20).decode(errors="replace"))
            time.sleep(0.2)
    except BaseException:
        container.remove(force=True)
        raise
    return Tempo(urls[0], urls[1], place.how, container=container)
