"""``runspan list`` and ``runspan get``: the REST queries from a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runspan.cli.errors import escape_control
from runspan.cli.options import SECOND, STUCK_SECONDS, Duration, Seconds, Utf8Text, json_option, option, reading_options
from runspan.cli.resources import open_reader
from runspan.contracts import MAX_LIMIT, Cursor, Page, RunQuery, TraceReader
from runspan.errors import SettingError
from runspan.model.document import RUN_STATUSES
from runspan.model.json_scanner import members, string_value

_STYLES: Final = {
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "suspended": "magenta",
    "pending": "dim",
}
_WIDE: Final = 100_000
"""Columns where nobody looks: each run stays on one line, for grep and awk."""

_LONGEST: Final = 200
"""Characters of a cell."""


@click.command("list")
@reading_options
@option("--workflow", "workflow_id", type=Utf8Text(), metavar="ID", help="Only runs of this workflow.")
@option(
    "--status",
    type=click.Choice(RUN_STATUSES),
    metavar="STATUS",
    help=f"Only runs that are in this status now: {', '.join(RUN_STATUSES)}.",
)
@option(
    "--since",
    type=Duration(),
    metavar="TIME",
    help="Only runs that started in the last 1h, 24h, 7d, 30d, or any number of m, h or d.",
)
@option(
    "--stuck",
    type=Seconds(),
    metavar="[TIME]",
    is_flag=False,
    flag_value=f"{STUCK_SECONDS}s",
    help="Only runs that are stuck: pending or running, and not observed so for this long. Alone it means "
    f"{STUCK_SECONDS // 60}m. Suspended runs wait for people or events and are never among them.",
)
@option("--limit", type=click.IntRange(1), metavar="COUNT", default=50, help="How many, newest first.")
@option("--cursor", metavar="TOKEN", help="Go on after an earlier list, which printed the token on standard error.")
@json_option
def list_runs(
    data: str,
    backend: str | None,
    tenant: str,
    api_key_file: Path | None,
    workflow_id: str | None,
    status: str | None,
    since: int | None,
    stuck: float | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first.

    With --json: one summary per line, with the members that the platform's API documents.

    A run counts as observed whenever its snapshot was sent, changed or not: senders repeat the snapshots of runs that
    go on, and those of a run whose engine crashed are not repeated. --stuck finds these.

    \b
    Examples:
      runspan list --data ./data --status failed --since 24h
      runspan list --data ./data --stuck
      runspan list --backend tempo+http://127.0.0.1:3200 --stuck 1h --workflow wf_xyz789
      runspan list --backend http://127.0.0.1:8321 --workflow wf_xyz789
      runspan list --data ./data --limit 100000 --json | wc -l
    """
    after = Cursor.parse(cursor) if cursor else None
    reader = open_reader(backend, data, api_key_file)
    now = time.time_ns()
    oldest = None if since is None else max(0, now - since)
    stuck_before = None if stuck is None else max(0, now - int(stuck * SECOND))
    query = RunQuery(tenant, workflow_id, status, oldest, limit, after, stuck_before)
    rows: list[bytes] = []
    try:
        for page in _pages(reader, query):
            for note in page.partial:
                click.echo(f"runspan: the list is incomplete: {escape_control(note)}", err=True)
            if as_json:
                for item in page.items:
                    click.echo(_one_line(item))
            else:
                rows += page.items
            after = page.cursor
    finally:
        reader.close()
    if not as_json:
        _print_table(rows)
    if after is not None:
        click.echo(f"more: --cursor {after.token()}", err=True)


@click.command()
@click.argument("run_id", type=Utf8Text(), metavar="ID")
@reading_options
@option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="standard output",
    help="Write to this file.",
)
def get(run_id: str, data: str, backend: str | None, tenant: str, api_key_file: Path | None, out: Path | None) -> None:
    """Print one run document, exactly.

    The bytes are the document's canonical text without a line end, so that `runspan get ID | sha256sum` prints the
    attribute runspan.digest of the run's span.

    \b
    Examples:
      runspan get run_abc123 --data ./data | jq '.steps[] | select(.status == "failed")'
      runspan get run_abc123 --backend http://127.0.0.1:8321 --out run.json
    """
    reader = open_reader(backend, data, api_key_file)
    try:
        document = reader.document(run_id, tenant)
    finally:
        reader.close()
    for note in document.incomplete:
        click.echo(f"runspan: an older revision, because the newest is incomplete: {escape_control(note)}", err=True)
    if out is not None:
        _write(out, document.text)
        return
    sys.stdout.buffer.write(document.text)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _pages(reader: TraceReader, query: RunQuery) -> Iterator[Page]:
    """The pages that make up ``query.limit`` runs, each as large as a backend gives."""
    left, after = query.limit, query.cursor
    while left:
        page = reader.search(replace(query, limit=min(MAX_LIMIT, left), cursor=after))
        yield page
        left -= len(page.items)
        after = page.cursor
        if after is None:
            return


def _one_line(item: bytes) -> bytes:
    """JSON on one line: a line break in it can only be white space between tokens."""
    return item.replace(b"\n", b" ").replace(b"\r", b" ")


def _write(out: Path, text: bytes) -> None:
    try:
        out.write_bytes(text)
    except OSError as error:
        raise SettingError(
            where=f"--out {out}", expected="a file that can be written", got=error.strerror or str(error)
        ) from None


def _print_table(items: list[bytes]) -> None:
    if not items:
        click.echo("no runs match", err=True)
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RUN", no_wrap=True)
    for heading in ("WORKFLOW", "STATUS", "TRIGGER", "STARTED"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    table.add_column("DURATION", no_wrap=True, justify="right")
    table.add_column("ERROR", no_wrap=True, overflow="ellipsis")
    for item in items:
        run = _members(item.decode())
        status = _words(run.get("status", ""))
        table.add_row(
            Text(_words(run.get("id", ""))),
            Text(_words(run.get("workflowId", ""))),
            Text(status, style=_STYLES.get(status, "")),
            Text(_words(run.get("triggerType", ""))),
            Text(_words(run.get("startedAt", ""))),
            Text(_duration(run.get("durationMs", ""))),
            Text(_error(run.get("error", ""))),
        )
    # Rendered first and written by click: rich would answer a reader that went away with an exit of its own.
    with console.capture() as rendered:
        console.print(table)
    for line in rendered.get().splitlines():
        click.echo(line.rstrip())


def _members(text: str) -> dict[str, str]:
    """The members of an object, each as its own text: a payload may be nested too deep for a parser that recurses."""
    return {member.key: member.value_text for member in members(text, 0)}


def _words(text: str) -> str:
    """A JSON value in a cell: a string's own words, null as nothing, control characters made visible."""
    if text == "null":
        return ""
    words = escape_control(string_value(text) if text.startswith('"') else text)
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def _duration(text: str) -> str:
    try:
        seconds = float(text) / 1000
    except ValueError:
        return _words(text)
    if not isfinite(seconds):
        return _words(text)
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _error(text: str) -> str:
    return _words(_members(text).get("code", text) if text.startswith("{") else text)
