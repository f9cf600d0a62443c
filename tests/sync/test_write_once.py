"""A finished step of an unfinished run is sent once, and never omitted if the receiver may lack it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from runspan import Run
from runspan.codec.fields import ROLE_REVISION, ROLE_RUN, ROOT_REVISION
from runspan.errors import NotFound, TraceIncomplete
from runspan.export import ObservedRun
from runspan.otlp.bulk_writer import write_run
from runspan.otlp.protobuf_writer import single_spans
from runspan.storage.span_acks import KEEP
from runspan.sync.checkpoint import TrackedRun
from runspan.sync.context import MINUTE
from runspan.sync.queues import PlannedSend
from runspan.watch.poller import WatchedFile
from runspan.watch.service import MAX_HELD, MAX_HELD_BYTES, FileProgress, SnapshotCoalescer
from runspan.watch.state_db import FileStat, SendPlan
from support.cli import SAMPLES, generated, running, runspan
from support.faulty_platform import platform
from support.receivers import CLOSE, Answer, Post, partial
from support.sync import LocalServer, eventually, sync_command, sync_once
from support.watch import Bench
from support.write_once import (
    StoringReceiver,
    assert_sent_once,
    copy_counts,
    finished_step,
    growing_run,
    step_counts,
    storing_receiver,
)

EXTRA = 2
"""The spans of a running run besides its finished steps, their attempts and its revision: live, and the open step."""


def text(document: dict[str, Any]) -> bytes:
    """Return the canonical text of a document from a file."""
    return Run.from_json(json.dumps(document).encode()).text


@pytest.fixture
def failures() -> list[Answer]:
    """The next responses of the receiver, which does not store those requests."""
    return []


@pytest.fixture
def kept(tmp_path: Path, failures: list[Answer]) -> Iterator[StoringReceiver]:
    def answer(post: Post) -> Answer | None:
        return failures.pop(0) if failures else None

    with storing_receiver(tmp_path / "kept", answer) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path, kept: StoringReceiver) -> Iterator[Bench]:
    (tmp_path / "in").mkdir()
    made = Bench(tmp_path / "in", kept.url)
    yield made
    made.state.close()


def remembered(checkpoint: Path) -> int:
    """Return the number of acknowledged spans in a state file."""
    with closing(sqlite3.connect(checkpoint)) as connection:
        return int(connection.execute("SELECT coalesce(sum(length(digests)), 0) / 16 FROM spans").fetchone()[0])


def follow(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path, document: dict[str, Any], *args: object
) -> None:
    """Put a document on the platform and sync it. The receiver must have it then."""
    source.put(document)
    sync_command(source.url, kept.url, checkpoint, "--heartbeat", "0s", *args)
    assert kept.text(document["id"]) == source.documents()[document["id"]]


# Encoding.


def test_step_spans_depend_on_the_document_only() -> None:
    """So a snapshot, the end and a revision name the same steps by the same digests; and a run span that is written so
    is the one that an export writes, byte for byte."""
    runs = [Run.from_json(made) for made in generated(60, seed=17, unfinished=True).values()]
    runs += [Run.from_json(path.read_bytes()) for path in SAMPLES.glob("*.json")]
    for run in runs:
        first = ObservedRun(run, 5).encode("acme")
        assert len(first.step_digests) == len(first.spans) - 1 == len(set(first.step_digests))
        for other in (ObservedRun(run, 10**18), ObservedRun(run, 7, after_root=True)):
            assert other.encode("acme").step_digests == first.step_digests
            assert other.encode("acme").spans[:-1] == first.spans[:-1]
        assert set(ObservedRun(run, 5).encode("other").step_digests).isdisjoint(first.step_digests)
        if run.finished:
            root = PlannedSend(TrackedRun(run.id, 0), run, b"", ROOT_REVISION)
            assert root.observed.encode("acme").spans == single_spans(write_run(run, tenant="acme"))
        left = first.without(frozenset(first.step_digests[::2]))
        assert [*left.step_digests] == [*first.step_digests[1::2]]
        assert [*left.spans] == [*first.spans[1:-1:2], first.spans[-1]]
        assert left.size == sum(len(span) for _, span, _ in left.spans)


# Sync.


def test_a_run_that_is_synced_again_and_again_sends_each_step_once(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path
) -> None:
    """Five snapshots, each by a sync of its own, and the end: the steps that came before are left out of all of them,
    with their attempts; then nothing is remembered any more."""
    for number, done in enumerate((2, 4, 4, 7, 9)):
        follow(source, kept, checkpoint, growing_run("run_1", done, progress=number))
    assert remembered(checkpoint) == 9 + 3 + EXTRA
    follow(source, kept, checkpoint, growing_run("run_1", 10, "completed"))
    assert_sent_once(kept, 10)
    assert len(kept.copies(role=ROLE_REVISION)) == 5
    assert len(kept.copies(role=ROLE_RUN)) == 1
    assert remembered(checkpoint) == 0


def test_a_heartbeat_is_a_revision_span_only(source: LocalServer, kept: StoringReceiver, checkpoint: Path) -> None:
    """An unchanged run costs one span each time. The run is young, as heartbeats are rarer the older a run is."""
    source.put(growing_run("run_1", 5, startedAt=datetime.now(UTC).isoformat(timespec="milliseconds")))
    for _ in range(3):
        sync_command(source.url, kept.url, checkpoint, "--heartbeat", "0.001s")
    assert_sent_once(kept, 5)
    assert [len(post.spans) for post in kept.receiver.posts] == [5 + 1 + EXTRA + 1, 1, 1]


def test_a_step_whose_bytes_changed_is_sent_again(source: LocalServer, kept: StoringReceiver, checkpoint: Path) -> None:
    """And once more if it changes back: the receiver may keep only the steps of its newest revision."""
    states = []
    for note in ("first", "second", "first"):
        states.append(growing_run("run_1", 3))
        states[-1]["steps"][0] = finished_step(0, note=note)
        follow(source, kept, checkpoint, states[-1])
    follow(source, kept, checkpoint, states[-1] | {"status": "failed"})
    assert copy_counts(kept.copies()) == [1, 1, 1, 2]


def test_a_finished_run_that_changed_is_sent_completely(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path
) -> None:
    """Its revision has every step. A run that continues is followed as before."""
    follow(source, kept, checkpoint, growing_run("run_1", 3))
    follow(source, kept, checkpoint, growing_run("run_1", 4, "failed"))
    assert_sent_once(kept, 4)
    follow(source, kept, checkpoint, growing_run("run_1", 4, "failed", completedAt="2026-01-15T13:00:01.000Z"))
    assert copy_counts(kept.copies()) == [2, 2, 2, 2]
    follow(source, kept, checkpoint, growing_run("run_1", 4))
    follow(source, kept, checkpoint, growing_run("run_1", 5))
    follow(source, kept, checkpoint, growing_run("run_1", 5, "completed"))
    assert copy_counts(kept.copies()) == [1, 3, 3, 3, 3]


@pytest.mark.parametrize("answer", [CLOSE, Answer(503), Answer(400)], ids=["closed", "away", "refused"])
def test_only_acknowledged_steps_are_omitted(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path, failures: list[Answer], answer: Answer
) -> None:
    """If the receiver does not accept a snapshot, its steps are sent with the next one."""
    follow(source, kept, checkpoint, growing_run("run_1", 2))
    source.put(growing_run("run_1", 4))
    failures += [answer] * 3
    code = 1 if answer.status == 400 else 9
    sync_command(source.url, kept.url, checkpoint, "--retry-max-time", "0s", code=code)
    failures.clear()
    follow(source, kept, checkpoint, growing_run("run_1", 5, "suspended"))
    follow(source, kept, checkpoint, growing_run("run_1", 6, "completed"))
    if answer.status == 400:  # a refused run is followed again from the start once it changes
        assert copy_counts(kept.copies()) == [1, 1, 1, 1, 2, 2]
    else:
        assert_sent_once(kept, 6)


def test_partially_rejected_spans_are_sent_again(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path, failures: list[Answer]
) -> None:
    """If the receiver rejects some spans of several runs, all of them are sent again in smaller batches."""
    runs = [f"run_{number}" for number in range(3)]
    for run_id in runs:
        source.put(growing_run(run_id, 2))
    sync_command(source.url, kept.url, checkpoint)
    failures.append(partial(1, "no room"))
    for run_id in runs:
        source.put(growing_run(run_id, 4))
    sync_command(source.url, kept.url, checkpoint)
    for run_id in runs:
        assert kept.text(run_id) == source.documents()[run_id]
    # The first two steps of each, then two more: once in the request that was taken in part, and once alone.
    assert all(copy_counts(kept.copies(run_id)) == [1, 1, 2, 2] for run_id in runs)


def test_omitted_steps_expire(tmp_path: Path, source: LocalServer, checkpoint: Path) -> None:
    """Omitting a step does not renew its acknowledgement: the snapshot after the expiry has the step again."""
    passed, after = [0], {2: KEEP + MINUTE}

    def clock() -> int:
        return time.time_ns() + passed[0]

    def answer(post: Post) -> Answer | None:
        passed[0] = after.get(post.number, passed[0])
        return None

    with storing_receiver(tmp_path / "kept", answer) as kept:
        for done, since in ((2, 0), (3, KEEP - MINUTE), (4, KEEP + 2 * MINUTE)):
            passed[0] = since
            source.put(growing_run("run_1", done))
            sync_once(source.url, kept.url, checkpoint, clock=clock)
        assert step_counts(kept.receiver.posts) == [2, 1, 3]


def test_another_receiver_behind_the_same_address_gets_everything(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path
) -> None:
    """A header may select a tenant, so acknowledgements count for the same headers, without that of --replay."""
    args = ("--heartbeat", "0s")
    for done, tenant in ((2, "one"), (3, "one"), (4, "two"), (5, "two")):
        source.put(growing_run("run_1", done))
        headers = f"x-scope-orgid={tenant}" + (",x-runspan-replay=true" if done % 2 else "")
        sync_command(source.url, kept.url, checkpoint, *args, OTEL_EXPORTER_OTLP_HEADERS=headers)
    assert step_counts(kept.receiver.posts) == [2, 1, 4, 1]


def test_acknowledgements_of_gone_and_refused_runs_are_deleted(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path
) -> None:
    """Those of runs that are still followed stay."""
    for number in range(3):
        source.put(growing_run(f"run_{number}", 3))
    with platform(source.url) as mock:
        args = ("--heartbeat", "0s")
        sync_command(mock.url, kept.url, checkpoint, *args)
        assert remembered(checkpoint) == 3 * (3 + 1 + EXTRA)
        mock.vanished.add("run_0")
        mock.replaced["run_1"] = b'{"id":"run_1","status":"running","steps":[1]}'
        sync_command(mock.url, kept.url, checkpoint, *args, code=1)
        assert remembered(checkpoint) == 3 + 1 + EXTRA
        mock.vanished.clear()
        mock.replaced.clear()
        for number in range(3):
            source.put(growing_run(f"run_{number}", 4, "suspended"))
        sync_command(mock.url, kept.url, checkpoint, *args)
    assert kept.text("run_0") == source.documents()["run_0"]
    assert [copy_counts(kept.copies(f"run_{number}")) for number in range(3)] == [[1, 2, 2, 2], [1, 2, 2, 2], [1] * 4]


# Lost spans.


def lossy(kept: StoringReceiver, source: LocalServer, checkpoint: Path) -> bytes:
    """Sync a run of four steps, and lose the first snapshot with two of them. Return its document."""
    source.put(growing_run("run_1", 2))
    sync_command(source.url, kept.url, checkpoint)
    for document in (growing_run("run_1", 3), growing_run("run_1", 4, "completed")):
        source.put(document)
        sync_command(source.url, kept.url, checkpoint)
    return source.documents()["run_1"]


@pytest.mark.parametrize("repair", ["resend", "export"])
def test_a_lost_step_is_refused_and_can_be_brought_back(
    tmp_path: Path, source: LocalServer, checkpoint: Path, repair: str
) -> None:
    """The receiver lost what it acknowledged, so it returns no document. Sending the run again, by sync or from its
    document, repairs it."""
    lost = [Answer(body=b"\x0a\x00")]
    with storing_receiver(tmp_path / "lossy", lambda post: lost.pop() if lost else None) as kept:
        expected = lossy(kept, source, checkpoint)
        with pytest.raises((TraceIncomplete, NotFound)):
            kept.store.document("run_1")
        sync_command(source.url, kept.url, checkpoint, "--recheck", "9000d")
        with pytest.raises((TraceIncomplete, NotFound)):
            kept.store.document("run_1")
        if repair == "resend":
            report = sync_command(source.url, kept.url, checkpoint, "--resend", "9000d", "--replay")
            assert (report["counts"]["sent"], report["complete"]) == (1, True)
        else:
            file = tmp_path / "run.json"
            file.write_bytes(expected)
            runspan("export", file, "--endpoint", kept.url, "--replay")
        assert kept.text("run_1") == expected
        last = kept.receiver.posts[-1]
        assert last.headers["x-runspan-replay"] == "true"
        assert (step_counts([last]), len(kept.copies(role=ROLE_RUN))) == ([4], 1)
        assert sync_command(source.url, kept.url, checkpoint)["counts"]["sent"] == 0


def test_unfinished_runs_are_resent_completely_too(
    source: LocalServer, kept: StoringReceiver, checkpoint: Path
) -> None:
    """Those that started within --resend; the others are followed as before."""
    old = growing_run("run_old", 3)
    new = growing_run("run_new", 3, startedAt="2026-03-01T12:00:00.000Z", createdAt="2026-03-01T12:00:00.000Z")
    source.put(old, new)
    args = ("--heartbeat", "0s")
    sync_command(source.url, kept.url, checkpoint, *args)
    days = (datetime.now(UTC) - datetime(2026, 2, 1, tzinfo=UTC)).days
    sync_command(source.url, kept.url, checkpoint, *args, "--resend", f"{max(days, 1)}d")
    assert (copy_counts(kept.copies("run_old")), copy_counts(kept.copies("run_new"))) == ([1] * 3, [2] * 3)
    source.put(growing_run("run_old", 4), new | {"steps": [*new["steps"][:3], finished_step(3)]})
    sync_command(source.url, kept.url, checkpoint, *args)
    assert (copy_counts(kept.copies("run_old")), copy_counts(kept.copies("run_new"))) == ([1] * 4, [1, 2, 2, 2])


def test_a_service_does_not_resend_at_each_start(checkpoint: Path) -> None:
    """It would do so after every restart."""
    args = ("--state-file", checkpoint, "--follow", "--resend", "1d")
    done = runspan("sync", "http://127.0.0.1:9", *args, code=2)
    assert "--resend: expected a sync without --follow, got --follow" in done.stderr
    assert not checkpoint.exists()


# Watch.


def test_a_file_that_is_rewritten_sends_each_step_once(bench: Bench, kept: StoringReceiver) -> None:
    """With restarts, five snapshots and the end, and then a correction, which has every step."""
    state = bench.path / ".state"
    for number, done in enumerate((2, 4, 4, 7, 9)):
        document = growing_run("run_1", done, progress=number)
        bench.write("run.json", document)
        bench.poll()
        assert kept.text("run_1") == text(document)
        bench.state.close()
        assert remembered(state) == done + done // 3 + EXTRA
        bench.open()
    bench.write("run.json", growing_run("run_1", 10, "completed"))
    bench.poll()
    assert_sent_once(kept, 10)
    assert len(kept.copies(role=ROLE_REVISION)) == 5
    bench.state.close()
    assert remembered(state) == 0
    bench.open()
    bench.write("run.json", growing_run("run_1", 10, "completed", note="corrected"))
    bench.poll()
    assert copy_counts(kept.copies()) == [2] * 10


def test_versions_that_are_read_at_once_are_one(bench: Bench, kept: StoringReceiver) -> None:
    """Of several versions in a log, or in several files, the newest is sent; no step comes twice."""
    log = []
    for burst in ((1, 2, 3), (4, 5), (6,), (7, 8, 9)):
        log += [growing_run("run_1", done) for done in burst]
        bench.write("log.ndjson", *log)
        bench.write(f"b-{burst[0]}.json", growing_run("run_2", burst[0]))
        bench.write(f"c-{burst[0]}.json", growing_run("run_2", burst[-1]))
        bench.poll()
        assert kept.text("run_1") == text(growing_run("run_1", burst[-1]))
        assert kept.text("run_2") == text(growing_run("run_2", burst[-1]))
    bench.write("log.ndjson", *log, growing_run("run_1", 10), growing_run("run_1", 10, "completed"))
    bench.poll()
    assert_sent_once(kept, 10, run_id="run_1")
    assert_sent_once(kept, 9, run_id="run_2")
    assert (len(kept.copies("run_1", ROLE_REVISION)), len(kept.copies("run_2", ROLE_REVISION))) == (4, 4)
    posts = len(kept.receiver.posts)
    bench.restart()
    bench.poll(3)
    assert len(kept.receiver.posts) == posts
    assert bench.notes == []


def test_snapshots_wait_in_bounds() -> None:
    """The oldest is sent if there are too many, or if they are too large."""
    reading = FileProgress(WatchedFile(b"", "", FileStat(0, 0, 0, 0), 0.0))

    def put(versions: SnapshotCoalescer, run_id: str, at: int, status: str = "running", size: int = 0) -> list[str]:
        run = Run.from_dict({"id": run_id, "status": status, "output": "x" * size})
        return [
            found.run.id for found in versions.put(run, SendPlan((run_id.encode(), b"%d" % at), at, False), reading)
        ]

    versions = SnapshotCoalescer()
    for number in range(MAX_HELD):
        assert put(versions, f"run_{number}", number) == []
    assert put(versions, "run_0", MAX_HELD) == []
    assert put(versions, "more", 0) == ["run_1"]
    assert put(versions, "run_2", MAX_HELD, "completed") == ["run_2"]
    assert put(versions, "run_3", 0, "completed") == ["run_3"]
    rest = [version.run.id for version in versions.drain()]
    assert rest == [*(f"run_{number}" for number in range(3, MAX_HELD)), "run_0", "more"]
    assert put(versions, "large", 0, size=MAX_HELD_BYTES // 2) == []
    assert put(versions, "larger", 0, size=MAX_HELD_BYTES // 2) == ["large"]
    assert put(versions, "largest", 0, size=MAX_HELD_BYTES) == ["larger", "largest"]
    assert list(versions.drain()) == []


def test_a_version_that_takes_the_place_of_another_answers_for_its_file(
    bench: Bench, kept: StoringReceiver, failures: list[Answer]
) -> None:
    """Both files are finished once the newer version is accepted, and not before."""
    failures += [Answer(503)] * 4
    bench.write("a.json", growing_run("run_1", 1))
    bench.write("b.json", growing_run("run_1", 2))
    bench.poll(2)
    assert bench.poller.pending == 2
    failures.clear()
    (bench.path / "b.json").unlink()
    bench.poll(2)
    assert kept.text("run_1") == text(growing_run("run_1", 1))
    bench.write("b.json", growing_run("run_1", 2))
    bench.poll(3)
    assert kept.text("run_1") == text(growing_run("run_1", 2))
    assert bench.poller.pending == 0


def test_omitted_steps_of_a_file_expire(tmp_path: Path) -> None:
    """As for sync: one that expires while a snapshot without it is in flight is sent again with the next."""
    passed, after = [0], {2: KEEP + MINUTE}

    def answer(post: Post) -> Answer | None:
        passed[0] = after.get(post.number, passed[0])
        return None

    (tmp_path / "in").mkdir()
    with storing_receiver(tmp_path / "kept", answer) as kept:
        bench = Bench(tmp_path / "in", kept.url)
        bench.clock = lambda: time.time_ns() + passed[0]
        for done, since in ((2, 0), (3, KEEP - MINUTE), (4, KEEP + 2 * MINUTE)):
            passed[0] = since
            bench.write("run.json", growing_run("run_1", done))
            bench.poll()
        assert step_counts(kept.receiver.posts) == [2, 1, 3]
        bench.state.close()


def test_an_end_that_leaves_out_all_steps_forgets_them(bench: Bench, kept: StoringReceiver) -> None:
    """Nothing more is sent of the run, so nothing is remembered."""
    for status in ("suspended", "completed"):
        bench.write("run.json", growing_run("run_1", 3, status))
        bench.poll()
    assert_sent_once(kept, 3)
    bench.state.close()
    assert remembered(bench.path / ".state") == 0
    bench.open()


def test_a_step_that_changed_and_changed_back_in_a_file(bench: Bench, kept: StoringReceiver) -> None:
    """As for sync."""
    answers: list[dict[str, Any]] = []
    for note in ("first", "second", "first", "second", "first"):
        document = growing_run("run_1", 3)
        document["steps"][0] = finished_step(0, note=note)
        answers.append(document)
        bench.write("run.json", document)
        bench.poll()
        assert kept.text("run_1") == text(document)
    assert copy_counts(kept.copies()) == [1, 1, 2, 3]


def test_an_outage_repeats_no_acknowledged_step(bench: Bench, kept: StoringReceiver, failures: list[Answer]) -> None:
    """Acknowledgements stay; what the receiver did not accept is sent when it is back."""
    bench.write("run.json", growing_run("run_1", 2))
    bench.poll()
    failures += [Answer(503)] * 9
    for done in (3, 4):
        bench.write("run.json", growing_run("run_1", done))
        bench.poll()
    failures.clear()
    bench.write("run.json", growing_run("run_1", 5))
    bench.poll()
    assert kept.text("run_1") == text(growing_run("run_1", 5))
    assert_sent_once(kept, 5)


def test_files_that_an_outage_kept_from_being_read_are_sent_later(
    bench: Bench, kept: StoringReceiver, tmp_path: Path, failures: list[Answer]
) -> None:
    """An exporter that has stopped ends the round; the remaining files are read later."""
    bench.state.close()
    (tmp_path / "many").mkdir()
    many = Bench(tmp_path / "many", kept.url, target_spans=3)  # type: ignore[arg-type]
    for number in range(40):
        many.write(f"{number:02}.json", *(growing_run(f"run_{number}_{each}", 1, "completed") for each in range(3)))
    failures += [Answer(503)] * 60
    many.poll(3)
    assert many.poller.pending == 40
    failures.clear()
    many.poll(3)
    assert many.sent() == 120
    many.state.close()
    bench.open()


def test_another_tenant_of_the_receiver_gets_everything_from_the_command(tmp_path: Path, kept: StoringReceiver) -> None:
    """As for sync, by the command."""
    folder = tmp_path / "in"
    folder.mkdir()
    args = ("export", "--watch", folder, "--endpoint", kept.url, "--poll", "0.1s")
    for done, tenant in ((2, "one"), (3, "one"), (4, "two")):
        (folder / "run.json").write_text(json.dumps(growing_run("run_1", done)))
        with running(*args, env={"OTEL_EXPORTER_OTLP_HEADERS": f"x-scope-orgid={tenant}"}) as child:
            eventually(lambda done=done: _has(kept, done))  # type: ignore[misc]
            assert child.end() == 0
    assert step_counts(kept.receiver.posts) == [2, 1, 4]


def _has(kept: StoringReceiver, done: int) -> bool:
    try:
        return kept.store.document("run_1").text == text(growing_run("run_1", done))
    except NotFound:
        return False
