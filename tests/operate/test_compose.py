"""``compose.yaml`` and the configurations beside it: pinned, closed to other machines, and accepted by the servers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from operate.boards import ROOT
from operate.images import SERVICES, STAGES
from support.cli import runspan
from support.servers import Program, require
from support.servers import jaeger as jaegers
from support.servers import tempo as tempos
from support.servers.finding import container_engine
from support.servers.jaeger import is_ready
from support.servers.process import START_SECONDS, answers, free_ports

IMAGES = {"tempo": tempos.IMAGE, "jaeger": jaegers.IMAGE}


def setting(name: str, path: str) -> Any:
    """A value of a configuration, by its dotted name."""
    found = yaml.safe_load((ROOT / "deploy" / f"{name}.yaml").read_text())
    for part in path.split("."):
        found = found[part]
    return found


def test_profiles_start_one_backend_or_both() -> None:
    """Nothing starts without a profile, and ``stack`` starts everything."""
    profiles: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service["profiles"]:
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "tempo": {"tempo"},
        "jaeger": {"jaeger"},
        "all": {"tempo", "jaeger"},
        "stack": set(SERVICES),
    }


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_those_that_the_tests_use(name: str) -> None:
    assert STAGES[name].image == IMAGES[name]


@pytest.mark.parametrize("name", IMAGES)
def test_ports_are_published_on_this_machine_only_and_are_those_that_are_listened_on(name: str) -> None:
    """Neither backend asks who is calling. No two services want the same port."""
    published = {}
    for port in SERVICES[name]["ports"]:
        address, outside, inside = port.split(":")
        assert address == "127.0.0.1"
        published[int(inside)] = int(outside)
    listened = {
        "tempo": {
            setting("tempo", "server.http_listen_port"),
            *ports_of(setting("tempo", "distributor.receivers.otlp.protocols")),
        },
        "jaeger": {
            *ports_of({"http": setting("jaeger", "extensions.jaeger_query.http")}),
            *ports_of(setting("jaeger", "receivers.otlp.protocols")),
        },
    }
    assert set(published) == listened[name]
    every = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(every) == len(set(every))


def ports_of(protocols: dict[str, Any]) -> set[int]:
    return {int(protocol["endpoint"].rpartition(":")[2]) for protocol in protocols.values()}


@pytest.mark.parametrize("name", IMAGES)
def test_health_is_asked_where_the_backend_answers(name: str) -> None:
    """The URL is the configured one."""
    (url,) = re.findall(r"http://\S+", " ".join(SERVICES[name]["healthcheck"]["test"]))
    port = {
        "tempo": lambda: setting("tempo", "server.http_listen_port"),
        "jaeger": lambda: setting("jaeger", "extensions.healthcheckv2.http.endpoint").rpartition(":")[2],
    }[name]()
    assert url == f"http://127.0.0.1:{port}{ {'tempo': '/ready', 'jaeger': '/status'}[name] }"


@pytest.mark.parametrize("name", IMAGES)
def test_every_directory_of_the_configuration_is_in_the_volume(name: str) -> None:
    """What is written elsewhere is lost with the container, or cannot be written."""
    ((_, data),) = [mount.split(":") for mount in SERVICES[name]["volumes"]]
    written = (ROOT / "deploy" / f"{name}.yaml").read_text()
    directories = re.findall(r": (/[a-z/-]+)", written)
    assert directories
    assert all(directory.startswith(f"{data}/") for directory in directories)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("distributor.max_attribute_bytes", 0),
        ("live_store.wal.ingestion_time_range_slack", "2400h"),
        ("query_frontend.query_end_cutoff", "-87600h"),
        ("query_frontend.search.max_duration", "0s"),
        ("overrides.defaults.global.max_bytes_per_trace", 0),
        ("overrides.defaults.ingestion.max_traces_per_user", 0),
        ("backend_worker.compaction.block_retention", "8760h"),
    ],
)
def test_tempo_keeps_runs_whole_and_says_why(path: str, value: object) -> None:
    """The settings without which runs are lost or hidden; each has its reason above it."""
    assert setting("tempo", path) == value
    lines = (ROOT / "deploy" / "tempo.yaml").read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{path.rpartition('.')[2]}:"))
    assert lines[at - 1].strip().startswith("#")


def moved(name: str, directory: Path, ports: dict[int, int]) -> Path:
    """The configuration as it stands, with its directories below this one and other ports of loopback."""
    text = (ROOT / "deploy" / f"{name}.yaml").read_text().replace(f"/var/{name}", f"{directory}/{name}")
    for port, free in ports.items():
        text = re.sub(rf"(?:0\.0\.0\.0:|(_port: |port: )){port}\b", lambda m: f"{m[1] or '127.0.0.1:'}{free}", text)  # noqa: B023  # used before the next turn
    text = text.replace("host: 0.0.0.0", "host: 127.0.0.1")
    settings = yaml.safe_load(text)
    if name == "tempo":
        settings["server"] |= {"http_listen_address": "127.0.0.1", "grpc_listen_address": "127.0.0.1"}
    file = directory / f"{name}.json"
    file.write_text(json.dumps(settings))
    assert "0.0.0.0" not in file.read_text()
    return file


@pytest.mark.parametrize("name", ["tempo", "jaeger"])
def test_the_server_takes_its_configuration_and_gives_a_run_back(tmp_path: Path, name: str) -> None:
    """The real program, or the real image, started with the file as it is; the canary comes back, an old one too."""
    place = require(name, IMAGES[name])
    if place.urls is not None:
        pytest.skip(f"the environment names a running {name}, which has a configuration of its own")
    inside = {"tempo": (3200, 4318, 3200, 9095, 4317), "jaeger": (16686, 4318, 13133, 16685, 4317, 8888)}[name]
    if place.program is None:
        in_a_container(name, inside)
        return
    ports = dict(zip(dict.fromkeys(inside), free_ports(len(inside)), strict=False))
    file = moved(name, tmp_path, ports)
    flag = {"tempo": f"-config.file={file}", "jaeger": f"--config={file}"}[name]
    program = Program([place.program, flag], tmp_path)
    try:
        program.wait_until(lambda: ready(name, ports[inside[2]]))
        comes_back(name, f"http://127.0.0.1:{ports[inside[0]]}", f"http://127.0.0.1:{ports[inside[1]]}")
    finally:
        program.stop()


def ready(name: str, port: int) -> bool:
    url = f"http://127.0.0.1:{port}"
    return answers(f"{url}/ready") if name == "tempo" else is_ready(url)


def comes_back(name: str, url: str, otlp: str) -> None:
    where = ("--backend", f"{name}+{url}", "--endpoint", otlp, "--wait", "90s")
    for age in ("0s", "60d"):
        assert "1 of 1 documents came back" in runspan("verify", "--canary", "--canary-age", age, *where).stderr


def in_a_container(name: str, inside: tuple[int, ...]) -> None:
    """As compose starts it, on free ports."""
    service, (engine, reason) = SERVICES[name], container_engine()
    if engine is None:
        pytest.skip(f"no container engine: {reason}")
    wanted = {f"{port}/tcp": ("127.0.0.1", None) for port in inside[:3]}
    image, _ = engine.images.build(path=str(ROOT), dockerfile="deploy/Dockerfile", target=name, rm=True)
    ((_, data),) = [mount.split(":") for mount in service["volumes"]]
    volume = engine.volumes.create()
    container = engine.containers.run(
        image.id,
        service["command"],
        cap_drop=service["cap_drop"],
        security_opt=service["security_opt"],
        volumes={volume.name: {"bind": data, "mode": "rw"}},
        ports=wanted,
        detach=True,
    )
    try:
        container.reload()
        ports = [int(container.ports[f"{port}/tcp"][0]["HostPort"]) for port in inside[:3]]
        deadline = time.monotonic() + START_SECONDS
        while not ready(name, ports[2]):
            assert time.monotonic() < deadline, container.logs(tail=20).decode(errors="replace")
            time.sleep(0.2)
        comes_back(name, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    finally:
        container.remove(force=True)
        volume.remove()
        engine.close()
