"""The images of the stack: each server can read its configuration, write its volume and be asked for its health, as the
user of its image, from a checkout with any umask."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from operate.boards import BOARDS, ROOT
from operate.images import COMPOSE, IMAGES, SERVICES, STAGES
from operate.test_compose import moved
from support.servers.finding import require
from support.servers.process import Program, free_ports

SERVERS = [name for name in SERVICES if name != "runspan"]
"""The services that are not ours."""
STAGED = STAGES["files"]


def test_the_file_follows_the_compose_specification(tmp_path: Path) -> None:
    """Its schema, as check-jsonschema ships it, takes the file and refuses it with a misspelt member."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, ROOT / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((ROOT / "compose.yaml").read_text().replace("healthcheck:", "helthcheck:", 1))
    done = subprocess.run([*command, wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "helthcheck" in done.stdout


def test_every_image_was_read() -> None:
    """A new version is in the table once somebody has read its Dockerfile again."""
    assert {STAGES[name].tag for name in SERVERS} == set(IMAGES)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_runs_as_the_user_of_its_image(name: str) -> None:
    """Who is not root; neither compose nor the Dockerfile names another."""
    assert "user" not in SERVICES[name]
    assert not any(line.startswith("USER") for line in STAGES[name].lines)
    assert not IMAGES[STAGES[name].tag].user.startswith("0:")


def owner(name: str, folder: str) -> str:
    """The user that a new volume at this folder of a service belongs to: the folder's owner in the image."""
    if name == "runspan":
        made = re.search(r"install -d -o (\d+) -g (\d+) -m 0750 (.+)", (ROOT / "Dockerfile").read_text())
        assert made
        return f"{made[1]}:{made[2]}" if folder in made[3].split() else "0:0"
    image = IMAGES[STAGES[name].tag]
    if folder in image.owned:
        return image.user
    copied = [re.fullmatch(rf"COPY --from=files --chown=(\S+) /empty {folder}", line) for line in STAGES[name].lines]
    return next((found[1] for found in copied if found), "0:0")


@pytest.mark.parametrize("name", SERVICES)
def test_a_volume_belongs_to_who_writes_it(name: str) -> None:
    """And nothing but volumes is mounted: a file of a checkout may be readable by its owner only."""
    user = "10001:10001" if name == "runspan" else IMAGES[STAGES[name].tag].user
    assert SERVICES[name]["volumes"]
    for mount in SERVICES[name]["volumes"]:
        volume, folder, *mode = mount.split(":")
        assert volume in COMPOSE["volumes"]
        if mode == ["ro"]:
            (writer,) = [other for other in SERVICES if f"{volume}:{folder}" in SERVICES[other]["volumes"]]
            assert owner(writer, folder) == user
        else:
            assert owner(name, folder) == user


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_runs_a_program_of_its_image(name: str) -> None:
    """Inside the container, so that it finds the server again after a restart of it."""
    check = SERVICES[name]["healthcheck"]["test"]
    assert check[0] == "CMD"
    assert "network_mode" not in SERVICES[name]
    if name == "runspan":
        assert check[1] == "python"
        return
    copied = {line.split()[-1] for line in STAGES[name].lines if "--from=prometheus /bin/busybox" in line}
    assert check[1] in IMAGES[STAGES[name].tag].programs | copied


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """What the stage ``files`` holds when the checkout was made with umask 077."""
    checkout, root = tmp_path / "checkout", tmp_path / "image"
    for place in ("deploy", "dashboards"):
        shutil.copytree(ROOT / place, checkout / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "otel-collector.yaml", checkout)
    subprocess.run(["chmod", "-R", "u=rwX,go=", checkout], check=True)
    root.mkdir()
    for line in STAGED.lines:
        instruction, rest = line.split(" ", 1)
        if instruction == "RUN":
            subprocess.run(re.sub(r"(?<= )/", f"{root}/", rest), shell=True, check=True)
            continue
        assert instruction == "COPY"
        source, target = rest.split()
        found = list(checkout.glob(source))
        assert found, source
        folder = root / target.lstrip("/")
        if found[0].is_dir():
            shutil.copytree(found[0], folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for file in found:
                shutil.copy(file, folder)
    return root


def test_everybody_may_read_the_configurations(staged: Path) -> None:
    """Servers run as other users than who made the checkout."""
    for place in staged.rglob("*"):
        assert place.stat().st_mode & 0o777 == (0o755 if place.is_dir() else 0o644), place


def test_configurations_lie_where_they_are_read(staged: Path) -> None:
    """At every path that a command or another file names, with the content of the file of the same name."""
    for name in ("tempo", "jaeger", "collector", "prometheus", "alertmanager"):
        (path,) = re.findall(r"/etc/[\w/.-]+\.yaml", " ".join(SERVICES[name]["command"]))
        source = ROOT / Path(path).name if name == "collector" else ROOT / "deploy" / Path(path).name
        assert (staged / name / path.lstrip("/")).read_bytes() == source.read_bytes()
        assert f"COPY --from=files /{name} /" in STAGES[name].lines
    assert "COPY --from=files /grafana /" in STAGES["grafana"].lines
    rules = staged / "prometheus" / "etc" / "prometheus" / "rules"
    assert {file.name for file in rules.iterdir()} == {file.name for file in (ROOT / "deploy" / "rules").iterdir()}
    boards = staged / "grafana" / "etc" / "grafana" / "dashboards"
    assert {file.name for file in boards.iterdir()} == set(BOARDS)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach; pytest's own are closed to them."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_tempo_starts_as_its_image_starts_it(open_folder: Path) -> None:
    """The real program as uid 10001 without any capability, on a folder that only that user may enter: its health check
    says that it is ready."""
    place, setpriv = require("tempo", STAGES["tempo"].image), shutil.which("setpriv")
    if place.program is None:
        pytest.skip("needs the program, and there is only an image or a running server")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("becoming another user needs root and setpriv")
    user, group = IMAGES[STAGES["tempo"].tag].user.split(":")
    data = open_folder / "tempo"
    data.mkdir(mode=0o700)
    os.chown(data, int(user), int(group))
    inside = (3200, 4318, 9095, 4317)
    ports = dict(zip(inside, free_ports(len(inside)), strict=True))
    file = moved("tempo", open_folder, ports)
    file.chmod(0o644)
    alone = [setpriv, f"--reuid={user}", f"--regid={group}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    check = [word.replace("3200", str(ports[3200])) for word in SERVICES["tempo"]["healthcheck"]["test"][1:]]
    assert check[0] == "/tempo"

    def healthy() -> bool:
        return subprocess.run([*alone, place.program, *check[1:]], capture_output=True, check=False).returncode == 0

    assert not healthy()
    program = Program([*alone, place.program, f"-config.file={file}"], open_folder)
    try:
        program.wait_until(healthy)
        assert (data / "blocks").stat().st_uid == int(user)
    finally:
        program.stop()
