"""``runspan export``: what it reads, what arrives, what it reports, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runspan import Run, decode
from runspan.model.span import Span
from runspan.otlp.json import read_json
from runspan.otlp.protobuf_reader import read_protobuf
from support.cli import SAMPLES, command, environment, generated, process, running, runspan, write_ndjson
from support.receivers import OK, Answer, Post, Receiver, grpc_receiver, http_receiver

BAD = b'{"id":"run_bad","steps":[7]}'


def received(receiver: Receiver) -> dict[str, bytes]:
    """The documents that the received spans decode to, by run id."""
    traces: dict[bytes, list[Span]] = {}
    for post in receiver.posts:
        for span in read_protobuf(post.message.SerializeToString()).spans:
            traces.setdefault(span.trace_id, []).append(span)
    return {run.id: run.text for run in map(decode, traces.values())}


def samples() -> dict[str, bytes]:
    runs = [Run.from_json(path.read_bytes()) for path in SAMPLES.glob("*.json")]
    return {run.id: run.text for run in runs}


@pytest.mark.parametrize("form", ["ndjson", "gz", "array", "stdin", "gzipped stdin"])
def test_every_form_of_input_arrives_as_the_same_documents(tmp_path: Path, form: str) -> None:
    """NDJSON, gzip, a JSON array and standard input are recognised by their content."""
    texts = generated(60, unfinished=True)
    lines = b"\n".join(texts.values())
    content = {
        "gz": gzip.compress(lines),
        "gzipped stdin": gzip.compress(lines),
        "array": b"[" + b",\n".join(texts.values()) + b"]",
    }.get(form, lines)
    path = tmp_path / "runs"
    path.write_bytes(content)
    with http_receiver() as receiver:
        if "stdin" in form:
            result = runspan("export", "-", "--endpoint", receiver.url, stdin=content)
        else:
            result = runspan("export", path, "--endpoint", receiver.url)
    assert received(receiver) == texts
    assert result.stderr.startswith("60 runs accepted, ")
    assert result.stdout == ""


def test_a_folder_is_sent_and_one_bad_document_is_named(tmp_path: Path) -> None:
    """The others arrive, the exit code is 1, and the report names file, line and member."""
    texts = generated(20)
    write_ndjson(tmp_path / "a.ndjson", texts)
    (tmp_path / "b.ndjson").write_bytes(b'{"id":"run_b","steps":[]}\n' + BAD + b'\n{"id":"run_c","steps":[]}\n')
    with http_receiver() as receiver:
        result = runspan("export", tmp_path, "--endpoint", receiver.url, code=1)
    assert received(receiver).keys() == texts.keys() | {"run_b", "run_c"}
    assert result.stderr.startswith("22 runs accepted, ")
    assert "1 document refused, not sent:" in result.stderr
    assert f"  {tmp_path}/b.ndjson:2 steps[0]: expected an object, got a number" in result.stderr


@pytest.mark.parametrize("receiving", [http_receiver, grpc_receiver])
def test_a_replay_says_so_in_each_request(tmp_path: Path, receiving: Callable[..., Any]) -> None:
    """As a header and as gRPC metadata, with others, by the flag and by its variable; without it there is none."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(30))
    with receiving() as receiver:
        endpoint = receiver.url if receiving is http_receiver else f"http://127.0.0.1:{receiver.port}"
        protocol = "http/protobuf" if receiving is http_receiver else "grpc"
        args = ("export", path, "--endpoint", endpoint, "--protocol", protocol, "--batch-spans", 40)
        runspan(*args, "--replay", OTEL_EXPORTER_OTLP_HEADERS="x-other=1")
        marked = list(receiver.posts)
        runspan(*args, RUNSPAN_REPLAY="true")
        by_variable = receiver.posts[len(marked) :]
        runspan(*args)
        plain = receiver.posts[len(marked) + len(by_variable) :]
    assert len(marked) == len(by_variable) == len(plain) > 1
    assert {(post.headers["x-runspan-replay"], post.headers["x-other"]) for post in marked} == {("true", "1")}
    assert {post.headers["x-runspan-replay"] for post in by_variable} == {"true"}
    assert not any("x-runspan-replay" in post.headers for post in plain)
    spans = [{span.SerializeToString() for post in posts for span in post.spans} for posts in (marked, plain)]
    assert spans[0] == spans[1]


def test_several_files_and_the_samples_arrive(tmp_path: Path) -> None:
    """Files and folders mix; each sample is a case that once was hard."""
    texts = generated(5)
    path = write_ndjson(tmp_path / "more.ndjson", texts)
    with http_receiver() as receiver:
        runspan("export", path, SAMPLES, "--endpoint", receiver.url)
    assert received(receiver) == texts | samples()


def test_grpc_arrives_as_the_same_documents() -> None:
    """A process sends to a real gRPC receiver, with the protocol chosen by variables."""
    with grpc_receiver() as receiver:
        env = {"RUNSPAN_PROTOCOL": "grpc", "RUNSPAN_ENDPOINT": f"http://127.0.0.1:{receiver.port}"}
        done = process("export", SAMPLES, env=env)
    assert received(receiver) == samples()
    assert done.stdout == b""
    assert done.stderr.decode().startswith(f"{len(samples())} runs accepted, ")


def test_the_options_reach_the_receiver(tmp_path: Path) -> None:
    """Key, compression, batch size, service name, resource attributes and tenant are those that were set."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(40))
    args = ("--compression", "none", "--batch-spans", 20, "--concurrency", 1, "--service-name", "flows")
    env = {
        "RUNSPAN_API_KEY": "wfk_a,b%20c",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-more=1",
        "OTEL_RESOURCE_ATTRIBUTES": "team=a%20b,service.name=other",
    }
    with http_receiver() as receiver:
        runspan("export", path, "--endpoint", receiver.url, *args, **env)
        runspan(
            "export", path, "--endpoint", receiver.url, "--tenant", "acme", "--timeout", "5s", "--retry-max-time", "3s"
        )
    post, last = receiver.posts[0], receiver.posts[-1]
    headers = {name.lower(): value for name, value in post.headers.items()}
    assert (headers["x-api-key"], headers["x-more"]) == ("wfk_a,b%20c", "1")
    assert "content-encoding" not in headers
    assert {name.lower() for name in last.headers} >= {"content-encoding"}
    assert len(post.spans) < 60
    attributes = {each.key: each.value.string_value for each in post.message.resource_spans[0].resource.attributes}
    assert attributes == {"service.name": "flows", "team": "a b"}
    assert {span.trace_id for span in post.spans}.isdisjoint(span.trace_id for span in last.spans)


def test_a_dry_run_prints_the_traces_and_sends_nothing() -> None:
    """Each line is one run's OTLP/JSON, which reads back as the same document; a bad document is reported."""
    with http_receiver() as receiver:
        result = runspan("export", SAMPLES, "--dry-run", "--endpoint", receiver.url, "--service-name", "flows")
    assert receiver.posts == []
    lines = result.stdout_bytes.splitlines()
    runs = [decode(read_json(line).spans) for line in lines]
    assert {run.id: run.text for run in runs} == samples()
    resource = json.loads(lines[0])["resourceSpans"][0]["resource"]["attributes"]
    assert {"key": "service.name", "value": {"stringValue": "flows"}} in resource
    assert result.stderr.endswith("nothing was sent\n")
    mixed = runspan("export", "-", "--dry-run", stdin=BAD + b'\n{"id":"run_c"}\n', code=1)
    assert mixed.stdout_bytes.count(b"\n") == 1
    assert "stdin:1 steps[0]: expected an object" in mixed.stderr


def test_the_report_as_json_is_all_that_is_printed(tmp_path: Path) -> None:
    """One object on standard output, nothing on standard error, also when something is wrong."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(5))
    with http_receiver() as receiver:
        good = runspan("export", path, "--endpoint", receiver.url, "--json")
        bad = runspan("export", "-", "--endpoint", receiver.url, "--json", stdin=BAD, code=1)
    report = json.loads(good.stdout)
    assert (report["complete"], report["runs_accepted"], good.stderr) == (True, 5, "")
    report = json.loads(bad.stdout)
    assert (report["complete"], report["documents_refused"], bad.stderr) == (False, 1, "")
    assert report["refusals"][0]["what"] == "stdin:1 steps[0]"


def test_quiet_says_nothing_unless_something_is_wrong(tmp_path: Path) -> None:
    """Cron mails what a command prints."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(5))
    with http_receiver() as receiver:
        assert runspan("export", path, "--endpoint", receiver.url, "--quiet").output == ""
        assert "refused" in runspan("export", "-", "--endpoint", receiver.url, "--quiet", stdin=BAD, code=1).stderr
    assert "1 runs, " not in runspan("export", "-", "--dry-run", "--quiet", stdin=b'{"id":"a"}').stderr


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_an_endpoint_without_a_listener_ends_the_export_with_the_reason(tmp_path: Path) -> None:
    """It reports why it retries, then stops with a hint instead of reading on for minutes."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(2000))
    url = f"http://127.0.0.1:{unused_port()}"
    done = process("export", path, "--endpoint", url, "--retry-max-time", "2s", code=1)
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"runspan: {url}/v1/traces: ConnectError: ")
    assert lines[0].endswith("retrying for 2 s, press Ctrl-C to stop")
    assert lines[1].startswith("0 runs accepted, ")
    assert any(line.startswith(f"stopped: {url}/v1/traces took nothing for 2 s: ConnectError") for line in lines)
    assert lines[-1] == "  hint: is a receiver listening there? start one with: runspan serve"


@pytest.mark.parametrize(("status", "hint"), [(401, "RUNSPAN_API_KEY"), (403, "runs:write"), (404, "OTLP receiver")])
def test_a_refusal_comes_with_a_hint(tmp_path: Path, status: int, hint: str) -> None:
    """The report contains the receiver's response, and below it what to do."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(5))
    with http_receiver(lambda post: Answer(status)) as receiver:
        result = runspan("export", path, "--endpoint", receiver.url, code=1)
    assert f"HTTP {status}" in result.stderr
    assert re.search(f"  hint: .*{hint}", result.stderr)


@pytest.mark.parametrize(
    ("args", "env", "message"),
    [
        (("nothing-here.ndjson",), {}, "nothing-here.ndjson: expected a file or folder"),
        (("-", "--endpoint", "ftp://x"), {}, "endpoint: expected http://host:4318"),
        (("-", "--endpoint", "http://user:two@x"), {}, "endpoint: expected a URL without a login"),
        (("-",), {"OTEL_RESOURCE_ATTRIBUTES": "novalue"}, "OTEL_RESOURCE_ATTRIBUTES: expected key=value"),
        (("-",), {"RUNSPAN_API_KEY": "two\nlines"}, "RUNSPAN_API_KEY: expected one API key"),
        (("-",), {"RUNSPAN_API_KEY_FILE": "/no/such/file"}, "/no/such/file: expected a file with an API key"),
        (("-", "--concurrency", "0"), {}, "Invalid value for '--concurrency'"),
        ((), {}, "Missing argument 'FILE...'"),
    ],
)
def test_wrong_use_ends_with_2_before_anything_is_sent(
    args: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    """The message names what was wrong, and never quotes a key."""
    result = runspan("export", *args, code=2, stdin=b"", **env)
    assert message in result.stderr
    assert "two" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_export_with_its_report_and_130(tmp_path: Path, number: int) -> None:
    """The first batch is answered, the others are not: the report counts both."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(300))
    stuck, leave = threading.Event(), threading.Event()

    def answer(post: Post) -> Answer:
        if post.number > 1:
            stuck.set()
            leave.wait(60)
        return OK

    with http_receiver(answer) as receiver:
        args = ("export", path, "--endpoint", receiver.url, "--batch-spans", 50, "--concurrency", 1)
        with running(*args, "--timeout", "90s") as child:
            assert stuck.wait(60)
            assert child.end(number) == 130
        leave.set()
    output = "".join(child.lines)
    assert re.match(r"[1-9]\d* runs accepted", output)
    assert "stopped: interrupted" in output
    assert "without a response" in output
    assert "Traceback" not in output


def on_a_terminal(*args: object) -> str:
    """What a process shows on a terminal that is its standard error."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command(*args), stdout=subprocess.DEVNULL, stderr=theirs, env=environment(TERM="xterm", COLUMNS="120")
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:
        pass  # how Linux reports that the other side is closed
    os.close(ours)
    assert child.wait(60) == 0
    return shown.decode()


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    """It shows bytes and runs; --quiet hides it, and a pipe gets plain lines."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(300))
    with http_receiver() as receiver:
        args = ("export", path, "--endpoint", receiver.url)
        shown = on_a_terminal(*args)
        quiet = on_a_terminal(*args, "--quiet")
        piped = process(*args)
    assert "\x1b[" in shown
    assert "runs accepted" in shown.split("300 runs accepted, ")[0]
    assert quiet == ""
    assert b"\x1b" not in piped.stderr
    assert piped.stderr.count(b"\n") == 1
