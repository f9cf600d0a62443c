"""The whole stack of ``compose.yaml``: closed to other machines, every health check real, every file where it is read,
and its servers' start-up run for real, as processes on this machine."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from operate.boards import BOARDS, ROOT
from operate.images import SERVICES, STAGES
from operate.kit import wait_until
from runspan import Run, __version__
from runspan.web.config import WebConfig
from runspan.web.links import trace_links
from support.cli import SAMPLES, environment
from support.servers.collector import start_collector
from support.servers.finding import container_engine, missing
from support.servers.process import Program, answers, free_ports

PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
SOURCES = yaml.safe_load((PROVISIONING / "datasources" / "runspan.yaml").read_text())["datasources"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed_and_its_health_is_asked(name: str) -> None:
    """Published on loopback only, without capabilities; a page that says whether it is ready is asked on loopback."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service["ports"])
    assert "127.0.0.1" in service["healthcheck"]["test"][-1]


def test_images_are_those_that_the_facts_were_measured_with() -> None:
    """The versions of the documentation's figures, and runspan's own of this tree."""
    assert SERVICES["runspan"]["image"] == f"runspan:{__version__}"
    images = {name: STAGES[name].tag for name in SERVICES if name != "runspan"}
    assert images == {
        "tempo": "grafana/tempo:3.0.3",
        "jaeger": "jaegertracing/jaeger:2.20.0",
        "collector": "otel/opentelemetry-collector-contrib:0.159.0",
        "prometheus": "prom/prometheus:v3.13.1",
        "alertmanager": "prom/alertmanager:v0.28.1",
        "grafana": "grafana/grafana:13.1.3",
    }


def test_images_are_pinned_by_digest() -> None:
    """A tag can be moved to another image. Ours is built from one base, whose version stands beside its digest."""
    for name, stage in STAGES.items():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", stage.image), name
    for name, service in SERVICES.items():
        build = {"context": ".", "dockerfile": "deploy/Dockerfile", "target": name}
        assert service["build"] == ("." if name == "runspan" else build)
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", bases[0])


def locked() -> dict[str, list[Requirement]]:
    """The packages of the image by name: one version each, or one for each range of Python."""
    found: dict[str, list[Requirement]] = {}
    for block in (ROOT / "deploy" / "requirements.txt").read_text().split("\n"):
        if block and not block.startswith(("#", " ")):
            requirement = Requirement(block.removesuffix("\\"))
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_every_package_of_the_image_has_a_version_and_hashes() -> None:
    """And each is in the range that pyproject.toml demands; nothing that they need is missing."""
    lines = (ROOT / "deploy" / "requirements.txt").read_text()
    entries = re.split(r"\n(?=\S)", lines.partition("make lock\n")[2].strip())
    assert all(re.search(r"==\S+ .*\\\n +--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    packages, project = locked(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for requirement in map(Requirement, wanted):
        for package in packages[canonicalize_name(requirement.name)]:
            (version,) = (specifier.version for specifier in package.specifier)
            assert version in requirement.specifier, f"{package} is not {requirement}; run: make lock"
    for name in packages.keys() - {"setuptools"}:
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # of another platform or another version of Python
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in packages, f"{name} needs {requirement}; run: make lock"


def test_the_images_get_what_their_build_needs() -> None:
    """Everything that is copied is let through, and nothing of the tests or of somebody's data."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    files = [(ROOT / name).read_text() for name in ("Dockerfile", "deploy/Dockerfile")]
    copied = [line for text in files for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)]
    wanted = {name for line in copied for name in line.split()}
    assert ignored[0] == "*"
    let_through = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {name for name in wanted if not name.startswith("deploy/")} | {"deploy"} == let_through
    assert all(list(ROOT.glob(name)) for name in wanted)


def test_names_of_targets_are_services() -> None:
    """Prometheus, the Collector and Grafana look for the others under the names and ports that compose gives them."""
    listening = {"collector": {4317, 4318, 8888, 8889, 8890, 13133}}
    for name in SERVICES:
        ports = {int(port.rpartition(":")[2]) for port in SERVICES[name]["ports"]}
        listening[name] = listening.get(name, set()) | ports
    texts = [
        (ROOT / "deploy" / "prometheus.yaml").read_text(),
        (ROOT / "otel-collector.yaml").read_text(),
        (PROVISIONING / "datasources" / "runspan.yaml").read_text(),
    ]
    found = {
        (host, int(port))
        for text in texts
        for host, port in re.findall(r"\b([a-z]+):(\d{4,5})\b", re.sub(r"127\.0\.0\.1:\d+", "", text))
        if host in listening
    }
    assert {host for host, _ in found} == set(listening) - {"grafana"}
    assert all(port in listening[host] for host, port in found), found


def test_grafana_finds_the_dashboards() -> None:
    """Where its provisioning and its home page look for them; they cannot be changed in a browser."""
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "runspan.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"COPY dashboards/*.json /grafana{folder}/" in STAGES["files"].lines
    assert "COPY deploy/grafana/provisioning /grafana/etc/grafana/provisioning" in STAGES["files"].lines
    assert not provider["allowUiUpdates"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.removeprefix(f"{folder}/") in BOARDS


def test_data_sources_fit_the_dashboards_and_each_other() -> None:
    """There is one of every kind that dashboards ask; exemplars, spans and runspan's links name uids that exist."""
    uids = {source["uid"]: source for source in SOURCES}
    kinds = {
        variable["query"]
        for board in BOARDS.values()
        for variable in board["templating"]["list"]
        if variable["type"] == "datasource"
    }
    assert kinds <= {source["type"] for source in SOURCES}
    named = set(re.findall(r"datasourceUid: (\S+)", (PROVISIONING / "datasources" / "runspan.yaml").read_text()))
    assert named == {"tempo", "prometheus"}
    assert named <= set(uids)
    exemplars = uids["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {each["name"] for each in exemplars} == {"trace_id"}
    assert exemplars[0]["datasourceUid"] == "tempo"
    assert exemplars[1]["url"] == "/d/runspan-run?var-trace_id=$${__value.raw}"
    assert uids["tempo"]["jsonData"]["nodeGraph"]["enabled"]
    interval = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert uids["prometheus"]["jsonData"]["timeInterval"] == interval


def test_runspans_links_lead_into_the_stack() -> None:
    """The server's settings of the stack make links to the drill-down, to Jaeger and to Grafana Explore."""
    values = SERVICES["runspan"]["environment"]
    config = WebConfig(
        jaeger_url=values["RUNSPAN_JAEGER_URL"],
        grafana_url=values["RUNSPAN_GRAFANA_URL"],
        trace_url=values["RUNSPAN_TRACE_URL"],
    )
    found = trace_links(config, bytes(range(16)))
    assert found["trace"].endswith("/d/runspan-run?var-trace_id=000102030405060708090a0b0c0d0e0f")
    published = {port.split(":")[1] for name in ("grafana", "jaeger") for port in SERVICES[name]["ports"]}
    assert {re.search(r":(\d+)/", url)[1] for url in found.values()} <= published  # type: ignore[index]


def test_runspan_and_the_collector_start_as_compose_starts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of compose makes both keys once, the Collector takes its key from the file, a run arrives through it,
    the key for people reads it and writes nothing; a second start makes no further key."""
    (port,) = free_ports(1)
    data, keys = tmp_path / "data", tmp_path / "keys"
    keys.mkdir()
    service = SERVICES["runspan"]
    mounts = {"/var/lib/runspan-keys": str(keys), "/var/lib/runspan": str(data), "0.0.0.0": "127.0.0.1"}
    env = {name: replaced(value, mounts) for name, value in service["environment"].items()} | {
        "RUNSPAN_PORT": str(port)
    }
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = shutil.which("sh")
    assert shell is not None
    command = [shell, *service["entrypoint"][1:], *[text.replace("$$", "$") for text in service["command"]]]
    url = f"http://127.0.0.1:{port}"

    def start() -> Program:
        program = Program(command, tmp_path, {**os.environ, **env})
        program.wait_until(lambda: answers(f"{url}/readyz"))
        return program

    program = start()
    try:
        check = [word.replace("8321", str(port)) for word in service["healthcheck"]["test"][2:]]
        assert subprocess.run([sys.executable, *check], check=False).returncode == 0
        secret = replaced(SERVICES["collector"]["environment"]["RUNSPAN_API_KEY"], mounts).replace("$$", "$")
        assert secret == f"${{file:{keys}/collector}}"
        assert {file.name: file.stat().st_mode & 0o777 for file in keys.iterdir()} == {
            "collector": 0o640,
            "reader": 0o640,
        }
        monkeypatch.setenv("RUNSPAN_API_KEY", secret)
        collector = start_collector(directory(tmp_path, "collector"), runspan=url)
        try:
            file = SAMPLES / "overdue-invoices-completed.json"
            export(file, collector.otlp)
            run = Run.from_json(file.read_bytes())
            reader = {"x-api-key": (keys / "reader").read_text().strip()}
            address = f"{url}/api/v1/runs/{run.id}"

            def arrived() -> bool:
                return httpx.get(address, headers=reader, trust_env=False).status_code == 200

            wait_until(arrived, 30, "the run did not arrive through the Collector")
            assert (
                httpx.get(address, headers=reader, trust_env=False).content
                == b'{"success":true,"data":' + run.text + b"}"
            )
            assert httpx.get(address, trust_env=False).status_code == 401
            pushed = httpx.post(f"{url}/api/v1/runs", content=run.text, headers=reader, trust_env=False)
            assert pushed.status_code == 403
        finally:
            collector.stop()
        before = {file.name: file.read_bytes() for file in keys.iterdir()}
        program.stop()
        program = start()
        assert {file.name: file.read_bytes() for file in keys.iterdir()} == before
    finally:
        program.stop()


def replaced(text: str, values: dict[str, str]) -> str:
    for old, new in values.items():
        text = text.replace(old, new)
    return text


def directory(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def export(file: Path, endpoint: str) -> None:
    command = [sys.executable, "-m", "runspan", "export", str(file), "--endpoint", endpoint]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compose_client() -> list[str]:
    """Compose 2 or newer as a plugin of Docker's client or as a program; the test is skipped without either."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and compose_version(command) >= 2:
            return command
    return missing("compose", "neither `docker compose` nor docker-compose of version 2 is here")


def compose_version(command: list[str]) -> int:
    """The first number of its version; 0 when the client has no such plugin."""
    asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
    found = re.match(r"v?(\d+)\.", asked.stdout)
    return int(found[1]) if found and asked.returncode == 0 else 0


def test_compose_itself_takes_the_file() -> None:
    """``docker compose config`` resolves every service of every profile; it needs no engine."""
    command = [*compose_client(), "--profile", "stack", "config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert set(resolved["services"]) == set(SERVICES)
    assert resolved["services"]["runspan"]["command"][0].count("$$") == SERVICES["runspan"]["command"][0].count("$$")


@pytest.mark.timeout(1800)
def test_make_stack_starts_everything_from_a_checkout_that_is_closed_to_others(tmp_path: Path) -> None:
    """With a real engine, whose client is Docker's or Podman's: every service becomes healthy, a run that the Collector
    takes reaches all backends, and services that were restarted and killed become healthy again."""
    engine, reason = container_engine()
    if engine is None:
        missing("engine", reason)
    compose = compose_client()
    ports = [int(port.split(":")[1]) for service in SERVICES.values() for port in service["ports"]]
    if taken := [port for port in ports if not is_free(port)]:
        pytest.skip(f"the stack's ports are in use: {taken}")
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", ".venv", "var", "__pycache__", ".*_cache"))
    subprocess.run(["chmod", "-R", "u=rwX,go=", checkout], check=True)
    env = {**os.environ, "COMPOSE_PROJECT_NAME": f"runspan-test-{os.getpid()}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    stack = [*compose, "--profile", "stack"]

    def health(name: str) -> str:
        (container,) = run(*stack, "ps", "--all", "--quiet", name).split()
        return str(engine.containers.get(container).attrs["State"]["Health"]["Status"])

    try:
        run("make", "stack", f"COMPOSE={' '.join(compose)}")
        assert {name: health(name) for name in SERVICES} == dict.fromkeys(SERVICES, "healthy")
        file = SAMPLES / "overdue-invoices-completed.json"
        export(file, "http://127.0.0.1:24318")
        sent = Run.from_json(file.read_bytes())
        reader = run(*stack, "exec", "-T", "runspan", "cat", "/var/lib/runspan-keys/reader")
        address, key = f"http://127.0.0.1:8321/api/v1/runs/{sent.id}", {"x-api-key": reader.strip()}

        def arrived() -> bool:
            return httpx.get(address, headers=key, trust_env=False).status_code == 200

        wait_until(arrived, 60, "the run did not reach runspan")
        for backend in ("tempo+http://127.0.0.1:3200", "jaeger+http://127.0.0.1:16686"):

            def readable(backend: str = backend) -> bool:
                return is_read(sent.id, backend)

            wait_until(readable, 60, f"the run did not reach {backend}")
        run(*stack, "restart", "tempo", "grafana")
        run(*stack, "kill", "collector")
        run(*stack, "up", "--wait")
        assert {name: health(name) for name in SERVICES} == dict.fromkeys(SERVICES, "healthy")
    finally:
        run(*stack, "down", "--volumes", "--rmi", "local")
        engine.close()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_read(run_id: str, backend: str) -> bool:
    command = [sys.executable, "-m", "runspan", "get", run_id, "--backend", backend]
    return subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0
