"""``runspan export --workers``: several processes send what one would, and report and end as one does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runspan import Run, decode
from runspan.contracts import Rejection
from runspan.delivery import ExportReport
from runspan.delivery.report import MAX_NAMED, merge_reports
from runspan.model.span import Span
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.parallel_export import SHARE_BYTES
from support.cli import environment, generated, process, running, runspan, write_ndjson
from support.receivers import OK, Answer, Post, Receiver, http_receiver
from support.sync import eventually

BAD = b'{"id":"run_bad","steps":[7]}'


def traces(receiver: Receiver) -> list[list[Span]]:
    """The received spans by trace, in the order in which the traces arrived."""
    found: dict[bytes, list[Span]] = {}
    for post in receiver.posts:
        for span in read_protobuf(post.message.SerializeToString()).spans:
            found.setdefault(span.trace_id, []).append(span)
    return list(found.values())


def received(receiver: Receiver) -> dict[str, bytes]:
    return {run.id: run.text for run in map(decode, traces(receiver))}


def large(count: int = 1500) -> dict[str, bytes]:
    """Return runs that make several shares."""
    texts = generated(count)
    assert sum(map(len, texts.values())) > 4 * SHARE_BYTES
    return texts


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_the_same_documents_arrive(tmp_path: Path, source: str) -> None:
    """Every document arrives once, while one process waits the other sends, and the report has the sums of both."""
    texts = large()
    path = write_ndjson(tmp_path / "runs.ndjson", texts)
    both = threading.Event()

    def answer(post: Post) -> Answer:
        if len({each.connection for each in receiver.posts}) == 2:
            both.set()
        assert both.wait(60)
        return OK

    with http_receiver(answer) as receiver:
        options = ("--endpoint", receiver.url, "--workers", 2, "--concurrency", 1, "--batch-spans", 200, "--json")
        done = process("export", path if source == "file" else "-", *options, stdin=path.read_bytes())
    report = json.loads(done.stdout)
    assert received(receiver) == texts
    assert len(traces(receiver)) == report["runs_accepted"] == len(texts)
    assert report["spans_accepted"] == sum(len(post.spans) for post in receiver.posts)
    assert (report["complete"], report["runs_pending"], report["requests"]) == (True, 0, len(receiver.posts))
    assert len({post.connection for post in receiver.posts}) == 2
    assert done.stderr == b""


def test_a_bad_document_is_named_by_its_place(tmp_path: Path) -> None:
    """What one process reports of documents that cannot be read or carried, several report in the same words."""
    lines = [*large().values()]
    for index in (1400, 700, 30, 3):
        lines.insert(index, BAD if index != 30 else b"]")
    path = tmp_path / "runs.ndjson"
    path.write_bytes(b"\n".join(lines))
    with http_receiver() as receiver:
        one, two = (
            process("export", path, "--endpoint", receiver.url, "--workers", workers, code=1) for workers in (1, 2)
        )
    assert b"runs.ndjson:4 " in one.stderr
    assert two.stderr.splitlines()[1:] == one.stderr.splitlines()[1:]


def test_documents_that_are_not_accepted_are_kept(tmp_path: Path) -> None:
    """All processes write to one file of dead letters, and the report counts what they wrote."""
    texts = large()
    path, kept = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "kept.ndjson"
    with http_receiver(lambda post: Answer(401)) as receiver:
        options = ("--endpoint", receiver.url, "--workers", 2, "--dead-letter", kept)
        done = process("export", path, *options, code=1)
    assert sorted(kept.read_bytes().splitlines()) == sorted(texts.values())
    assert f"1,500 documents kept in {kept}" in done.stderr.decode()
    assert "HTTP 401" in done.stderr.decode()
    with http_receiver() as receiver:
        process("export", kept, "--endpoint", receiver.url, "--workers", 2, "--dead-letter", tmp_path / "none")
        assert received(receiver) == texts
    assert not (tmp_path / "none").exists()


def test_an_export_that_stops_reads_no_further(tmp_path: Path) -> None:
    """A receiver that refuses any request ends the export at once, with its reason and hint."""
    path = write_ndjson(tmp_path / "runs.ndjson", large())
    with http_receiver(lambda post: Answer(403)) as receiver:
        done = process("export", path, "--endpoint", receiver.url, "--workers", 2, code=1)
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("0 runs accepted, ")
    assert any(line.startswith("stopped: ") and "HTTP 403" in line for line in lines)
    assert "runs:write" in lines[-1]


def test_of_two_documents_of_a_run_the_later_one_counts(tmp_path: Path) -> None:
    """Revisions are in the order of the input, whichever process sends them."""
    first = Run.from_dict({"id": "r", "status": "running", "startedAt": "2026-01-15T09:00:00.000Z"})
    last = Run.from_dict({"id": "r", "status": "running", "startedAt": "2026-01-15T09:00:00.000Z", "steps": []})
    path = tmp_path / "runs.ndjson"
    path.write_bytes(b"\n".join([first.text, *large().values(), first.text, last.text]))
    with http_receiver() as receiver:
        process("export", path, "--endpoint", receiver.url, "--workers", 3)
    assert received(receiver)["r"] == last.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_its_report_and_130(tmp_path: Path, number: int) -> None:
    """The first batches are answered, the others are not: the report counts both, and no process is left."""
    path = write_ndjson(tmp_path / "runs.ndjson", large())
    stuck, leave = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        if post.number > 2:
            stuck.set()
            leave.wait(60)
        return OK

    with http_receiver(answer) as receiver:
        args = ("export", path, "--endpoint", receiver.url, "--batch-spans", 50, "--concurrency", 1, "--workers", 2)
        with running(*args, "--timeout", "90s") as child:
            assert stuck.wait(60)
            workers = children(child.process.pid)
            assert len(workers) >= 2
            assert child.end(number) == 130
        leave.set()
    output = "".join(child.lines)
    assert re.match(r"[1-9]\d* runs accepted", output)
    assert "stopped: interrupted" in output
    assert "without a response" in output
    assert "Traceback" not in output
    assert not any(map(exists, workers))


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_process_that_is_killed(tmp_path: Path, victim: str) -> None:
    """Documents of a killed worker are reported as without a response, and that they are not among the dead letters; if
    the parent is killed, the workers end."""
    path = write_ndjson(tmp_path / "runs.ndjson", large())
    stuck, leave = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        stuck.set()
        leave.wait(60)
        return OK

    with http_receiver(answer) as receiver:
        args = ("export", path, "--endpoint", receiver.url, "--concurrency", 1, "--workers", 2, "--timeout", "90s")
        with running(*args) as child:
            assert stuck.wait(60)
            workers = children(child.process.pid)
            if victim == "parent":
                child.process.kill()
                eventually(lambda: not any(map(exists, workers)))
                leave.set()
                return
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            leave.set()
            assert child.process.wait(60) == 1
            child.read_to_the_end()
    output = "".join(child.lines)
    assert "stopped: a worker process ended with exit code -9: export all of the input again" in output
    assert re.search(r"^[1-9][\d,]* runs without a response", output, re.MULTILINE)


def children(parent: int) -> list[int]:
    """The processes that a process has started and that encode."""
    # A forked process has the command of its parent.
    pattern = "spawn_main|runspan export"
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", pattern], capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize(
    ("args", "reason"), [(("--dry-run", "-"), "in order"), (("--watch", "."), "compares each file")]
)
def test_what_one_process_has_to_do(args: tuple[str, ...], reason: str) -> None:
    """Where several workers make no sense they are refused, with the reason."""
    done = runspan("export", *args, "--workers", 2, code=2, stdin=b"")
    assert f"--workers: expected no {args[0]}, " in done.stderr
    assert reason in done.stderr


def test_a_config_that_no_worker_can_use_is_refused_once(tmp_path: Path) -> None:
    """The error is that of one process."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(1))
    missing = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "none.pem")}
    one, two = (
        subprocess.run(
            [
                sys.executable,
                "-m",
                "runspan",
                "export",
                path,
                "--endpoint",
                "https://127.0.0.1:1",
                "--workers",
                workers,
            ],
            env=environment(**missing),
            capture_output=True,
            check=False,
        )
        for workers in ("1", "2")
    )
    assert one.returncode == two.returncode == 2
    assert one.stderr == two.stderr


def test_merged_reports() -> None:
    """Counts are added, names are in the order of their places and at most as many as one report has."""
    names = [Rejection(f"runs.ndjson:{number}", "wrong", 0) for number in range(1, 151)]
    reports = [
        ExportReport(runs_accepted=2, refusals=tuple(names[1::2]), warnings=("slow",)),
        ExportReport(runs_accepted=3, refusals=tuple(names[::2]), warnings=("slow", "old"), stopped="full"),
        ExportReport(stopped="interrupted"),
    ]
    merged = merge_reports(reports)
    assert (merged.runs_accepted, merged.stopped, merged.warnings) == (5, "full", ("old", "slow"))
    assert merged.refusals == tuple(names[:MAX_NAMED])
