"""``runspan archive``: finished runs into files that are verified, and checked again any time later.

What `runspan archive` shows: counts while it works, and the report at its end.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from runspan.archive import (
    AgeRange,
    ArchiveCallbacks,
    ArchiveRequest,
    ArchiveResult,
    CollectedRun,
    PurgeReport,
    RetryingReader,
    create_archive,
    purge,
    unfinished,
)
from runspan.backends import open_store
from runspan.backends.remote.config import PREFIX, remote_config
from runspan.backends.sqlite import SqliteStore
from runspan.cli.errors import INCOMPLETE, escape_control, format_error, terminating
from runspan.cli.options import Duration, Seconds, json_option, option, reading_options
from runspan.cli.resources import api_key, is_remote, is_rest, open_reader
from runspan.errors import DocumentError, NotFound, SettingError, error_status
from runspan.model.run import Run
from runspan.sources.archive_manifest import PART_SUFFIXES, Manifest
from runspan.sources.archive_reader import archives_in, find_damage, manifest_of
from runspan.sources.filesystem import display_path, path_inside

_NAMED: Final = 5
_TELL_AGAIN_AFTER: Final = 30.0


class ArchiveBar:
    """Counts while it works. Silent without a ``Progress``."""

    def __init__(self, bar: Progress | None, *, quiet: bool = True) -> None:
        self._bar = bar
        self._quiet = quiet
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._task = bar.add_task("archive", words="looking", total=None) if bar else None
        self._runs = self._left = self._bytes = self._looked = 0

    def telling(self) -> ArchiveCallbacks:
        return ArchiveCallbacks(self._found, self.checked, self._other)

    def waiting(self, trouble: str, seconds: float) -> None:
        """The backend is asked again after so many seconds. Told once in a while, not by every worker."""
        with self._lock:
            now = time.monotonic()
            if self._quiet or now < self._silent_until:
                return
            self._silent_until = now + _TELL_AGAIN_AFTER
        self._note(f"{trouble}; trying again in {seconds:.0f} s, Ctrl-C ends it")

    def checked(self, size: int) -> None:
        """So many bytes were read back."""
        self._bytes += size
        written = f"{self._runs:,} runs written, " if self._runs else ""
        self._tell(f"{written}{self._bytes / 1e6:,.1f} MB read back")

    def purged(self, runs: int) -> None:
        """So many runs were looked at."""
        self._looked += runs
        self._tell(f"purging: {self._looked:,} runs looked at")

    def _found(self, found: CollectedRun) -> None:
        if isinstance(found.what, Run):
            self._runs += 1
        else:
            self._left += 1
        left = f", {self._left:,} left" if self._left else ""
        self._tell(f"{self._runs:,} runs{left}, back to {_moment(found.place.time)}")

    def _other(self, where: str, asked: str) -> None:
        self._note(
            f"{display_path(where)}: an unfinished archive of {asked}; its own command resumes it, this one starts anew"
        )

    def _note(self, words: str) -> None:
        """A line that stays, above the bar."""
        line = escape_control(f"runspan: {words}")
        if self._bar is not None:
            self._bar.console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line, err=True)

    def _tell(self, words: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, words=words)


@contextmanager
def archive_progress(*, quiet: bool) -> Iterator[ArchiveBar]:
    """Counts on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield ArchiveBar(None, quiet=quiet)
        return
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.fields[words]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ArchiveBar(bar, quiet=quiet)


def print_report(done: ArchiveResult, report: PurgeReport, *, purge: bool, quiet: bool, as_json: bool) -> None:
    """What came of it, for people or for programs."""
    left = done.manifest.left
    if as_json:
        click.echo(json.dumps(_json(done, report)))
        return
    if quiet and done.complete and not left.unfinished.runs and not report.changed:
        return
    place = display_path(done.path)
    if done.path:
        verb = "archived" if not done.resumed else "went on with an unfinished archive, and archived"
        click.echo(f"{verb} {about(done.manifest)}; every byte read back: {escape_control(place)}", err=True)
    else:
        click.echo("nothing to archive", err=True)
    for skips, words in (
        (left.unfinished, "left because they have not ended"),
        (left.incomplete, "NOT archived because their newest revision cannot be proved"),
        (left.vanished, "listed, and deleted before they could be read"),
        (left.unreadable, "NOT archived because they cannot be read"),
    ):
        if skips.runs:
            more = ", …" if skips.runs > _NAMED else ""
            click.echo(
                f"{_count(skips.runs, 'run')} {words}: {escape_control(', '.join(skips.some[:_NAMED]))}{more}", err=True
            )
    for line in done.manifest.partial:
        click.echo(f"the list was incomplete: {escape_control(line)}", err=True)
    if purge:
        _print_purge(report)
    if done.path:
        click.echo(f"to read it back in: {escape_control(shlex.join(('runspan', 'export', place)))}", err=True)


def _print_purge(report: PurgeReport) -> None:
    click.echo(f"{_count(report.deleted, 'run')} purged from the store", err=True)
    if report.spans:
        click.echo(f"  with {_count(report.spans, 'span')} of others in their traces, which no archive holds", err=True)
    if report.changed:
        named = ", ".join(report.named[:_NAMED])
        words = "stay because they changed meanwhile; the next archive has them as they are now"
        click.echo(f"{_count(report.changed, 'run')} {words}: {escape_control(named)}", err=True)


def _json(done: ArchiveResult, report: PurgeReport) -> dict[str, Any]:
    manifest = done.manifest
    return {
        "archive": display_path(done.path),
        "complete": done.complete,
        "resumed": done.resumed,
        "runs": manifest.runs,
        "documentBytes": manifest.document_bytes,
        "files": len(manifest.files),
        "left": msgspec.to_builtins(manifest.left),
        "partial": list(manifest.partial),
        "purged": asdict(report),
    }


def about(manifest: Manifest) -> str:
    """What an archive holds, in one line."""
    stored = sum(part.bytes for part in manifest.files)
    times = f", {_moment(manifest.oldest)} to {_moment(manifest.newest)}" if manifest.runs else ""
    tenant = f", of {escape_control(manifest.tenant)}" if manifest.tenant else ""
    return (
        f"{_count(manifest.runs, 'run')}{tenant}{times}, {manifest.document_bytes / 1e6:,.1f} MB in "
        f"{_count(len(manifest.files), 'file')} of {stored / 1e6:,.1f} MB"
    )


def _moment(time: int | None) -> str:
    if not time:
        return "an unknown time"
    return datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@click.command("archive")
@option(
    "--before",
    type=Duration(),
    metavar="TIME",
    help="Archive runs that started longer ago than this, such as 12h or 30d.",
)
@option(
    "--since",
    type=Duration(),
    metavar="TIME",
    show_default="all that there are",
    help="Only runs that started in the last 37d, or any number of m, h or d.",
)
@option(
    "--to",
    metavar="DIR|URL",
    help="Where the archive becomes a folder of its own: a directory, or a URL such as s3://bucket/prefix with "
    "`pip install 'runspan[objects]'`.",
)
@option(
    "--check",
    "checked",
    metavar="DIR|URL",
    help="Write nothing: prove that an archive, or each one in a folder, can be read back as it was written.",
)
@option(
    "--format",
    "compression",
    type=click.Choice(list(PART_SUFFIXES)),
    default="zstd",
    help="How the files are packed.",
)
@option(
    "--file-size",
    type=click.IntRange(1, 1024),
    metavar="MIB",
    default=32,
    help="Documents in one file, about, before packing. A file is packed in memory.",
)
@option(
    "--purge",
    is_flag=True,
    help="Then delete the archived runs from the embedded store, those that did not change meanwhile.",
)
@option(
    "--fetches",
    type=click.IntRange(1, 64),
    metavar="COUNT",
    default=4,
    help="Documents that are fetched at once.",
)
@option(
    "--give-up-after",
    type=Seconds(),
    metavar="TIME",
    default="5m",
    help="How long a backend that does not answer, or asks to wait, is asked again.",
)
@reading_options
@option("--quiet", is_flag=True, help="No progress, and a report only when something was left: for cron.")
@json_option
@click.pass_context
def archive_runs(
    ctx: click.Context,
    before: int | None,
    since: int | None,
    to: str | None,
    checked: str | None,
    compression: str,
    file_size: int,
    purge: bool,
    fetches: int,
    give_up_after: float,
    data: str,
    backend: str | None,
    tenant: str,
    api_key_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Keep finished runs as files, verified, before a retention deletes them.

    The archive is a folder of packed NDJSON with a manifest.json: counts, time range, and the SHA-256 of each file and
    of each document. Every byte is read back and every document proved before the archive gets its name; one that was
    killed has another name, and the same command goes on with it; one with another --before, --since or --tenant begins
    anew. Runs that have not ended are left, and counted.

    `runspan export` reads an archive back in, document by document as it was.

    \b
    Examples:
      runspan archive --before 30d --to /srv/archive --data ./data
      runspan archive --before 30d --to /srv/archive --data ./data --purge
      runspan archive --before 30d --to s3://bucket/runs --backend tempo+http://127.0.0.1:3200
      runspan archive --check /srv/archive
      runspan export /srv/archive/runspan-20261124T020000Z --endpoint http://127.0.0.1:8321

    The exit code is 0 if everything that had ended is in the archive, 1 if something is not, 3 if an archive is
    damaged.
    """
    quiet = quiet or as_json
    with terminating():
        if checked is not None:
            ctx.exit(_check(checked, quiet=quiet, as_json=as_json))
        if before is None or to is None:
            raise SettingError(
                where="archive",
                expected="--before TIME and --to DIR, or --check DIR",
                got="neither" if before is None and to is None else "one of the two",
                hint="runspan archive --before 30d --to ./archive",
            )
        now = time.time_ns()
        if since is not None and since <= before:
            raise SettingError(where="--since", expected="longer ago than --before", got="no time between the two")
        url = backend or f"sqlite:{data}"
        request = ArchiveRequest(
            tenant,
            max(0, now - before),
            None if since is None else max(0, now - since),
            _kind(url),
            _source(url, api_key_file),
            to,
            AgeRange(before, since),
            compression,
        )
        if purge and request.source != "sqlite":
            raise SettingError(
                where="--purge",
                expected="the embedded store, whose runs it can delete",
                got=f"a {request.source} backend",
                hint="leave --purge away: the backend's own retention deletes there",
            )
        with closing(open_reader(backend, data, api_key_file)) as reader, archive_progress(quiet=quiet) as bar:
            reading = RetryingReader(reader, fetches, time.sleep, give_up_after, bar.waiting)
            done = create_archive(request, reading, now=now, telling=bar.telling(), part_bytes=file_size << 20)
        report = PurgeReport()
        if purge and done.path:
            with closing(open_store(url)) as store, archive_progress(quiet=quiet) as bar:
                report = _purged(store, done, bar)
    print_report(done, report, purge=purge, quiet=quiet, as_json=as_json)
    ctx.exit(0 if done.complete else INCOMPLETE)


def _purged(store: SqliteStore, done: ArchiveResult, bar: ArchiveBar) -> PurgeReport:
    return purge(store, done.path, done.manifest, on_progress=bar.purged)


def _kind(url: str) -> str:
    return "rest" if is_rest(url) else url.partition("+")[0].lower() if is_remote(url) else "sqlite"


def _source(url: str, key_file: Path | None) -> str:
    """All that decides which runs a backend answers with, so that no archive goes on with those of another."""
    if is_rest(url):
        return f"{url} {api_key(key_file) or ''}"  # a server takes the company from the key
    if not is_remote(url):
        return f"sqlite:{os.path.realpath(url.removeprefix('sqlite:'))}"
    headers = [pair for pair in remote_config(url, os.environ).headers if pair[0] != "authorization"]
    return json.dumps([url, headers, os.environ.get(f"{PREFIX}SERVICES", "")])


# Checking.


def _check(place: str, *, quiet: bool, as_json: bool) -> int:
    """Every archive at a place; the exit code."""
    results = []
    worst = 0
    for folder in _archives(place):
        found: list[DocumentError] = []
        manifest = None
        try:
            manifest = manifest_of(folder)
            with archive_progress(quiet=quiet) as bar:
                found += find_damage(folder, manifest, on_bytes=bar.checked) if manifest is not None else ()
        except DocumentError as error:
            found.append(error)
        for fault in found:
            worst = error_status(fault).exit_code
            for line in format_error(fault):
                click.echo(line, err=True)
        results.append(
            {
                "archive": display_path(folder),
                "intact": not found,
                "runs": manifest.runs if manifest else None,
                "faults": [str(fault) for fault in found],
            }
        )
        if not as_json and not (quiet and not found):
            words = "DAMAGED" if found else f"intact, {about(manifest)}" if manifest else ""
            click.echo(f"{escape_control(display_path(folder))}: {words}", err=True)
    if as_json:
        click.echo(json.dumps({"intact": not worst, "archives": results}))
    return worst


def _archives(place: str) -> list[str]:
    """The archive at a place, or those in it."""
    try:
        try:
            whole = manifest_of(place) is not None
        except DocumentError:
            whole = True
        found = [place] if whole else archives_in(place)
        for name in [] if whole else unfinished(place):
            where = escape_control(display_path(path_inside(place, name)))
            click.echo(f"{where}: not finished; the command that began it goes on with it", err=True)
    except OSError as error:
        got = error.strerror or str(error)
        raise SettingError(where=display_path(place), expected="a place that can be read", got=got) from None
    if not found:
        raise NotFound(
            "no archive is here",
            where=display_path(place),
            hint="name the folder that has a manifest.json, or the one that --to named",
        )
    return found
