"""``runspan backup`` and ``runspan restore``: a data directory in one file, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from runspan.backends.sqlite.backup import BackupReport, OnProgress, restore_backup, write_backup
from runspan.cli import options
from runspan.cli.app import handle_signals
from runspan.cli.check import require_store
from runspan.cli.output import escape_control, print_hint, progress_display
from runspan.cli.state import KEYS_FILE
from runspan.delivery.report import plural

_overwrite = options.option(
    "--overwrite",
    is_flag=True,
    help="Replace what is there: the file of an older backup, or the files of a data directory, which are moved into "
    "its subfolder replaced-….",
)


@click.command()
@options.data
@options.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="File to write, in an existing directory other than --data.",
)
@_overwrite
@options.quiet
@options.as_json
def backup(data: str, target: Path, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Copy a data directory into one file, also while a server writes to it.

    The file has the runs as they are at one moment, with everything that was confirmed before, and the API keys, so
    that clients continue to work after a restore. It does not have the sessions: people log in again. Every document in
    it is read back and compared with its digest before the file gets its name; until then it is called FILE.partial. A
    damaged store is not backed up over a good backup: `runspan check` says what is damaged.

    The file is readable by its owner only (mode 0600), as it has what the store has: all payloads, and the hashes of
    the keys. It is an SQLite file, but no store: `runspan restore` makes one of it.

    \b
    Examples:
      runspan backup --data ./data --to /srv/backup/runspan-monday.backup --overwrite
      runspan backup --data ./data --to "/srv/backup/$(date +%F).backup" --quiet
      runspan restore --from /srv/backup/runspan-monday.backup --data ./data
    """
    # Over Tempo or Jaeger, and before the first start of a server, a directory has only keys.
    directory = Path(data) if Path(data, KEYS_FILE).exists() else require_store(data)
    began = time.monotonic()
    with handle_signals(), _progress(quiet=quiet or as_json) as on_progress:
        report = write_backup(directory, [KEYS_FILE], target, overwrite=overwrite, on_progress=on_progress)
    seconds = time.monotonic() - began
    if as_json:
        click.echo(json.dumps(_json(report) | {"file": str(target)}))
    elif not quiet:
        size = f"{report.bytes / 1e6:,.1f} MB"
        line = f"{target}: {_content(report)}, {size}, in {seconds:.1f} s; every document was verified"
        click.echo(escape_control(line), err=True)


@click.command()
@options.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="File that `runspan backup` has written.",
)
@options.data
@_overwrite
@options.quiet
@options.as_json
def restore(source: Path, data: str, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Put a backup into a data directory.

    The backup is copied and verified completely before anything is replaced: every document, list item, span and index,
    and the API keys. The directory must be empty, or not there. With --overwrite the store, keys and sessions in it are
    moved into its subfolder replaced-…, with a write-ahead log that a copy would have been mixed with; delete it when
    you do not need it.

    Stop the server first: while a server or another command has the directory open, nothing is changed. If the command
    is killed, or the power fails, the directory has either its old files or all of the new ones: when the new ones were
    complete, the next command that opens the directory finishes the restore, else run the restore again.

    \b
    Examples:
      runspan restore --from /srv/backup/runspan-monday.backup --data ./data
      runspan restore --from /srv/backup/runspan-monday.backup --data ./data --overwrite

    Runs that arrived after the backup are not in it. They were confirmed, so their senders do not repeat them. Send
    them again: `runspan sync --resend 7d`, or `runspan export` of files and archives.
    """
    began = time.monotonic()
    directory = Path(data)
    with handle_signals(), _progress(quiet=quiet or as_json) as on_progress:
        report = restore_backup(source, directory, overwrite=overwrite, on_progress=on_progress)
    seconds = time.monotonic() - began
    if as_json:
        replaced = None if report.replaced is None else str(report.replaced)
        click.echo(json.dumps(_json(report) | {"data": data, "replaced": replaced, "resumed": report.resumed}))
    elif not quiet:
        how = "finished the restore that was interrupted" if report.resumed else "restored"
        line = f"{data}: {how}: {_content(report)}, in {seconds:.1f} s; every document was verified"
        click.echo(escape_control(line), err=True)
        if report.replaced is not None:
            click.echo(escape_control(f"  the files that were there are in {report.replaced}"), err=True)
        print_hint("runs that arrived after the backup are not in it; `runspan restore -h` says how to send them again")


@contextmanager
def _progress(*, quiet: bool) -> Iterator[OnProgress]:
    with progress_display(quiet=quiet, unit="", line_every=30) as display:

        def show(what: str, done: int, total: int) -> None:
            unit = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if what == "copying" else f"{done:,} of {total:,} rows"
            share = f"{done / total:.0%} ({unit})" if done and total else "pages and indexes"
            display.update(f"{what} {share}")

        yield show


def _content(report: BackupReport) -> str:
    keys = ", with the API keys" if KEYS_FILE in report.files else ", without API keys, as there are none"
    return f"{plural(report.runs, 'run')}{keys}"


def _json(report: BackupReport) -> dict[str, Any]:
    return {"runs": report.runs, "apiKeys": KEYS_FILE in report.files, "bytes": report.bytes}
