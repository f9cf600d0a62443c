"""``runspan sync`` from a server to a server, behind a platform that fails, changes and forgets."""

from __future__ import annotations

import json
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from runspan.codec.fields import REVISION, ROLE, ROLE_REVISION, ROLE_RUN, ROOT_REVISION
from runspan.errors import BackendError
from runspan.model.document import Run
from runspan.model.span import run_ids
from runspan.sync.checkpoint import Checkpoint, TrackState, sync_binding
from runspan.web.api_keys import ApiKeyStore
from support.cli import generated, process, running, runspan, server
from support.faulty_platform import EVERY_KIND, Faults, failure, platform
from support.receivers import OK, Answer, Post, http_receiver, partial
from support.sync import LocalServer, eventually, make_directory, run_document, run_ids_of, sync_command, sync_once


def test_every_document_arrives_as_it_is(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """Finished and unfinished ones; a second sync finds nothing new to send."""
    texts = generated(300, seed=8, unfinished=True)
    source.fill(*texts.values())
    report = sync_command(source.url, target.url, checkpoint)
    assert target.documents() == texts
    unfinished = sum(not Run.from_json(text).finished for text in texts.values())
    assert unfinished > 0
    counts = report["counts"]
    assert (counts["sent"], counts["snapshots"]) == (300 - unfinished, unfinished)
    assert report["complete"]
    again = sync_command(source.url, target.url, checkpoint)
    assert again["counts"]["fetched"] == again["counts"]["unchanged"] == unfinished
    assert again["complete"]


def test_the_oldest_runs_are_fetched_first(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """The platform deletes them first. The list is read before."""
    source.fill(*(run_document(f"run_{number}", start=number * 7919 % 3000) for number in range(450)))
    with platform(source.url) as mock:
        sync_command(mock.url, target.url, checkpoint, "--concurrency", 1)
        asked = mock.documents_asked()
        starts = [int(run_id.removeprefix("run_")) * 7919 % 3000 for run_id in asked]
        assert starts == sorted(starts)
        assert len(starts) == 450
        assert [bool(page.get("cursor")) for page in mock.pages_asked()][:3] == [False, True, True]


def test_snapshots_are_superseded_by_the_run_span(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """At each moment the receiver returns the document that was sent last; the run span is written once."""
    for status in ("pending", "running", "suspended", "completed"):
        source.put(run_document("run_1", status))
        sync_command(source.url, target.url, checkpoint)
        assert target.documents() == source.documents()
    spans = [span.attributes() for span in target.store.spans(run_ids("run_1").trace_id)]
    assert [span[ROLE] for span in spans if span[ROLE] in (ROLE_RUN, ROLE_REVISION)] == [ROLE_RUN]


def test_a_finished_run_that_changed_becomes_a_revision(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """The list shows a change of status or times. The revision supersedes the run span, which stays."""
    source.put(run_document("run_1"), run_document("run_2"))
    sync_command(source.url, target.url, checkpoint)
    source.put(run_document("run_1", "failed", error={"code": "LATE", "message": "found out later"}))
    report = sync_command(source.url, target.url, checkpoint)
    assert (report["counts"]["revisions"], report["counts"]["fetched"]) == (1, 1)
    assert target.documents() == source.documents()
    (span,) = [
        span.attributes()
        for span in target.store.spans(run_ids("run_1").trace_id)
        if span.attributes()[ROLE] == ROLE_REVISION
    ]
    revision = span[REVISION]
    assert isinstance(revision, int)
    assert revision > ROOT_REVISION
    source.put(run_document("run_1"))
    sync_command(source.url, target.url, checkpoint)
    assert target.documents() == source.documents()


def test_a_change_that_lists_do_not_show_is_found_by_a_recheck(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """Only the documents differ, so they are not fetched without --recheck."""
    source.put(run_document("run_1", output={"total": 1}))
    sync_command(source.url, target.url, checkpoint)
    source.put(run_document("run_1", output={"total": 2}))
    sync_command(source.url, target.url, checkpoint)
    assert target.documents() != source.documents()
    report = sync_command(source.url, target.url, checkpoint, "--recheck", "9000d")
    assert report["counts"]["revisions"] == 1
    assert target.documents() == source.documents()


def test_what_the_receiver_has_is_not_transferred_again(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """A recheck of finished runs, and a look at an unfinished one, get 304 from a server of runspan, and the changed
    document."""
    ids = [f"run_{number}" for number in range(5)]
    source.put(*(run_document(run_id, output={"total": 1}) for run_id in ids), run_document("run_live", "running"))
    sync_command(source.url, target.url, checkpoint)
    assert responses(source) == {"200": 6}
    source.put(run_document("run_3", output={"total": 2}))
    counts = sync_command(source.url, target.url, checkpoint, "--recheck", "9000d")["counts"]
    assert (counts["fetched"], counts["unchanged"], counts["revisions"]) == (6, 5, 1)
    assert responses(source) == {"200": 7, "304": 5}
    assert target.documents() == source.documents()


def responses(server: LocalServer) -> dict[str, int]:
    """How many responses to requests for a run a server has sent, by their status."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    route = r'runspan_http_requests_total\{method="GET",route="/api/v1/runs/<run_id:run_id>",status="(\d+)"\} (\d+)'
    return {status: int(count) for status, count in re.findall(route, text)}


def test_runs_that_vanish_between_list_and_get_are_reported(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """They are requested a few times, and then counted as gone; the others arrive."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(5)))
    with platform(source.url, vanished={"run_1", "run_3"}) as mock:
        report = sync_command(mock.url, target.url, checkpoint)
        assert report["counts"]["gone"] == 2
        assert set(target.documents()) == {"run_0", "run_2", "run_4"}
        assert mock.documents_asked().count("run_1") == 3
        assert report["complete"]
        mock.vanished.clear()
        sync_command(mock.url, target.url, checkpoint)
    assert target.documents() == source.documents()


BAD = {
    "run_twice": (b'{"id":"run_twice","id":"run_twice","status":"completed"}', "twice"),
    "run_steps": (b'{"id":"run_steps","status":"completed","steps":[1]}', "steps"),
    "run_other": (b'{"id":"another","status":"completed"}', "another"),
}


def test_documents_that_cannot_be_carried_are_reported_kept_and_remembered(
    source: LocalServer, target: LocalServer, checkpoint: Path, tmp_path: Path
) -> None:
    """The next syncs report them too, and fetch them only if they change, or with --retry-refused."""
    source.put(run_document("run_good"), *(run_document(run_id) for run_id in BAD))
    dead_letters = tmp_path / "checkpoint.dead-letters.ndjson"
    with platform(source.url, replaced={run_id: text for run_id, (text, _) in BAD.items()}) as mock:
        report = sync_command(mock.url, target.url, checkpoint, code=1)
        reasons = dict(report["refused_now"])
        assert reasons.keys() == BAD.keys()
        for run_id, (_, word) in BAD.items():
            assert word in reasons[run_id]
        assert set(dead_letters.read_bytes().splitlines()) == {text for text, _ in BAD.values()}
        assert (report["documents_kept"], report["kept_in"]) == (3, str(dead_letters))
        assert set(target.documents()) == {"run_good"}

        again = sync_command(mock.url, target.url, checkpoint, code=1)
        assert (again["refused_before"], again["counts"]["fetched"], again["complete"]) == (3, 0, False)
        assert dict(again["refused_earlier"]) == reasons

        assert sync_command(mock.url, target.url, checkpoint, "--retry-refused", code=1)["counts"]["refused"] == 3
        mock.replaced.clear()
        source.put(run_document("run_twice", "failed"))
        changed = sync_command(mock.url, target.url, checkpoint, code=1)
        assert (changed["counts"]["sent"], changed["refused_before"]) == (1, 2)
        sync_command(mock.url, target.url, checkpoint, "--retry-refused")
    assert target.documents() == source.documents()


def test_runs_that_the_receiver_refuses_are_kept_and_the_others_arrive(
    source: LocalServer, tmp_path: Path, checkpoint: Path
) -> None:
    """Although it does not say which spans it rejected: the request is sent again in halves."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(20)))
    refused = {"run_3", "run_11"}
    accepted: set[str] = set()

    def answer(post: Post) -> Answer:
        runs = run_ids_of(post)
        if refused & runs:
            return partial(3 * len(refused & runs), "it ended too long ago")
        accepted.update(runs)
        return OK

    with http_receiver(answer) as receiver:
        report = sync_command(source.url, receiver.url, checkpoint, code=1)
    assert {run_id for run_id, _ in report["refused_now"]} == refused
    assert accepted == {f"run_{number}" for number in range(20)} - refused
    dead_letters = (tmp_path / "checkpoint.dead-letters.ndjson").read_bytes().splitlines()
    assert {json.loads(line)["id"] for line in dead_letters} == refused


def test_filters_ask_the_platform_for_less(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """Each workflow and status has its own list; a state file belongs to its filter."""
    for number, (workflow, status) in enumerate(
        (workflow, status) for workflow in ("wf_1", "wf_2", "wf_3") for status in ("completed", "failed", "running")
    ):
        source.put(run_document(f"{workflow}_{status}", status, start=number, workflowId=workflow))
    args = ("--workflow", "wf_1", "--workflow", "wf_3", "--status", "failed", "--status", "running")
    with platform(source.url) as mock:
        sync_command(mock.url, target.url, checkpoint, *args)
        assert all(page["status"] in ("failed", "running") for page in mock.pages_asked())
        expected = {f"{workflow}_{status}" for workflow in ("wf_1", "wf_3") for status in ("failed", "running")}
        assert set(target.documents()) == expected
        # A run that was listed once is followed to its end, although it leaves the list.
        source.put(run_document("wf_1_running", "completed", workflowId="wf_1"))
        sync_command(mock.url, target.url, checkpoint, *args)
        assert target.documents()["wf_1_running"] == source.documents()["wf_1_running"]
        result = runspan("sync", mock.url, "--endpoint", target.url, "--state-file", checkpoint, code=2)
    assert "another workflow" in result.stderr


def test_since_is_where_a_first_sync_begins(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """The list is requested with one of the platform's windows, and older runs are not fetched."""
    old = run_document("run_old")
    recent = next(iter(generated(1, seed=4).values()))
    source.put(old, fresh(recent))
    with platform(source.url) as mock:
        sync_command(mock.url, target.url, checkpoint, "--since", "3h")
        assert mock.pages_asked()[0]["since"] == "24h"
    assert len(target.documents()) == 1
    assert "run_old" not in target.documents()


def fresh(text: bytes, hours: float = 1.0) -> dict[str, Any]:
    """Return the document with a start this many hours ago."""
    from datetime import UTC, datetime, timedelta

    start = (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return {**json.loads(text), "startedAt": start, "createdAt": start}


def test_a_later_sync_leaves_no_gap_however_long_ago_the_last_one_was(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """--since limits the first sync only; the next one resumes where it stopped, beyond its own --since."""
    text = next(iter(generated(1, seed=4).values()))
    source.put(fresh(text, 30) | {"id": "before"})
    sync_command(source.url, target.url, checkpoint, "--since", "40h")
    source.put(fresh(text, 20) | {"id": "meanwhile"}, fresh(text, 0.5) | {"id": "new"})
    sync_command(source.url, target.url, checkpoint, "--since", "2h")
    assert set(target.documents()) == {"before", "meanwhile", "new"}


def test_a_rescan_that_is_not_due_reads_only_the_top(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """For cron: new runs are found with a page or two; changes below wait for the next full scan."""
    source.fill(*(run_document(f"run_{number}", start=10 * number) for number in range(600)))
    sync_command(source.url, target.url, checkpoint)
    source.put(run_document("run_0", "failed"), run_document("run_new", start=10_000))
    report = sync_command(source.url, target.url, checkpoint, "--rescan", "1h")
    assert (report["counts"]["pages"], report["counts"]["sent"], report["counts"]["revisions"]) == (2, 1, 0)
    sync_command(source.url, target.url, checkpoint)
    assert target.documents() == source.documents()


def test_faults_of_every_kind_change_nothing(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """Rate limits, errors, stalls, truncated bodies, resets and repeated pages: everything arrives."""
    texts = generated(350, seed=21, unfinished=True)
    source.fill(*texts.values())
    with platform(source.url, faults=EVERY_KIND, seed=5) as mock:
        report = sync_command(mock.url, target.url, checkpoint)
        assert target.documents() == texts
        assert report["complete"]
        assert report["retries"] > 10
        assert set(mock.injected) >= {"error", "gateway", "slow", "cut", "torn", "reset"}
        assert report["requests"] == len(mock.arrivals)


def test_an_older_revision_is_waited_out(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """A server over Tempo returns one until the newest is complete: the run is fetched again."""
    source.put(run_document("run_1"))
    with platform(source.url) as mock:
        mock.incomplete = 1
        report = sync_command(mock.url, target.url, checkpoint)
        assert (report["counts"]["fetched"], report["counts"]["sent"]) == (2, 1)
    assert target.documents() == source.documents()


def test_repeated_pages_change_nothing(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """Half of all pages are the previous one: the scan requests them again, and ends as usual."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(500)))
    with platform(source.url, faults=Faults(repeated=0.5), seed=2) as mock:
        sync_command(mock.url, target.url, checkpoint)
        assert mock.injected["repeated"] > 0
    assert len(target.documents()) == 500


def test_a_run_that_cannot_be_fetched_is_fetched_by_the_next_sync(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """It is reported, the others arrive, and the exit code is 1."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(6)))
    with platform(source.url) as mock:
        real = mock.answer

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            return (500, b"{}") if path.endswith("run_2") else real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        report = sync_once(mock.url, target.url, checkpoint)
        assert [run_id for run_id, _ in report.failing] == ["run_2"]
        assert (report.failing_count, report.backlog, report.complete) == (1, 1, False)
        assert set(target.documents()) == {f"run_{number}" for number in (0, 1, 3, 4, 5)}
        mock.answer = real  # type: ignore[method-assign]
        assert sync_once(mock.url, target.url, checkpoint).complete
    assert target.documents() == source.documents()


def test_an_unreadable_response_is_no_refusal(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """There is no document to refuse, so each sync fetches the run again, and reports it as failing."""
    source.put(*(run_document(f"run_{number}", start=number) for number in range(3)))
    with platform(source.url, replaced={"run_1": b'"no object"'}) as mock:
        for _ in range(2):
            report = sync_once(mock.url, target.url, checkpoint)
            assert [run_id for run_id, _ in report.failing] == ["run_1"]
            assert (report.complete, report.refused_now, report.refused_before) == (False, (), 0)
        mock.replaced.clear()
        assert sync_once(mock.url, target.url, checkpoint).counts.sent == 1


@pytest.mark.parametrize("page", [0, 2])
def test_a_list_that_cannot_be_read_ends_the_sync(
    source: LocalServer, target: LocalServer, checkpoint: Path, page: int
) -> None:
    """Not with success. Runs that were listed before are sent, and the next sync reads the complete list."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(450)))
    with platform(source.url) as mock:
        real, pages = mock.answer, []

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            if "?" in path and "/runs?" in path:
                pages.append(path)
                if len(pages) > page:
                    return 200, b'{"success":true,"data":[{"id":'
            return real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        with pytest.raises(BackendError):
            sync_once(mock.url, target.url, checkpoint, retry_max_time=0.5)
        mock.answer = real  # type: ignore[method-assign]
        assert sync_once(mock.url, target.url, checkpoint).complete
    assert len(target.documents()) == 450


def test_an_expired_cursor_restarts_the_scan(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """It begins again at the top."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(450)))
    with platform(source.url) as mock:
        real, refused = mock.answer, []

        def answer(path: str, headers: dict[str, str]) -> tuple[int, bytes]:
            if "cursor=" in path and len(mock.pages_asked()) == 3 and not refused:
                refused.append(path)
                return 400, failure("VALIDATION_ERROR", "the cursor has expired")
            return real(path, headers)

        mock.answer = answer  # type: ignore[method-assign]
        assert sync_command(mock.url, target.url, checkpoint)["counts"]["listed"] == 450
        assert refused
    assert len(target.documents()) == 450


# Ends.


def test_a_platform_that_does_not_respond_ends_a_sync_with_its_code(target: LocalServer, checkpoint: Path) -> None:
    """Code 9 and the address, after the report."""
    args = ("--endpoint", target.url, "--state-file", checkpoint, "--retry-max-time", "0s")
    result = runspan("sync", "http://127.0.0.1:9", *args, code=9)
    assert "0 runs sent" in result.stderr
    assert "runspan: http://127.0.0.1:9: " in result.stderr


def test_a_receiver_that_does_not_respond_ends_a_sync_and_the_next_resumes(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """Only acknowledged documents count as sent."""
    source.fill(*(run_document(f"run_{number}", start=number) for number in range(50)))
    with http_receiver(lambda post: Answer(503)) as receiver:
        args = ("--endpoint", receiver.url, "--state-file", checkpoint, "--retry-max-time", "1s")
        result = runspan("sync", source.url, *args, "--json", code=9)
    report = json.loads(result.stdout)
    assert (report["counts"]["sent"], report["backlog"], report["complete"]) == (0, 50, False)
    assert "took nothing for 1 s" in result.stderr
    with closing(Checkpoint(checkpoint, sync_binding(source.url, receiver.url))) as left:
        assert left.counts == {TrackState.NEW: 50}


def test_a_platform_that_asks_to_wait_for_long_ends_a_sync_with_its_code(
    source: LocalServer, target: LocalServer, checkpoint: Path
) -> None:
    """Code 8, with a hint when to sync again. No request is sent before."""
    with platform(source.url, limit=1, window=3600) as mock:
        sync_command(mock.url, target.url, checkpoint, code=8)
        assert mock.over_limit == 1


def test_a_refused_key_ends_a_sync_with_its_code(
    source: LocalServer, target: LocalServer, checkpoint: Path, tmp_path: Path
) -> None:
    """Code 7. The key comes from the environment or a file, is sent to the platform only, and never shown."""
    key_file = tmp_path / "key"
    key_file.write_text("wfk_from_the_file\n")
    source.put(run_document("run_1"))
    with platform(source.url, keys={"wfk_from_the_file"}) as mock:
        result = runspan(
            "sync",
            mock.url,
            "--endpoint",
            target.url,
            "--state-file",
            checkpoint,
            code=7,
            RUNSPAN_PLATFORM_API_KEY="wfk_wrong",
            RUNSPAN_API_KEY="wfk_of_the_receiver",
        )
        assert "RUNSPAN_PLATFORM_API_KEY" in result.stderr
        assert "wfk_" not in result.output
        sync_command(mock.url, target.url, checkpoint, "--platform-key-file", key_file)
        mock.keys = {"wfk_wrong"}
        sync_command(mock.url, target.url, checkpoint, RUNSPAN_PLATFORM_API_KEY="wfk_wrong")
    assert target.documents() == source.documents()


def test_keys_of_both_sides_and_a_tenant(tmp_path: Path) -> None:
    """Server to server, each with its own key, as real processes."""
    for name in ("a", "b"):
        with closing(ApiKeyStore(make_directory(tmp_path / name) / "keys.sqlite3")) as keys:
            secret, _ = keys.create("sync", tenant="acme")
            (tmp_path / f"{name}.key").write_text(secret)
    path = tmp_path / "runs.ndjson"
    texts = generated(30)
    path.write_bytes(b"\n".join(texts.values()))
    with server(tmp_path / "a") as (one, _), server(tmp_path / "b") as (two, _):
        process("export", path, "--endpoint", one, "--tenant", "acme", "--api-key-file", tmp_path / "a.key")
        args = ("--endpoint", two, "--tenant", "acme", "--state-file", tmp_path / "cp")
        keys = ("--platform-key-file", tmp_path / "a.key", "--api-key-file", tmp_path / "b.key")
        process("sync", one, *args, *keys)
        done = process("list", "--backend", two, "--json", "--limit", 100, "--api-key-file", tmp_path / "b.key")
        assert len(done.stdout.splitlines()) == 30


def test_a_wrong_address_is_reported_at_once(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """A web page is not the platform's API."""
    with platform(source.url) as mock:
        mock.answer = lambda path, headers: (404, b"<html>")  # type: ignore[method-assign]
        result = runspan("sync", mock.url, "--endpoint", target.url, "--state-file", checkpoint, code=9)
        assert "base URL of the platform" in result.stderr
        assert len(mock.arrivals) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_sync_soon_and_the_next_resumes(
    source: LocalServer, target: LocalServer, checkpoint: Path, number: int
) -> None:
    """With a report and code 130. Everything that the receiver acknowledged is recorded."""
    texts = generated(250, seed=9)
    source.fill(*texts.values())
    with platform(source.url, faults=Faults(slow=1.0), pause=0.05) as mock:
        args = ("sync", mock.url, "--endpoint", target.url, "--state-file", checkpoint, "--json")
        with running(*args, prints_on="stdout") as child:
            eventually(lambda: len(mock.documents_asked()) > 60)
            assert child.end(number) == 130
            report = json.loads(child.lines[-1])
        assert report["stopped"] == "interrupted"
        arrived = len(target.documents())
        assert arrived == report["counts"]["sent"] < 250
        assert report["backlog"] == 250 - arrived
        mock.faults = Faults()
        assert sync_command(mock.url, target.url, checkpoint)["counts"]["sent"] == 250 - arrived
    assert target.documents() == texts


def test_a_report_for_people_and_none_for_cron(source: LocalServer, target: LocalServer, checkpoint: Path) -> None:
    """The report is printed on standard error; with --quiet only if something is wrong."""
    source.put(run_document("run_1"), run_document("run_2", "running"))
    args = ("sync", source.url, "--endpoint", target.url, "--state-file", checkpoint)
    result = runspan(*args)
    assert result.stdout == ""
    assert "1 run sent, 1 snapshot of unfinished runs" in result.stderr
    assert "1 run unfinished" in result.stderr
    assert runspan(*args, "--quiet").output == ""
