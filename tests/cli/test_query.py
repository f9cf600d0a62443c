"""``runspan list`` and ``runspan get``: over a store's directory and over a server, with the same answers."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import DIGEST
from runspan.model.span import run_ids
from runspan.web.app import create_app
from support.cli import SAMPLES, command, environment, generated, process, runspan, write_ndjson
from support.web import document, serving

TEXTS = generated(450, seed=9, unfinished=True)
SAMPLE_RUNS = [Run.from_json(path.read_bytes()) for path in sorted(SAMPLES.glob("*.json"))]
Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with generated runs, and the samples as another tenant's."""
    folder = tmp_path_factory.mktemp("data")
    with SqliteStore(folder) as store:
        for text in TEXTS.values():
            store.put(Run.from_json(text), observed_at=1)
        for run in SAMPLE_RUNS:
            store.put(run, tenant="acme", observed_at=1)
    return folder


@pytest.fixture(scope="module")
def url(data: Path) -> Iterator[str]:
    with SqliteStore(data) as store, serving(create_app(store, store)) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(params=["data", "backend", "server"])
def ask(request: pytest.FixtureRequest, data: Path) -> Ask:
    """The command with the store named in each of the three ways."""
    place: tuple[str, ...] = ("--data", str(data))
    if request.param == "backend":
        place = ("--backend", f"sqlite:{data}")
    elif request.param == "server":
        place = ("--backend", request.getfixturevalue("url"))
    return lambda *args, **more: runspan(*args, *place, **more)


def test_get_prints_the_exact_bytes(ask: Ask, tmp_path: Path) -> None:
    """Nothing is added: no line end, no formatting, to standard output as to a file."""
    for run_id in list(TEXTS)[:20]:
        assert ask("get", run_id).stdout_bytes == TEXTS[run_id]
    out = tmp_path / "run.json"
    assert ask("get", run_id, "--out", out).output == ""
    assert out.read_bytes() == TEXTS[run_id]


def test_get_of_a_tenant_prints_every_sample(data: Path) -> None:
    """Each sample, with what once was hard about it, comes out as it went in."""
    for run in SAMPLE_RUNS:
        assert runspan("get", run.id, "--data", data, "--tenant", "acme").stdout_bytes == run.text
    runspan("get", SAMPLE_RUNS[0].id, "--data", data, code=5)


def test_the_digest_of_the_output_is_the_digest_of_the_span(data: Path) -> None:
    """``runspan get ID | sha256sum`` proves a document against its trace."""
    run_id, text = next((run_id, text) for run_id, text in TEXTS.items() if b'"status":"completed"' in text)
    shown = process("get", run_id, "--data", data).stdout
    assert shown == text
    with SqliteStore(data) as store:
        spans = store.spans(run_ids(run_id, "").trace_id)
    digests = {span.attributes().get(DIGEST) for span in spans} - {None}
    assert digests == {hashlib.sha256(shown).hexdigest()}


def test_list_pages_to_completeness_with_the_cursor(ask: Ask) -> None:
    """Every run once, newest first, over pages whose cursor is printed apart from the runs."""
    found: list[str] = []
    cursor: tuple[str, ...] = ()
    pages = 0
    while True:
        result = ask("list", "--limit", 120, "--json", *cursor)
        found += [json.loads(line)["id"] for line in result.stdout.splitlines()]
        pages += 1
        more = re.fullmatch(r"more: --cursor (\S+)\n", result.stderr)
        if more is None:
            assert result.stderr == ""
            break
        cursor = ("--cursor", more[1])
    assert pages == 4
    assert len(found) == len(set(found)) == len(TEXTS)
    whole = ask("list", "--limit", 100_000, "--json")
    assert [json.loads(line)["id"] for line in whole.stdout.splitlines()] == found


def test_list_items_are_the_summaries(ask: Ask) -> None:
    """With --json each line is the item that the API documents, verbatim."""
    lines = ask("list", "--limit", 500, "--json").stdout_bytes.splitlines()
    assert set(lines) == {Run.from_json(text).summary() for text in TEXTS.values()}


def test_list_filters_by_workflow_and_status(ask: Ask) -> None:
    """Filters are exact and combine."""
    documents = [json.loads(text) for text in TEXTS.values()]
    failed = {each["id"] for each in documents if each["status"] == "failed"}
    result = ask("list", "--status", "failed", "--limit", 500, "--json")
    assert {json.loads(line)["id"] for line in result.stdout.splitlines()} == failed != set()
    workflow = documents[0]["workflowId"]
    of_workflow = {each["id"] for each in documents if each["workflowId"] == workflow}
    result = ask("list", "--workflow", workflow, "--limit", 500, "--json")
    assert {json.loads(line)["id"] for line in result.stdout.splitlines()} == of_workflow
    both = ask("list", "--workflow", workflow, "--status", "failed", "--limit", 500, "--json")
    assert {json.loads(line)["id"] for line in both.stdout.splitlines()} == failed & of_workflow
    assert ask("list", "--workflow", "no such", "--json").output == ""


@pytest.mark.parametrize("over_http", [False, True])
def test_list_filters_by_age(tmp_path: Path, over_http: bool) -> None:
    """--from takes minutes, hours and days before now."""
    now = datetime.now(UTC)
    with SqliteStore(tmp_path) as store, serving(create_app(store, store)) as client:
        for hours in (1, 10, 100):
            started = (now - timedelta(hours=hours)).isoformat().replace("+00:00", "Z")
            store.put(Run.from_dict(document(f"run_{hours}", startedAt=started)), observed_at=time.time_ns())
        place = ("--backend", client.base_url) if over_http else ("--data", tmp_path)
        for since, expected in (("59m", []), ("2h", ["run_1"]), ("24h", ["run_1", "run_10"]), ("30d", 3)):
            lines = runspan("list", "--from", since, "--json", *place).stdout.splitlines()
            found = [json.loads(line)["id"] for line in lines]
            assert (len(found) if isinstance(expected, int) else found) == expected


def test_the_table_has_a_line_for_each_run(ask: Ask) -> None:
    """Without a terminal there is no colour, no padding and no cut id: the table is made for grep."""
    result = ask("list", "--limit", 30)
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["RUN", "WORKFLOW", "STATUS", "TRIGGER", "STARTED", "DURATION", "ERROR"]
    listed = [json.loads(line)["id"] for line in ask("list", "--limit", 30, "--json").stdout.splitlines()]
    assert [row.split()[0] for row in rows] == listed
    assert "\x1b" not in result.stdout
    assert all(row == row.rstrip() for row in rows)


def test_the_table_escapes_unusual_values(tmp_path: Path) -> None:
    """Control characters, markup, huge numbers and payloads nested too deep for a recursive parser stay in their
    line."""
    odd = (
        b'{"id":"run \\u001b[2J","workflowId":"[red]x","status":"odd\\nstatus","durationMs":1' + b"0" * 5000,
        b',"error":{"code":' + b"[" * 50_000 + b"]" * 50_000 + b',\n"message":"x"}}',
    )
    with SqliteStore(tmp_path) as store:
        store.put(Run.from_json(b"".join(odd)), observed_at=1)
        store.put(Run.from_dict(document("run_ms", durationMs=90_500)), observed_at=1)
        store.put(Run.from_dict(document("run_min", durationMs=600_000)), observed_at=1)
    result = runspan("list", "--data", tmp_path)
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 4
    assert "run \\x1b[2J" in result.stdout
    assert "[red]x" in result.stdout
    assert "90.5 s" in result.stdout
    assert "10.0 min" in result.stdout
    assert len(runspan("list", "--data", tmp_path, "--json").stdout.splitlines()) == 3


def test_a_terminal_that_is_not_utf_8_gets_characters_spelled_out(tmp_path: Path) -> None:
    """A run id in Japanese is no reason to fail."""
    with SqliteStore(tmp_path) as store:
        store.put(Run.from_dict(document("run_返金", workflowId="wf_返金")), observed_at=1)
    done = process("list", "--data", tmp_path, env={"PYTHONIOENCODING": "latin-1"})
    assert b"run_\\u8fd4\\u91d1" in done.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_goes_away_ends_the_list_quietly(data: Path, form: tuple[str, ...]) -> None:
    """``runspan list | head -1`` prints one line and no complaint."""
    args = command("list", "--data", data, "--limit", 5000, *form)
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        stderr = child.stderr.read()
        assert child.wait(60) == 141
    assert stderr == b""


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("get", "no such run"), 5, "run no such run"),
        (("list", "--cursor", "zzz"), 2, "cursor: expected meta.cursor"),
        (("list", "--status", "done"), 2, "Invalid value for '--status'"),
        (("list", "--from", "yesterday"), 2, "expected a time such as 2026-11-27T09:00:00Z"),
        (("list", "--limit", "0"), 2, "0 is not in the range x>=1"),
    ],
)
def test_wrong_questions_end_with_their_exit_code(ask: Ask, args: tuple[str, ...], code: int, message: str) -> None:
    """The same code over a directory and over a server."""
    result = ask(*args, code=code)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--data", "nowhere"), 2, "nowhere: no runs are kept here"),
        (("--backend", "sqlite:nowhere"), 2, "nowhere: no runs are kept here"),
        (("--backend", "sqlite:"), 2, "backend: expected sqlite:DIR"),
        (("--backend", "mysql://x"), 2, "hint: write sqlite:DIR, or http://HOST:PORT"),
        (("--backend", "http://user:pw@127.0.0.1"), 2, "expected a URL without a login"),
        (("--backend", "http://[::1"), 2, "backend: expected http://HOST:PORT"),
        (("--backend", "http://"), 2, "backend: expected http://HOST:PORT"),
        (("--backend", "http://127.0.0.1:9", "--api-key-file", "none"), 2, "none: expected a file with an API key"),
    ],
)
@pytest.mark.parametrize("name", ["list", "get"])
def test_a_place_without_runs_is_reported_and_never_created(
    name: str, args: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error must not leave an empty store behind, nor show an empty list."""
    monkeypatch.chdir(tmp_path)
    result = runspan(name, *(("run_1",) if name == "get" else ()), *args, code=code)
    assert message in result.stderr
    assert "pw" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told(data: Path, tmp_path: Path) -> None:
    """--out into a folder that does not exist."""
    out = tmp_path / "no" / "run.json"
    result = runspan("get", next(iter(TEXTS)), "--data", data, "--out", out, code=2)
    assert f"--out {out}: expected a writable file" in result.stderr


def test_a_damaged_store_ends_with_10(tmp_path: Path) -> None:
    """Whatever is in the file, it ends in two lines and never in an empty list."""
    (tmp_path / "runspan.sqlite3").write_bytes(b"no database at all" * 100)
    lines = runspan("list", "--data", tmp_path, code=10).stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"runspan: {tmp_path}/runspan.sqlite3: the file is no SQLite database")


def test_every_option_has_its_variable(data: Path, tmp_path: Path) -> None:
    """The environment sets options as well, and an option takes precedence."""
    env = {"RUNSPAN_DATA": str(data), "RUNSPAN_LIMIT": "3", "RUNSPAN_JSON": "1", "RUNSPAN_TENANT": "acme"}
    assert len(runspan("list", **env).stdout.splitlines()) == 3
    assert len(runspan("list", "--limit", 5, **env).stdout.splitlines()) == 5
    path = write_ndjson(tmp_path / "x.ndjson", generated(3))
    assert runspan("export", path, RUNSPAN_DRY_RUN="1").stdout.count("\n") == 3


@pytest.mark.parametrize("over_http", [False, True])
def test_search_prints_where_runs_contain_the_text(tmp_path: Path, over_http: bool) -> None:
    """The step, the member and what is around the text, whatever it consists of; with --json too."""
    step = {"id": "charge\u001b[2J", "type": "stripe", "output": {"customer": "cus_4711 [red]x\u001b[2J"}}
    with SqliteStore(tmp_path, index=True) as store, serving(create_app(store, store)) as client:
        first_run = document("run_1", steps=[{"id": "fetch"}, step, step])
        second_run = document("run_2", input={"customer": "cus_4711"})
        store.put(Run.from_dict(first_run), observed_at=1)
        store.put(Run.from_dict(second_run), observed_at=1)
        store.put(Run.from_dict(document("run_3")), observed_at=1)
        place = ("--backend", client.base_url) if over_http else ("--data", tmp_path)
        result = runspan("list", "--search", "CUS_4711", *place)
        listed = runspan("list", "--search", "CUS_4711", "--json", *place)
        refused = runspan("list", "--search", "47", *place, code=2)
    heading, second, first = result.stdout.splitlines()
    assert heading.split() == ["RUN", "WORKFLOW", "STATUS", "STARTED", "STEP", "MEMBER", "TEXT"]
    assert second.startswith("run_2 ")
    assert second.endswith('  input   "customer":"cus_4711"')
    assert re.search(r'run_1 .* charge\\x1b\[2J  output  "customer":"cus_4711 \[red\]x \[2J"$', first)
    items = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [item["id"] for item in items] == ["run_2", "run_1"]
    matches = [item.pop("match") for item in items]
    assert matches[0] == {"member": "input", "snippet": '"customer":"cus_4711"', "start": 12, "length": 8}
    assert matches[1].items() >= {"stepIndex": 1, "stepId": step["id"], "execution": 1, "member": "output"}.items()
    assert items == [json.loads(Run.from_dict(each).summary()) for each in (second_run, first_run)]
    assert "expected a text of 3 to 200 characters" in refused.stderr
