"""Every command and every sample of the README and the documentation, as a reader meets them, with real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from operate.walk import BLOCK, ROOT, SERVERS, jaeger, needs_collector_program, postgres, tempo
from support.servers.finding import missing
from support.servers.postgres import find_programs
from support.servers.programs import require_program

PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if BLOCK.search(page.read_text())
)


def namespaces() -> list[str]:
    """The command before one that gets a network of its own; the test is skipped where that is not allowed."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.getuid() != 0:
        command[1:1] = ["--user", "--map-root-user"]
    if shutil.which("ip") is None:
        missing("namespaces", "no program ip on PATH")
    try:
        done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        missing("namespaces", "no program unshare on PATH")
    if done.returncode != 0:
        missing("namespaces", done.stderr.strip())
    return command


def walk(page: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}
    command = [*namespaces(), sys.executable, "-m", "operate.walk", str(page), str(directory)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=380)


@pytest.mark.parametrize(
    ("block", "got"),
    [
        ("```console\nrunspan get run_no_such --data ./data\n```", "exit status 5"),
        ("```python\nassert False, 'wrong'\n```", "AssertionError: wrong"),
        ("```console\nrunspan serve --data ./data --port 99999\n```", "ended by itself"),
    ],
)
def test_a_line_that_fails_fails_its_page(tmp_path: Path, block: str, got: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{block}\n")
    done = walk(page, tmp_path)
    assert done.returncode == 1
    assert got in done.stdout


@pytest.mark.campaign
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_does_what_it_is_there_for(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    for server in (tempo, jaeger):
        if SERVERS[server](text) and shutil.which(server.__name__) is None:
            missing(server.__name__, f"no program {server.__name__} on PATH")
    if SERVERS[postgres](text) and find_programs() is None:
        missing("postgresql", "no program postgres on PATH or in /usr/lib/postgresql")
    if needs_collector_program(text):
        require_program("otelcol")
    done = walk(Path(page), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
