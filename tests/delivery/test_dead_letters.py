"""Dead letters: documents that a receiver did not accept are kept exactly, and an export can read them."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from runspan import Run
from runspan.codec.fields import RUN_ID
from runspan.delivery import DeadLetters
from runspan.sources import documents
from support.cli import generated, process, running, runspan, write_ndjson
from support.receivers import OK, Answer, Post, http_receiver, partial

AWKWARD = [
    b'{"id":"plain","status":"completed","steps":[]}',
    b'{"id":"lines","output":{"a":{}\n,"b":[\n{"c":1}\n,{}]},"steps":[]}',
    b'{"id":"brackets","input":"]\\n[{","output":[\n]}',
    '{"id":"ü/💥","output":{"total": 12.10, "big": 1e400},"steps":[]}'.encode(),
    b'{"id":"crlf","output":{\r\n"x":\r\n{\r\n}}}',
    b'{"id":"last"}',
]


def texts_in(path: Path) -> list[bytes]:
    """The documents of a file as an export reads them."""
    found = list(documents(str(path)))
    assert all(isinstance(each, Run) for each in found), found
    return [each.text for each in found if isinstance(each, Run)]


def run_ids(post: Post) -> set[str]:
    return {pair.value.string_value for span in post.spans for pair in span.attributes if pair.key == RUN_ID}


@pytest.mark.parametrize("order", [1, -1])
def test_every_text_is_read_back_exactly(tmp_path: Path, order: int) -> None:
    """Line breaks inside payloads and brackets inside strings included, in any order, over several openings."""
    texts = [Run.from_json(text).text for text in AWKWARD][::order]
    path = tmp_path / "left.ndjson"
    for half in (texts[:3], texts[3:]):
        with DeadLetters(str(path)) as letters:
            for text in half:
                letters.write_text(text)
    assert texts_in(path) == texts
    assert path.stat().st_mode & 0o077 == 0


def test_a_line_that_was_cut_off_does_not_swallow_the_next_document(tmp_path: Path) -> None:
    """A machine that died while writing leaves half a line; the next document starts a new line."""
    path = tmp_path / "left.ndjson"
    path.write_bytes(b'{"id":"whole"}\n{"id":"ha')
    with DeadLetters(str(path)) as letters:
        letters.write_text(b'{"id":"next"}')
    found = [each.id for each in documents(str(path)) if isinstance(each, Run)]
    assert found == ["whole", "next"]


def test_a_file_that_another_process_removed_is_created_again(tmp_path: Path) -> None:
    """The first of two exports with one file kept nothing and ends; what the second keeps is there."""
    path = tmp_path / "left.ndjson"
    with DeadLetters(str(path)) as first, DeadLetters(str(path)) as second:
        first.close()
        assert not path.exists()
        second.write_text(b'{"id":"b"}')
    assert second.kept == 1
    assert texts_in(path) == [b'{"id":"b"}']


def test_a_file_that_was_moved_away_is_created_again(tmp_path: Path) -> None:
    """A long-running process continues with a new file, and no document is in both."""
    path, moved = tmp_path / "left.ndjson", tmp_path / "moved.ndjson"
    with DeadLetters(str(path)) as letters:
        letters.write_text(b'{"id":"a"}')
        path.rename(moved)
        letters.write_text(b'{"id":"b"}')
    assert (texts_in(moved), texts_in(path)) == ([b'{"id":"a"}'], [b'{"id":"b"}'])
    assert (letters.kept, letters.lost) == (2, 0)


def test_a_document_is_never_written_into_a_file_that_is_being_removed(tmp_path: Path) -> None:
    """One process ends without a document at the moment at which another keeps one."""
    paths = [tmp_path / f"left-{number}.ndjson" for number in range(200)]
    together = threading.Barrier(2)

    def idle() -> None:
        for path in paths:
            with DeadLetters(str(path)):
                together.wait(60)

    def work() -> None:
        for path in paths:
            together.wait(60)
            with DeadLetters(str(path)) as letters:
                letters.write_text(b'{"id":"kept"}')

    threads = [threading.Thread(target=idle), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(texts_in(path) == [b'{"id":"kept"}'] for path in paths)


def test_lines_of_two_processes_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the system writes a line in parts."""
    path = tmp_path / "left.ndjson"
    write = os.write

    def in_parts(file: int, data: bytes) -> int:
        time.sleep(0.0001)
        return write(file, data[:50])

    monkeypatch.setattr(os, "write", in_parts)
    texts = {name: [b'{"id":"%s%d","input":"%s"}' % (name, n, b"x" * n) for n in range(60)] for name in (b"a", b"b")}

    def work(name: bytes) -> None:
        with DeadLetters(str(path)) as letters:
            for text in texts[name]:
                letters.write_text(text)

    threads = [threading.Thread(target=work, args=(name,)) for name in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts_in(path)) == sorted(text for each in texts.values() for text in each)


def test_rejected_runs_are_kept_and_sent_again(tmp_path: Path) -> None:
    """The file holds exactly the rejected documents; exporting it delivers them."""
    texts = generated(60, unfinished=True)
    bad = sorted(texts)[::7]
    path, left = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "left.ndjson"
    with http_receiver(lambda post: Answer(400) if run_ids(post) & set(bad) else OK) as receiver:
        result = runspan("export", path, "--endpoint", receiver.url, "--dead-letter", left, code=1)
        assert f"{len(bad)} documents kept in {left}; to send: runspan export {left}" in result.stderr
        assert f"  {len(bad)} times: " in result.stderr
    assert sorted(texts_in(left)) == sorted(texts[run_id] for run_id in bad)
    with http_receiver() as receiver:
        again = runspan("export", left, "--endpoint", receiver.url)
    assert again.stderr.startswith(f"{len(bad)} runs accepted")


def test_nothing_kept_leaves_no_file(tmp_path: Path) -> None:
    """An empty file would look like a loss; a document that cannot be carried is named in the report only."""
    path, left = write_ndjson(tmp_path / "runs.ndjson", generated(3)), tmp_path / "left.ndjson"
    with http_receiver() as receiver:
        runspan("export", path, "--endpoint", receiver.url, "--dead-letter", left)
        assert not left.exists()
        bad = runspan("export", "-", "--endpoint", receiver.url, "--dead-letter", left, stdin=b'{"no":"id"}', code=1)
    assert "stdin:1" in bad.stderr
    assert not left.exists()


def test_runs_of_which_spans_are_rejected_are_kept(tmp_path: Path) -> None:
    """A receiver that drops some spans of every request has no complete run."""
    texts = generated(5)
    path, left = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "left.ndjson"
    with http_receiver(lambda post: partial(1, "one was odd")) as receiver:
        runspan("export", path, "--endpoint", receiver.url, "--dead-letter", left, code=1)
    assert sorted(texts_in(left)) == sorted(texts.values())


def test_an_unreachable_receiver_leaves_every_document_of_standard_input(tmp_path: Path) -> None:
    """Sending stops, and standard input cannot be read again: the rest is kept too."""
    texts = generated(3000)
    left = tmp_path / "left.ndjson"
    lines = b"".join(text + b"\n" for text in texts.values())
    args = (
        "--endpoint",
        "http://127.0.0.1:1",
        "--retry-max-time",
        0,
        "--batch-spans",
        200,
        "--dead-letter",
        left,
        "--json",
    )
    result = runspan("export", "-", *args, stdin=lines, code=1)
    assert '"documents_kept": 3000' in result.stdout
    assert sorted(texts_in(left)) == sorted(texts.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_keeps_documents_without_a_response(tmp_path: Path, number: int) -> None:
    """Accepted and kept documents together are all that were read, whenever the signal arrives."""
    texts = generated(300)
    path, left = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "left.ndjson"
    stuck, leave = threading.Event(), threading.Event()
    taken: set[str] = set()

    def answer(post: Post) -> Answer:
        if post.number > 1:
            stuck.set()
            leave.wait(60)
        else:
            taken.update(run_ids(post))
        return OK

    with http_receiver(answer) as receiver:
        args = ("export", path, "--endpoint", receiver.url, "--batch-spans", 50, "--concurrency", 1, "--timeout", "90s")
        with running(*args, "--dead-letter", left) as child:
            assert stuck.wait(60)
            assert child.end(number) == 130
        leave.set()
    kept = texts_in(left)
    assert taken
    assert kept
    assert not taken & {run.id for run in map(Run.from_json, kept)}
    assert set(kept) <= set(texts.values())


def test_a_batch_that_is_never_accepted_is_sent_in_parts_though_no_other_was_accepted(tmp_path: Path) -> None:
    """Badger always responds 503 to a request with one span over its limit: the others arrive, that one is kept."""
    texts = generated(40)
    bad = sorted(texts)[20]
    path, left = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "left.ndjson"
    with http_receiver(lambda post: Answer(503) if bad in run_ids(post) else OK) as receiver:
        args = ("--endpoint", receiver.url, "--retry-max-time", "0.2s", "--batch-spans", 10_000, "--dead-letter", left)
        result = runspan("export", path, *args, code=1)
    assert result.stderr.startswith("39 runs accepted")
    assert f"{bad}: gave up: HTTP 503" in result.stderr
    assert texts_in(left) == [texts[bad]]


def test_a_missing_tenant_ends_the_export_at_once(tmp_path: Path) -> None:
    """Tempo's status is retryable, but a retry never helps; everything is kept, and the hint says what to set."""
    texts = generated(20)
    path, left = write_ndjson(tmp_path / "runs.ndjson", texts), tmp_path / "left.ndjson"
    words = Answer(503, b"no org id", content_type="text/plain")
    with http_receiver(lambda post: words) as receiver:
        result = runspan("export", path, "--endpoint", receiver.url, "--dead-letter", left, code=1)
    assert len(receiver.posts) == 1
    assert "refuses: HTTP 503: no org id" in result.stderr
    assert "may not have been read" not in result.stderr
    assert "hint: name the tenant: OTEL_EXPORTER_OTLP_HEADERS=X-Scope-OrgID=NAME" in result.stderr
    assert sorted(texts_in(left)) == sorted(texts.values())


@pytest.mark.parametrize("form", ["same file", "folder", "link"])
def test_a_dead_letter_file_that_is_an_input_is_refused(tmp_path: Path, form: str) -> None:
    """It would grow while it is read."""
    folder = tmp_path / "runs"
    folder.mkdir()
    path = write_ndjson(folder / "runs.ndjson", generated(2))
    (tmp_path / "link.ndjson").symlink_to(path)
    read, left = {
        "same file": (path, path),
        "folder": (folder, folder / "left.ndjson"),
        "link": (path, tmp_path / "link.ndjson"),
    }[form]
    result = runspan("export", read, "--endpoint", "http://127.0.0.1:1", "--dead-letter", left, code=2)
    assert "expected a file of its own" in result.stderr
    assert "hint: rename the file" in result.stderr


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    """The export does not begin."""
    path = write_ndjson(tmp_path / "runs.ndjson", generated(2))
    with http_receiver() as receiver:
        left = tmp_path / "nowhere" / "left.ndjson"
        result = runspan("export", path, "--endpoint", receiver.url, "--dead-letter", left, code=2)
    assert "expected a file to keep documents in, got No such file or directory" in result.stderr
    assert receiver.posts == []


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    """A document that could not be kept is counted, no part of it remains, and the others are kept."""
    large = b'{"id":"large","input":"' + b"x" * 50_000 + b'"}'
    path = tmp_path / "left.ndjson"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with DeadLetters(str(path)) as letters:
            letters.write_text(b'{"id":"first"}')
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
            letters.write_text(large)
            letters.write_text(b'{"id":"second"}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (letters.kept, letters.lost, letters.write_error) == (2, 1, "File too large")
    assert texts_in(path) == [b'{"id":"first"}', b'{"id":"second"}']


def test_a_process_reads_its_own_dead_letters(tmp_path: Path) -> None:
    """The command that the report prints works unchanged."""
    path, left = write_ndjson(tmp_path / "runs.ndjson", generated(20)), tmp_path / "left runs.ndjson"
    with http_receiver(lambda post: Answer(400)) as receiver:
        done = process("export", path, "--endpoint", receiver.url, "--dead-letter", left, code=1)
    assert f"runspan export '{left}'" in done.stderr.decode()
    with http_receiver() as receiver:
        process("export", left, "--endpoint", receiver.url)
    assert len(receiver.posts) == 1
