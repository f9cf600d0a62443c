"""Linux, macOS and Windows: what the package imports, what works, and that the rest is refused before it begins."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runspan import Run, system
from runspan.codec.fields import WORKFLOW_ID
from runspan.sources import documents
from support.receivers import OK, Answer, Post, http_receiver

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "runspan"
MODULES = sorted(
    ".".join(("runspan", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
)


def on_windows(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program in an interpreter that has what Windows has, after it has imported every module."""
    code = f"import sys; from support.windows import imitate_windows; imitate_windows({MODULES})\n{program}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{SOURCE.parent}:{ROOT / 'tests'}"},
    )


def finished(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors."""
    output, errors = child.communicate(timeout=120)
    return child.returncode, output, errors


def texts_in(path: Path) -> list[bytes]:
    found = list(documents(str(path)))
    assert all(isinstance(each, Run) for each in found), found
    return [each.text for each in found if isinstance(each, Run)]


def test_a_recorder_and_its_dead_letters_work_on_windows(tmp_path: Path) -> None:
    """One run arrives, the other is kept exactly."""
    program = """
from runspan import Recorder
with Recorder(endpoint=sys.argv[1], dead_letter=sys.argv[2]) as recorder:
    for name in ("accepted", "rejected"):
        with recorder.run(f"wf_{name}", trigger="webhook") as run:
            with run.step("fetch", type="action") as step:
                step.set_output({"total": 12.1, "text": "a\\nb"})
    sys.stdout.buffer.write(run.document().text)
"""

    def answer(post: Post) -> Answer:
        workflows = {
            pair.value.string_value for span in post.spans for pair in span.attributes if pair.key == WORKFLOW_ID
        }
        return Answer(400) if "wf_rejected" in workflows else OK

    left = tmp_path / "left.ndjson"
    with http_receiver(answer) as receiver:
        code, output, errors = finished(on_windows(program, f"http://127.0.0.1:{receiver.port}", left))
    assert code == 0, errors
    assert texts_in(left) == [output.encode()]
    assert any(span.name for span in receiver.taken)


def test_lines_of_two_processes_on_windows_do_not_mix(tmp_path: Path) -> None:
    """Though the system writes each line in parts, and each line contains line breaks."""
    program = r"""
import os
from runspan.delivery import DeadLetters
path, name = sys.argv[1:]
with DeadLetters(path) as letters:
    open(path + name, "x").close()
    while not all(os.path.exists(path + other) for other in "ab"):
        pass
    for number in range(150):
        letters.write_text(b'{"id":"%s%d","input":[\n"%s"\n]}' % (name.encode(), number, b"x" * 200))
sys.exit(letters.lost)
"""
    path = tmp_path / "left.ndjson"
    children = [on_windows(program, path, name) for name in ("a", "b")]
    assert [finished(child) for child in children] == [(0, "", "")] * 2
    expected = {
        b'{"id":"%s%d","input":[\n"%s"\n]}' % (name, n, b"x" * 200) for name in (b"a", b"b") for n in range(150)
    }
    texts = texts_in(path)
    assert len(texts) == 300
    assert set(texts) == expected


def test_windows_leaves_an_empty_file_of_dead_letters(tmp_path: Path) -> None:
    """It removes no file that is open; closing it first could remove the document of another process."""
    path = tmp_path / "left.ndjson"
    program = "from runspan.delivery import DeadLetters\nDeadLetters(sys.argv[1]).close()"
    assert finished(on_windows(program, path)) == (0, "", "")
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["serve", "--data", "{tmp}/data"], "a data directory"),
        (["serve", "--data", "{tmp}/data", "--backend", "tempo+http://127.0.0.1:1"], "a data directory"),
        (["demo", "--data", "{tmp}/data", "--exit"], "a data directory"),
        (["keys", "create", "--data", "{tmp}/data", "--name", "x"], "a data directory"),
        (["export", "--watch", "{tmp}", "--endpoint", "http://127.0.0.1:1"], "a watched folder"),
        (
            ["archive", "--before", "30d", "--to", "{tmp}/out", "--backend", "tempo+http://127.0.0.1:1"],
            "an archive in a folder",
        ),
    ],
)
def test_what_windows_cannot_keep_is_refused_there(tmp_path: Path, arguments: list[str], what: str) -> None:
    """The refusal says what, why and what to do, and nothing was written."""
    program = "from runspan.__main__ import main; main()"
    code, _, errors = finished(on_windows(program, *(each.format(tmp=tmp_path) for each in arguments)))
    assert code == 2, errors
    assert f"{what} cannot be used on Windows" in errors
    assert "expected Linux or macOS, got Windows" in errors
    assert "in the container" in errors
    assert "Traceback" not in errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("arguments", [["--help"], ["export", "{tmp}/runs.ndjson", "--dry-run"]])
def test_the_commands_that_send_work_on_windows(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "runs.ndjson").write_bytes(b'{"id":"run_1","status":"completed","steps":[]}\n')
    program = "from runspan.__main__ import main; main()"
    code, _, errors = finished(on_windows(program, *(each.format(tmp=tmp_path) for each in arguments)))
    assert code == 0, errors


def test_macos_writes_into_the_drive_and_not_only_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know the stronger sync gets the usual one."""
    calls: list[object] = []

    def full_sync(file: int, command: int) -> None:
        calls.append(command)
        if len(calls) > 1:
            raise OSError(45, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync"))
    system.sync_path(tmp_path)
    assert calls == [51]
    system.sync_path(tmp_path)
    assert calls == [51, 51, "fsync"]


def test_a_system_that_allows_fewer_open_files_than_it_says_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        if limits[0] > 10_240:
            raise ValueError("current limit exceeds maximum limit")

    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, unlimited))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    system.allow_open_files(65_536)
    assert asked == [(65_536, unlimited), (10_240, unlimited)]
    asked.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20_000, 20_000))
    system.allow_open_files(65_536)
    assert asked == []


HEAPS = """
import ctypes, sys, threading
from runspan.system import share_heaps

share_heaps()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(8)

def work():
    kept = bytes(100_000)
    together.wait(60)

threads = [threading.Thread(target=work) for _ in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not glibc")
def test_threads_share_two_heaps(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", HEAPS, tmp_path / "heaps"], check=True)
    assert 1 <= (tmp_path / "heaps").read_text().count("<heap ") <= 2


def test_every_lock_and_sync_goes_through_this_module() -> None:
    """What differs between systems is in one place, so that nothing is forgotten elsewhere."""
    for path in SOURCE.rglob("*.py"):
        if path != SOURCE / "system.py":
            for word in ("fcntl", "import resource\n", "os.fsync", "sys.platform"):
                assert word not in path.read_text(), (path, word)
