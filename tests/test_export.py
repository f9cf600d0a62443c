"""The export use case with a receiver: all documents arrive, and each of them is counted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runspan.export as export_module
from runspan import Run, decode, encode
from runspan.delivery import (
    GRPC,
    DeadLetters,
    ExporterConfig,
    ExportReport,
    HttpTransport,
    OtlpExporter,
    connect,
    exporter_config,
)
from runspan.errors import DocumentError
from runspan.export import TARGET_BYTES, batches, export
from runspan.model.span import Span
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource
from runspan.testing.generate import generate
from support.receivers import OK, Answer, Post, grpc_receiver, http_receiver

SAMPLES = sorted((Path(__file__).parent.parent / "examples" / "runs").glob("*.json"))
NOW = 1_790_000_000_000_000_000


def generated(count: int, seed: int = 7) -> list[Run]:
    return [Run.from_json(text) for text in generate(count, seed=seed, unfinished=True)]


def large_run(run_id: str, steps: int, payload: int) -> Run:
    step = {"name": "Fetch", "type": "action", "status": "completed", "startedAt": "2024-01-15T09:00:01.200Z"}
    listed = [
        {"id": f"s{n}", **step, "completedAt": "2024-01-15T09:00:02.800Z", "output": "x" * payload}
        for n in range(steps)
    ]
    return Run.from_dict({"id": run_id, "workflowId": "wf", "status": "completed", "steps": listed})


def documents_in(posts: list[Post]) -> dict[str, bytes]:
    """Return the documents of the received spans by run id."""
    traces: dict[bytes, list[Span]] = {}
    for post in posts:
        for span in read_protobuf(post.message.SerializeToString()).spans:
            traces.setdefault(span.trace_id, []).append(span)
    runs = [decode(spans) for spans in traces.values()]
    return {run.id: run.text for run in runs}


@pytest.mark.parametrize("corrections", [False, True])
def test_a_defect_of_the_encoder_costs_one_run(monkeypatch: pytest.MonkeyPatch, corrections: bool) -> None:
    """The others of its batch are sent, and the run is named in the report."""
    runs = generated(50)
    name = "encode" if corrections else "write_run"
    real = getattr(export_module, name)

    def failing(given: Any, **options: Any) -> Any:
        if given == runs[7]:
            raise ZeroDivisionError
        return real(given, **options)

    monkeypatch.setattr(export_module, name, failing)
    with http_receiver() as receiver, connect(exporter_config({}, endpoint=receiver.url)) as delivery:
        report = export(runs, delivery, observed_at=lambda: NOW, resource=Resource(), after_root=corrections)
    assert (report.runs_accepted, report.documents_refused, report.complete) == (49, 1, False)
    assert report.refusals[0].what == f"run {runs[7].id}"
    assert "internal error" in report.refusals[0].reason


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_every_sample_arrives_as_the_same_document(protocol: str) -> None:
    """All sample runs, exported over the protocol and decoded from the received spans, have equal texts."""
    runs = [Run.from_json(path.read_bytes()) for path in SAMPLES]
    receiving = grpc_receiver if protocol == GRPC else http_receiver
    with receiving() as receiver:
        config = exporter_config({}, endpoint=f"http://127.0.0.1:{receiver.port}", protocol=protocol)
        with connect(config) as delivery:
            report = export(runs, delivery, observed_at=lambda: NOW, resource=Resource())
    assert documents_in(receiver.posts) == {run.id: run.text for run in runs}
    assert report.complete
    assert report.runs_accepted == len(runs)
    assert report.spans_accepted == len(receiver.taken)


def test_refused_documents_are_counted_with_place_and_reason() -> None:
    """Documents that cannot be read are not sent but reported, and the others are sent."""
    good = generated(3)
    bad = DocumentError(where="runs.ndjson:2", expected="an object", got="a list")
    with http_receiver() as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        documents: list[Run | DocumentError] = [good[0], bad, *good[1:], bad]
        report = export(documents, delivery, observed_at=lambda: NOW, resource=Resource())
    assert (report.runs_accepted, report.documents_refused) == (3, 2)
    assert report.refusals[0].what == "runs.ndjson:2"
    assert report.refusals[0].reason == "expected an object, got a list"
    assert "  2 times: runs.ndjson:2, runs.ndjson:2: expected an object, got a list" in report.summary_lines()
    assert not report.complete


def test_resource_and_tenant_are_used() -> None:
    """The spans have the given resource, and their trace id depends on the tenant."""
    run = generated(1)[0]
    with http_receiver() as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        for tenant in ("", "acme"):
            resource = Resource("flows", {"service.namespace": "billing"})
            export([run], delivery, tenant=tenant, observed_at=lambda: NOW, resource=resource)
    resources = [post.message.resource_spans[0].resource for post in receiver.posts]
    assert {each.key: each.value.string_value for each in resources[0].attributes} == {
        "service.name": "flows",
        "service.namespace": "billing",
    }
    assert len({span.trace_id for span in receiver.taken}) == 2


def test_batches_have_about_the_target_and_never_divide_a_run() -> None:
    """Each batch reaches the target of spans with its last run, and runs keep their order."""
    runs = generated(200)
    made = list(batches(runs, observed_at=lambda: NOW, resource=Resource(), target_spans=64))
    assert [run.run_id for batch in made for run in batch.runs] == [run.id for run in runs]
    for batch in made[:-1]:
        assert batch.spans >= 64
        assert batch.spans - batch.runs[-1].span_count < 64


def test_a_batch_is_limited_in_bytes_and_a_larger_run_is_alone() -> None:
    """A batch is limited in bytes as well as in spans."""
    middle = [large_run(f"m{n}", 3, 300_000) for n in range(6)]
    huge = large_run("huge", 20, 300_000)
    made = list(batches([*middle[:3], huge, *middle[3:]], observed_at=lambda: NOW, resource=Resource()))
    assert ("huge",) in [tuple(run.run_id for run in batch.runs) for batch in made]
    assert all(batch.size <= TARGET_BYTES for batch in made if batch.runs[0].run_id != "huge")
    assert sum(len(batch.runs) for batch in made) == 7


def test_a_run_larger_than_a_request_arrives_completely() -> None:
    """A run larger than a request is sent in several requests and decodes to the same document."""
    huge = large_run("huge", 20, 400_000)
    with http_receiver() as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        report = export([huge], delivery, observed_at=lambda: NOW, resource=Resource())
    assert report.runs_accepted == 1
    assert len(receiver.posts) > 1
    assert max(post.size for post in receiver.posts) < 3_100_000
    assert documents_in(receiver.posts) == {"huge": huge.text}


def test_progress_is_reported_after_each_queued_request() -> None:
    """The counts never decrease and end with those of the report."""
    progress: list[ExportReport] = []
    with http_receiver() as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        report = export(
            generated(60),
            delivery,
            observed_at=lambda: NOW,
            resource=Resource(),
            target_spans=40,
            on_progress=progress.append,
        )
    assert len(progress) == len(receiver.posts)
    queued = [each.runs_accepted + each.runs_pending for each in progress]
    assert queued == sorted(queued)
    assert queued[-1] == report.runs_accepted == 60


def test_reading_stops_when_the_receiver_refuses_the_api_key() -> None:
    """An endless input is not read any further after HTTP 401."""
    read = 0

    def endless() -> Iterator[Run]:
        nonlocal read
        run = generated(1)[0]
        while True:
            read += 1
            yield run

    with http_receiver(lambda post: Answer(401)) as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        report = export(endless(), delivery, observed_at=lambda: NOW, resource=Resource())
    assert "HTTP 401" in report.stopped
    assert report.runs_accepted == 0
    assert 0 < report.runs_not_sent <= read


def test_an_interrupt_ends_the_export_with_a_report() -> None:
    """Ctrl-C during a retry returns at once, and every run that was read is counted."""

    def interrupted() -> Iterator[Run]:
        yield from generated(20)
        raise KeyboardInterrupt

    unavailable = Answer(503, headers={"Retry-After": "200"})
    with http_receiver(lambda post: unavailable) as receiver:
        delivery = OtlpExporter(HttpTransport(ExporterConfig(receiver.url)))
        report = export(interrupted(), delivery, observed_at=lambda: NOW, resource=Resource(), target_spans=40)
        final = delivery.close()
    assert report.stopped == "interrupted"
    assert final.runs_not_sent + final.runs_pending >= 1
    assert final.runs_accepted == 0


def test_an_error_of_the_input_is_raised() -> None:
    """An exception of the input reaches the caller, and the exporter does not wait for responses."""

    def broken() -> Iterator[Run]:
        yield from generated(20)
        raise OSError("disk gone")

    unavailable = Answer(503, headers={"Retry-After": "200"})
    with http_receiver(lambda post: unavailable) as receiver, pytest.raises(OSError, match="disk gone"):  # noqa: SIM117
        with connect(ExporterConfig(receiver.url)) as delivery:
            export(broken(), delivery, observed_at=lambda: NOW, resource=Resource(), target_spans=40)


def test_nothing_is_lost_if_the_receiver_often_fails() -> None:
    """Hundreds of runs arrive completely although every third request fails."""
    failures = (Answer(503, headers={"Retry-After": "1"}), Answer(0), Answer(429), Answer(504))

    def flaky(post: Post) -> Answer:
        return failures[post.number // 3 % 4] if post.number % 3 == 0 else OK

    runs = list({run.id: run for run in generated(400)}.values())
    with http_receiver(flaky) as receiver:
        transport = HttpTransport(ExporterConfig(receiver.url))
        with OtlpExporter(transport, sleep=lambda seconds: None) as delivery:
            report = export(runs, delivery, observed_at=lambda: NOW, resource=Resource(), target_spans=50)
    assert report.complete
    assert report.retries > 0
    assert documents_in(receiver.posts) == {run.id: run.text for run in runs}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("many", [30_000, pytest.param(60_000, marks=pytest.mark.campaign)])
def test_memory_does_not_grow_with_the_input(many: int) -> None:
    """Exporting many runs in a separate process takes less than 150 MB, and nothing of each run is kept.

    A run's text is 2.7 KB. How full the buffers get depends on which thread runs when: 20 MB more or less.
    """
    program = r"""
        import re, sys
        from pathlib import Path
        from runspan import Run
        from runspan.delivery import connect, exporter_config
        from runspan.export import export
        from runspan.otlp.protobuf_writer import Resource
        from runspan.testing.generate import generate

        with connect(exporter_config({}, endpoint=sys.argv[1])) as delivery:
            runs = (Run.from_json(text) for text in generate(int(sys.argv[2]), seed=3))
            report = export(runs, delivery, observed_at=lambda: 1, resource=Resource())
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(report.runs_accepted, peak[1])
    """
    peaks = {}
    with http_receiver() as receiver:
        receiver.receive = lambda body, **seen: (None, OK)  # type: ignore[assignment, method-assign]  # discards the body
        for count in (10_000, many):
            command = [sys.executable, "-c", textwrap.dedent(program), receiver.url, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            accepted, peak = map(int, done.stdout.split())
            assert accepted == count
            peaks[count] = peak
    assert peaks[many] < 150_000
    assert peaks[many] < peaks[10_000] + 1.35 * (many - 10_000)


@pytest.mark.parametrize("after_root", [False, True])
def test_a_document_that_cannot_be_encoded_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after_root: bool
) -> None:
    """It is refused by name and kept, and the others of its batch are confirmed."""
    runs = [Run.from_json(text) for text in generate(100, seed=3)]
    bad = runs[42]

    def failing(encode: Any) -> Any:
        def function(given: Any, *args: Any, **options: Any) -> Any:
            if given == bad:
                raise RecursionError("too deep")
            return encode(given, *args, **options)

        return function

    monkeypatch.setattr("runspan.export.write_run", failing(write_run))
    monkeypatch.setattr("runspan.export.encode", failing(encode))
    kept = tmp_path / "kept.ndjson"
    with (
        http_receiver() as receiver,
        DeadLetters(str(kept)) as letters,
        connect(ExporterConfig(receiver.url), dead_letters=letters) as delivery,
    ):
        report = export(runs, delivery, observed_at=lambda: 5, resource=Resource(), after_root=after_root)
    assert (report.runs_accepted, report.documents_refused, report.runs_pending) == (99, 1, 0)
    assert report.refusals[0].what == f"run {bad.id}"
    assert "RecursionError: too deep" in report.refusals[0].reason
    assert kept.read_bytes() == bad.text + b"\n"


def test_a_generator_is_read_lazily() -> None:
    """Documents are read one by one, only for the batch that is consumed."""
    read: list[str] = []

    def recorded() -> Iterator[Run]:
        for run in generated(100):
            read.append(run.id)
            yield run

    stream = batches(recorded(), observed_at=lambda: NOW, resource=Resource(), target_spans=20)
    first = next(iter(stream))
    assert len(read) == len(first.runs) < 100


def test_corrections_rank_above_the_ends_that_were_sent() -> None:
    """Each document becomes a revision above the root span, a later one above the earlier, in batches as usual."""
    runs = [run for run in generated(60) if run.finished]
    changed = [Run.from_dict(run.to_dict() | {"corrected": True}) for run in runs]
    with http_receiver() as receiver, connect(ExporterConfig(receiver.url)) as delivery:
        export(runs, delivery, observed_at=lambda: NOW, resource=Resource())
        for number, documents in enumerate((runs, changed)):
            report = export(
                documents, delivery, observed_at=lambda at=NOW + number: at, resource=Resource(), after_root=True
            )
    assert report.complete
    assert report.runs_accepted == 3 * len(runs)
    assert documents_in(receiver.posts) == {run.id: run.text for run in changed}
    roots = [span for post in receiver.posts for span in post.spans if not span.parent_span_id]
    assert len(roots) == len(runs)
