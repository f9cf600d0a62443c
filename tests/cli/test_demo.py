"""``runspan demo``: from a fresh clone and from anywhere else, once and again."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from support.cli import SAMPLES, process, running, runspan

ROOT = SAMPLES.parent.parent


def counts(output: str) -> tuple[int, int]:
    """How many documents came back the same, of how many."""
    found = re.search(r"(\d+) of (\d+) documents came back the same, byte for byte", output)
    assert found, output
    return int(found[1]), int(found[2])


def test_a_fresh_clone_shows_the_samples_and_again(tmp_path: Path) -> None:
    """In the repository the samples are taken. On the same directory it succeeds again: runs that have not ended get a
    newer snapshot, and the others stay."""
    number = len(list(SAMPLES.glob("*.json")))
    args = ("demo", "--data", tmp_path, "--port", 0, "--exit")
    for _ in range(2):
        output = process(*args, cwd=ROOT).stdout.decode()
        assert f"sending {number} runs, from examples/runs" in output
        assert counts(output) == (number, number)
    assert len(runspan("list", "--data", tmp_path, "--limit", 500, "--json").stdout.splitlines()) == number


def test_an_installed_package_makes_its_own_runs(tmp_path: Path) -> None:
    """Elsewhere there is no folder of samples; the store is a directory of the demo's own."""
    output = process("demo", "--port", 0, "--exit", cwd=tmp_path).stdout.decode()
    assert "sending 200 runs, generated for this demo" in output
    assert counts(output) == (200, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["runspan-demo"]


def test_what_it_shows_to_look_at_works(tmp_path: Path) -> None:
    """The server continues, the printed addresses answer, and Ctrl-C ends it with 0."""
    with running("demo", "--data", tmp_path, "--port", 0, cwd=ROOT, prints_on="stdout") as child:
        listing = child.wait_for(r"curl '(http://\S+)'")[1]
        one = child.wait_for(r"curl (http://\S+)")[1]
        get = child.wait_for(r"  runspan get (\S+) --data (\S+)")
        child.wait_for("press Ctrl-C to stop")
        failed = httpx.get(listing, trust_env=False).json()["data"]
        assert {run["status"] for run in failed} == {"failed"}
        document = httpx.get(one, trust_env=False).json()["data"]
        assert document["id"] == get[1]
        assert json.loads(runspan("get", get[1], "--data", get[2]).stdout) == document
        assert child.end(signal.SIGINT) == 0


def test_documents_of_ones_own(tmp_path: Path) -> None:
    """--runs takes any file; of two revisions of a run the last one counts; errors name the position."""
    path = tmp_path / "mine.ndjson"
    path.write_bytes(b'{"id":"a","status":"running"}\n{"id":"b"}\n{"id":"a","status":"completed"}\n')
    output = process("demo", "--runs", path, "--data", tmp_path / "d", "--port", 0, "--exit").stdout.decode()
    assert counts(output) == (2, 2)
    path.write_bytes(b'{"id":"a"}\n{"id":7}\n')
    result = runspan("demo", "--runs", path, "--data", tmp_path / "d", "--port", 0, "--exit", code=3)
    assert f"{path}:2 id: expected a string" in result.stderr
    path.write_bytes(b"")
    result = runspan("demo", "--runs", path, "--data", tmp_path / "d", "--port", 0, "--exit", code=2)
    assert "expected run documents, got none" in result.stderr
    runspan("demo", "--runs", tmp_path / "none", "--data", tmp_path / "d", "--port", 0, "--exit", code=2)


def test_a_port_in_use_comes_with_the_way_out(tmp_path: Path) -> None:
    """The usual port may be taken by a server that runs already."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runspan("demo", "--data", tmp_path, "--port", port, "--exit", code=2)
    assert f"127.0.0.1:{port}: cannot listen" in result.stderr
    assert "hint: choose another one: runspan demo --port 0" in result.stderr


def test_a_directory_with_keys_is_left_alone(tmp_path: Path) -> None:
    """Samples do not belong among the runs of a server that people use."""
    runspan("keys", "create", "--data", tmp_path, "--name", "x")
    result = runspan("demo", "--data", tmp_path, "--port", 0, "--exit", code=2)
    assert "this directory has API keys" in result.stderr
    assert not (tmp_path / "runspan.sqlite3").exists()


@pytest.mark.parametrize("name", ["RUNSPAN_DATA", "RUNSPAN_BACKEND"])
def test_the_demo_ignores_where_the_real_runs_are(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are set for real servers do not send samples there."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.ndjson"
    path.write_bytes(b'{"id":"a"}')
    runspan("demo", "--runs", path, "--port", 0, "--exit", **{name: str(tmp_path / "real")})
    assert not (tmp_path / "real").exists()
