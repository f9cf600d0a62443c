"""``runspan archive``: finished runs into files that are verified, and can be checked again at any time."""

from __future__ import annotations

import json
import os
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec

from runspan.archive.create import AgeRange, ArchiveRequest, ArchiveResult, create_archive
from runspan.archive.create import purge as purge_runs
from runspan.archive.select import CollectedRun, RetryingReader
from runspan.archive.targets import unfinished
from runspan.backends import open_store
from runspan.backends.remote.config import PREFIX, remote_config
from runspan.backends.sqlite import PurgeReport
from runspan.cli import options
from runspan.cli.app import INCOMPLETE, handle_signals
from runspan.cli.output import ProgressDisplay, escape_control, print_error, print_skipped, progress_display
from runspan.delivery.report import plural
from runspan.errors import ConfigError, DocumentError, NotFound, error_status
from runspan.model.document import Run
from runspan.sources.archive import PART_SUFFIXES, Manifest, archives_in, find_damage, manifest_of
from runspan.sources.filesystem import display_path, path_inside

_MAX_NAMED: Final = 5
_REPEAT_AFTER: Final = 30.0


class _ArchiveDisplay:
    """Shows the counts of an archive while it is made or checked. Its methods are callbacks, from several threads."""

    def __init__(self, display: ProgressDisplay, *, quiet: bool) -> None:
        self._display = display
        self._quiet = quiet
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._runs = self._left = self._bytes = self._examined = 0
        display.update("starting")

    def waiting(self, error: str, seconds: float) -> None:
        """Say that the backend is retried after a pause: now and then, not for each request."""
        with self._lock:
            now = time.monotonic()
            if self._quiet or now < self._silent_until:
                return
            self._silent_until = now + _REPEAT_AFTER
        self._display.note(f"{error}; retrying in {seconds:.0f} s, press Ctrl-C to stop")

    def checked(self, size: int) -> None:
        """Add bytes that were read back."""
        self._bytes += size
        written = f"{self._runs:,} runs written, " if self._runs else ""
        self._display.update(f"{written}{self._bytes / 1e6:,.1f} MB read back")

    def purged(self, runs: int) -> None:
        """Add runs that the purge has examined."""
        self._examined += runs
        self._display.update(f"purging: {self._examined:,} runs examined")

    def collected(self, found: CollectedRun) -> None:
        """Add a run that was written, or skipped."""
        if isinstance(found.result, Run):
            self._runs += 1
        else:
            self._left += 1
        left = f", {self._left:,} left" if self._left else ""
        self._display.update(f"{self._runs:,} runs{left}, back to {_timestamp(found.cursor.time)}")

    def other_archive(self, path: str, selection: str) -> None:
        """Report an unfinished archive that is not resumed."""
        self._display.note(
            f"{display_path(path)}: an unfinished archive of {selection}; only a command with these options resumes "
            "it, this one begins a new archive"
        )


def _summary_lines(done: ArchiveResult, purged: PurgeReport | None) -> Iterator[str]:
    """Yield a line for each thing worth knowing. ``purged`` is None without --purge."""
    path = display_path(done.path)
    if done.path:
        verb = "resumed an unfinished archive, and archived" if done.resumed else "archived"
        yield f"{verb} {_describe(done.manifest)}; every byte read back: {path}"
    else:
        yield "nothing to archive"
    left = done.manifest.skipped
    for skipped, reason in (
        (left.unfinished, "left because they have not ended"),
        (left.incomplete, "NOT archived because their newest revision is incomplete"),
        (left.vanished, "deleted after they were listed"),
        (left.unreadable, "NOT archived because they cannot be read"),
    ):
        if skipped.runs:
            more = ", …" if skipped.runs > _MAX_NAMED else ""
            yield f"{plural(skipped.runs, 'run')} {reason}: {', '.join(skipped.examples[:_MAX_NAMED])}{more}"
    for line in done.manifest.partial:
        yield f"the list was incomplete: {line}"
    if purged is not None:
        yield f"{plural(purged.deleted, 'run')} purged from the store"
        if purged.spans:
            yield f"  with {plural(purged.spans, 'span')} of other instrumentation in their traces, not in the archive"
        if purged.changed:
            reason = "kept because they changed meanwhile; the next archive will contain the new versions"
            yield f"{plural(purged.changed, 'run')} {reason}: {', '.join(purged.named[:_MAX_NAMED])}"
    if done.path:
        yield f"to import it again: {shlex.join(('runspan', 'export', path))}"


def _json(done: ArchiveResult, report: PurgeReport) -> dict[str, Any]:
    manifest = done.manifest
    return {
        "archive": display_path(done.path),
        "complete": done.complete,
        "resumed": done.resumed,
        "runs": manifest.runs,
        "documentBytes": manifest.document_bytes,
        "files": len(manifest.files),
        "skipped": msgspec.to_builtins(manifest.skipped),
        "partial": list(manifest.partial),
        "purged": asdict(report),
    }


def _describe(manifest: Manifest) -> str:
    """Return what an archive contains, in one line."""
    stored = sum(part.bytes for part in manifest.files)
    times = f", {_timestamp(manifest.oldest)} to {_timestamp(manifest.newest)}" if manifest.runs else ""
    tenant = f", of {manifest.tenant}" if manifest.tenant else ""
    return (
        f"{plural(manifest.runs, 'run')}{tenant}{times}, {manifest.document_bytes / 1e6:,.1f} MB in "
        f"{plural(len(manifest.files), 'file')} of {stored / 1e6:,.1f} MB"
    )


def _timestamp(time: int | None) -> str:
    if not time:
        return "an unknown time"
    return datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@click.command("archive")
@options.time("--before", help="Archive runs that started longer ago than this, such as 12h or 30d.")
@options.time(
    "--since", show_default="no limit", help="Archive only runs that started this long ago or later, such as 37d."
)
@options.option(
    "--to",
    metavar="DIR|URL",
    help="Directory in which the archive is created as a folder, or a URL such as s3://bucket/prefix with "
    "`pip install 'runspan[objects]'`.",
)
@options.option(
    "--check",
    "checked",
    metavar="DIR|URL",
    help="Write nothing: verify that an archive, or each archive in a folder, can be read back unchanged.",
)
@options.follow_symlinks
@options.option(
    "--format", "compression", type=click.Choice(list(PART_SUFFIXES)), default="zstd", help="Compression of the files."
)
@options.option(
    "--file-size",
    type=click.IntRange(1, 1024),
    metavar="MIB",
    default=32,
    help="Approximate size of the documents in one file, uncompressed. A file is compressed in memory.",
)
@options.option(
    "--purge",
    is_flag=True,
    help="Then delete the archived runs from the embedded store, except those that changed meanwhile.",
)
@options.concurrency(help="Number of documents that are fetched at once.")
@options.retry_max_time("How long a backend that does not respond, or that is busy, is retried.")
@options.backend
@options.quiet
@options.as_json
@click.pass_context
def archive_runs(
    ctx: click.Context,
    backend: options.BackendOptions,
    before: int | None,
    since: int | None,
    to: str | None,
    checked: str | None,
    follow_symlinks: bool,
    compression: str,
    file_size: int,
    purge: bool,
    concurrency: int,
    retry_max_time: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write finished runs to files, and verify them, before retention deletes the runs.

    The archive is a folder of compressed NDJSON files with a manifest.json: counts, time range, and the SHA-256 of each
    file and each document. Every byte is read back and every document verified before the archive gets its final name.
    A killed command leaves an archive with another name, and the same command resumes it; a command with another
    --before, --since or --tenant begins a new archive. Unfinished runs are left out, and counted.

    `runspan export` imports an archive again, every document unchanged.

    \b
    Examples:
      runspan archive --before 30d --to /srv/archive --data ./data
      runspan archive --before 30d --to /srv/archive --data ./data --purge
      runspan archive --before 30d --to s3://bucket/runs --backend tempo+http://127.0.0.1:3200
      runspan archive --check /srv/archive
      runspan export /srv/archive/runspan-20261124T020000Z --endpoint http://127.0.0.1:8321

    The exit code is 0 if every finished run is in the archive, 1 if one is not, and 3 if an archive is damaged.
    """
    quiet = quiet or as_json
    with handle_signals():
        if checked is not None:
            ctx.exit(_check(checked, follow_symlinks=follow_symlinks, quiet=quiet, as_json=as_json))
        if before is None or to is None:
            raise ConfigError(
                where="archive",
                expected="--before TIME and --to DIR, or --check DIR",
                got="neither" if before is None and to is None else "one of the two",
                hint="runspan archive --before 30d --to ./archive",
            )
        if since is not None and since <= before:
            raise ConfigError(where="--since", expected="longer ago than --before", got="no time between the two")
        request = ArchiveRequest(
            backend.tenant,
            backend.kind,
            _identity(backend),
            to,
            AgeRange(before, since),
            compression,
        )
        if purge and backend.kind != "sqlite":
            raise ConfigError(
                where="--purge",
                expected="the embedded store, whose runs it can delete",
                got=f"a {backend.kind} backend",
                hint="omit --purge: the backend's own retention deletes runs there",
            )
        with closing(backend.open_reader()) as source, progress_display(quiet=quiet) as progress:
            display = _ArchiveDisplay(progress, quiet=quiet)
            reader = RetryingReader(source, concurrency, retry_max_time, display.waiting)
            done = create_archive(
                request,
                reader,
                now=time.time_ns(),
                on_collected=display.collected,
                on_checked=display.checked,
                on_other=display.other_archive,
                part_bytes=file_size << 20,
            )
        report = PurgeReport()
        if purge and done.path:
            with closing(open_store(backend.url)) as store, progress_display(quiet=quiet) as progress:
                display = _ArchiveDisplay(progress, quiet=quiet)
                report = purge_runs(store, done.path, done.manifest, on_progress=display.purged)
    if as_json:
        click.echo(json.dumps(_json(done, report)))
    elif not (quiet and done.complete and not done.manifest.skipped.unfinished.runs and not report.changed):
        for line in _summary_lines(done, report if purge else None):
            click.echo(escape_control(line), err=True)
    ctx.exit(0 if done.complete else INCOMPLETE)


def _identity(backend: options.BackendOptions) -> str:
    """Return everything that decides which runs a backend returns: only the same identity resumes an archive."""
    url = backend.url
    if backend.kind == "rest":
        return f"{url} {options.read_api_key(backend.api_key_file) or ''}"  # a server takes the tenant from the key
    if backend.kind == "sqlite":
        return f"sqlite:{os.path.realpath(url.removeprefix('sqlite:'))}"
    headers = [pair for pair in remote_config(url, os.environ).headers if pair[0] != "authorization"]
    return json.dumps([url, headers, os.environ.get(f"{PREFIX}SERVICES", "")])


def _check(path: str, *, follow_symlinks: bool, quiet: bool, as_json: bool) -> int:
    """Verify every archive at a path; return the exit code."""
    results = []
    exit_code = 0
    for folder in _archives(path, follow_symlinks):
        errors: list[DocumentError] = []
        manifest = None
        try:
            manifest = manifest_of(folder, follow_symlinks=follow_symlinks)
            if manifest is not None:
                with progress_display(quiet=quiet) as progress:
                    display = _ArchiveDisplay(progress, quiet=quiet)
                    errors += find_damage(folder, manifest, follow_symlinks=follow_symlinks, on_bytes=display.checked)
        except DocumentError as error:
            errors.append(error)
        for damage in errors:
            exit_code = error_status(damage).exit_code
            print_error(damage)
        results.append(
            {
                "archive": display_path(folder),
                "intact": not errors,
                "runs": manifest.runs if manifest else None,
                "faults": [str(damage) for damage in errors],
            }
        )
        if not as_json and not (quiet and not errors):
            state = "DAMAGED" if errors else f"intact, {_describe(manifest)}" if manifest else ""
            click.echo(escape_control(f"{display_path(folder)}: {state}"), err=True)
    if as_json:
        click.echo(json.dumps({"intact": not exit_code, "archives": results}))
    return exit_code


def _archives(path: str, follow_symlinks: bool) -> list[str]:
    """Return the archive at a path, or the archives in it."""
    try:
        try:
            is_archive = manifest_of(path, follow_symlinks=follow_symlinks) is not None
        except DocumentError:
            is_archive = True
        found = [path] if is_archive else archives_in(path, follow_symlinks=follow_symlinks, on_skipped=print_skipped)
        for name in [] if is_archive else unfinished(path):
            where = escape_control(display_path(path_inside(path, name)))
            click.echo(f"{where}: unfinished; run the command that began it again to resume it", err=True)
    except OSError as error:
        got = error.strerror or str(error)
        raise ConfigError(where=display_path(path), expected="a readable directory or URL", got=got) from None
    if not found:
        raise NotFound(
            "no archive is here",
            where=display_path(path),
            hint="name the folder that contains manifest.json, or the directory that --to named",
        )
    return found
