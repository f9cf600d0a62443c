"""``runspan list`` and ``runspan get``: the REST queries from a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Final, get_args

import click
import msgspec
from rich.text import Text

from runspan.cli import options
from runspan.cli.output import escape_control, new_table, print_table
from runspan.codec.full_text import Match
from runspan.contracts import MAX_LIMIT, Cursor, Order, Page, RunQuery, TraceReader
from runspan.errors import ConfigError
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
_LONGEST_CELL: Final = 200
"""Characters of a cell."""


@click.command("list")
@options.backend
@options.workflow("List")
@options.option(
    "--status",
    type=click.Choice(RUN_STATUSES),
    multiple=True,
    metavar="STATUS",
    help=f"List only runs whose current status is this: {', '.join(RUN_STATUSES)}. Repeat it for several.",
)
@options.start_range("List", "at this time or later", "before it")
@options.option(
    "--ended-from",
    "ended_since",
    type=options.Moment(),
    metavar="TIME",
    help="List only runs that ended at this time or later, whenever they started. The newest start is first.",
)
@options.option(
    "--ended-to", "ended_until", type=options.Moment(), metavar="TIME", help="List only runs that ended before it."
)
@options.option(
    "--stuck",
    type=options.Duration(),
    metavar="[TIME]",
    is_flag=False,
    flag_value=f"{options.STUCK_AFTER}s",
    help="List only stuck runs: pending or running, with a heartbeat overdue by this much, "
    f"{options.STUCK_AFTER // 60}m without a TIME. Suspended runs wait for people or events and never count as stuck.",
)
@options.option("--trigger", type=options.Utf8Text(), metavar="TYPE", help="List only runs with this triggerType.")
@options.option(
    "--error-code", type=options.Utf8Text(), metavar="CODE", help="List only runs whose error has this code."
)
@options.option(
    "--min-duration",
    type=options.Duration(),
    metavar="TIME",
    help="List only runs that took this long or longer, such as 90s, 5m or 1h.",
)
@options.option(
    "--model", type=options.Utf8Text(), metavar="NAME", help="List only runs with a step that used this model."
)
@options.option("--step-type", type=options.Utf8Text(), metavar="TYPE", help="List only runs with a step of this type.")
@options.option(
    "--search",
    "text",
    type=options.Utf8Text(),
    metavar="TEXT",
    help="List only runs that contain this text, in upper or lower case, in an id, the name or type of a step, an "
    "error or a payload; show the step and what is around the text.",
)
@options.option(
    "--sort",
    "order",
    type=click.Choice(get_args(Order)),
    default="start",
    help="What the list is sorted by, the highest first. Runs without a duration or cost are last.",
)
@options.count("--limit", least=1, default=50, help="Maximum number of runs.")
@options.option(
    "--cursor", metavar="TOKEN", help="Continue an earlier list, which printed this token on standard error."
)
@options.as_json
def list_runs(
    backend: options.BackendOptions,
    workflow_id: str | None,
    status: tuple[str, ...],
    since: int | None,
    until: int | None,
    ended_since: int | None,
    ended_until: int | None,
    stuck: int | None,
    trigger: str | None,
    error_code: str | None,
    min_duration: int | None,
    model: str | None,
    step_type: str | None,
    text: str | None,
    order: Order,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List runs, newest first or by another order.

    With --json, each line is the summary of one run, with the members that the platform's API documents. With --search
    it has the member match too: the step, the member and the snippet in which the text is.

    Senders repeat the snapshots of a running run, changed or not, and each snapshot counts as an observation. The
    snapshots of a run whose engine crashed are not repeated: --stuck finds such runs.

    A store in a directory answers --trigger to --sort from an index, which `runspan serve` keeps unless it has
    --no-search. The command brings it up to date first; it says so if that takes too long.

    \b
    Examples:
      runspan list --data ./data --status failed --status timed_out --from 24h
      runspan list --data ./data --status failed --ended-from 2026-11-27 --ended-to 2026-11-28
      runspan list --data ./data --sort cost --from 24h --limit 10
      runspan list --data ./data --status failed --error-code RATE_LIMITED --step-type agent
      runspan list --data ./data --stuck
      runspan list --data ./data --search cus_4711
      runspan list --backend tempo+http://127.0.0.1:3200 --stuck 1h --workflow wf_xyz789
      runspan list --backend http://127.0.0.1:8321 --workflow wf_xyz789
      runspan list --data ./data --limit 100000 --json | wc -l
    """
    after = Cursor.parse(cursor) if cursor else None
    with closing(backend.open_reader()) as reader:
        query = RunQuery(
            tenant=backend.tenant,
            workflow_id=workflow_id,
            status=status or None,
            since=since,
            until=until,
            limit=limit,
            cursor=after,
            stuck_before=None if stuck is None else max(0, time.time_ns() - stuck),
            ended_since=ended_since,
            ended_until=ended_until,
            trigger=trigger,
            error_code=error_code,
            min_duration=min_duration,
            model=model,
            step_type=step_type,
            text=text,
            order=order,
        )
        matches: dict[str, Match] = {}
        items: list[bytes] = []
        for page in _pages(reader, query):
            for note in page.partial:
                click.echo(f"runspan: the list is incomplete: {escape_control(note)}", err=True)
            if as_json:
                for item in page.items:
                    click.echo(_one_line(item if text is None else _with_match(item, page.matches)))
            else:
                items += page.items
                matches |= page.matches
            after = page.cursor
    if not as_json:
        if text is None or not items:
            _print_runs(items)
        else:
            _print_matches(items, matches)
    if after is not None:
        click.echo(f"more: --cursor {after.token()}", err=True)


@click.command()
@click.argument("run_id", type=options.Utf8Text(), metavar="ID")
@options.backend
@options.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="standard output",
    help="Write the document to this file.",
)
def get(run_id: str, backend: options.BackendOptions, out: Path | None) -> None:
    """Print one run document, exactly.

    The output is the document's canonical text without a line break at its end, so that `runspan get ID | sha256sum`
    prints the attribute runspan.digest of the run span.

    \b
    Examples:
      runspan get run_abc123 --data ./data | jq '.steps[] | select(.status == "failed")'
      runspan get run_abc123 --backend http://127.0.0.1:8321 --out run.json
    """
    with closing(backend.open_reader()) as reader:
        document = reader.document(run_id, backend.tenant)
    for note in document.incomplete:
        click.echo(f"runspan: an older revision, because the newest is incomplete: {escape_control(note)}", err=True)
    for digest in document.conflict:
        click.echo(f"runspan: another document was sent as this revision: SHA-256 {escape_control(digest)}", err=True)
    if out is not None:
        try:
            out.write_bytes(document.text)
        except OSError as error:
            got = error.strerror or str(error)
            raise ConfigError(where=f"--out {out}", expected="a writable file", got=got) from None
        return
    sys.stdout.buffer.write(document.text)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _pages(reader: TraceReader, query: RunQuery) -> Iterator[Page]:
    """Yield the pages that make up ``query.limit`` runs, each as large as the backend allows."""
    left, after = query.limit, query.cursor
    while left:
        page = reader.search(replace(query, limit=min(MAX_LIMIT, left), cursor=after))
        yield page
        left -= len(page.items)
        after = page.cursor
        if after is None:
            return


def _one_line(item: bytes) -> bytes:
    """Return JSON on one line: a line break in it can only be white space between tokens."""
    return item.replace(b"\n", b" ").replace(b"\r", b" ")


def _with_match(item: bytes, matches: Mapping[str, Match]) -> bytes:
    """Return a list item with where the run contains the text that was searched for as its last member."""
    return b'%b,"match":%b}' % (item.rstrip()[:-1], msgspec.json.encode(matches[_run_id(item)]))


def _run_id(item: bytes) -> str:
    return string_value(_members(item.decode())["id"])


def _print_runs(items: list[bytes]) -> None:
    if not items:
        click.echo("no runs match", err=True)
        return
    headings = ("RUN", "WORKFLOW", "STATUS", "TRIGGER", "STARTED", "DURATION", "ERROR")
    table = new_table(*headings, right=("DURATION",))
    for item in items:
        run = _members(item.decode())
        status = _cell(run.get("status", ""))
        table.add_row(
            Text(_cell(run.get("id", ""))),
            Text(_cell(run.get("workflowId", ""))),
            Text(status, style=_STYLES.get(status, "")),
            Text(_cell(run.get("triggerType", ""))),
            Text(_cell(run.get("startedAt", ""))),
            Text(_duration(run.get("durationMs", ""))),
            Text(_error(run.get("error", ""))),
        )
    print_table(table)


def _print_matches(items: list[bytes], matches: Mapping[str, Match]) -> None:
    """Print runs with where each contains the text that was searched for."""
    table = new_table("RUN", "WORKFLOW", "STATUS", "STARTED", "STEP", "MEMBER", "TEXT")
    for item in items:
        run = _members(item.decode())
        match = matches[_run_id(item)]
        status = _cell(run.get("status", ""))
        end = match.start + match.length
        parts = (match.snippet[: match.start], match.snippet[match.start : end], match.snippet[end:])
        before, found, after = map(escape_control, parts)
        table.add_row(
            Text(_cell(run["id"])),
            Text(_cell(run.get("workflowId", ""))),
            Text(status, style=_STYLES.get(status, "")),
            Text(_cell(run.get("startedAt", ""))),
            Text(
                _cut(escape_control(match.step_id or ""))
                + (f" ({match.execution})" if (match.execution or 1) > 1 else "")
            ),
            Text(_cut(escape_control(match.member))),
            Text.assemble(before, (found, "bold"), after),
        )
    print_table(table)


def _members(text: str) -> dict[str, str]:
    """Return the members of an object as text: payloads may be nested too deep for a recursive parser."""
    return {member.key: member.value_text for member in members(text, 0)}


def _cell(text: str) -> str:
    """Return a JSON value for a cell: strings without quotes, null as nothing, control characters escaped."""
    if text == "null":
        return ""
    return _cut(escape_control(string_value(text) if text.startswith('"') else text))


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONGEST_CELL else cell[: _LONGEST_CELL - 1] + "…"


def _duration(text: str) -> str:
    try:
        seconds = float(text) / 1000
    except ValueError:
        return _cell(text)
    if not isfinite(seconds):
        return _cell(text)
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _error(text: str) -> str:
    return _cell(_members(text).get("code", text) if text.startswith("{") else text)
