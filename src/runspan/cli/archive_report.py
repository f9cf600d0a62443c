"""What `runspan archive` shows: counts while it works, and the report at its end."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from runspan.archive import Archived, Found, PurgeReport, Telling
from runspan.cli.process import visible
from runspan.run import Run
from runspan.sources.manifest import Manifest
from runspan.sources.objects import shown

_NAMED: Final = 5
_TELL_AGAIN_AFTER: Final = 30.0


class Bar:
    """Counts while it works. Silent without a ``Progress``."""

    def __init__(self, bar: Progress | None, *, quiet: bool = True) -> None:
        self._bar = bar
        self._quiet = quiet
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._task = bar.add_task("archive", words="looking", total=None) if bar else None
        self._runs = self._left = self._bytes = self._looked = 0

    def telling(self) -> Telling:
        return Telling(self._found, self.checked, self._other)

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

    def _found(self, found: Found) -> None:
        if isinstance(found.what, Run):
            self._runs += 1
        else:
            self._left += 1
        left = f", {self._left:,} left" if self._left else ""
        self._tell(f"{self._runs:,} runs{left}, back to {_moment(found.place.time)}")

    def _other(self, where: str, asked: str) -> None:
        self._note(
            f"{shown(where)}: an unfinished archive of {asked}; its own command goes on with it, this one begins anew"
        )

    def _note(self, words: str) -> None:
        """A line that stays, above the bar."""
        line = visible(f"runspan: {words}")
        if self._bar is not None:
            self._bar.console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line, err=True)

    def _tell(self, words: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, words=words)


@contextmanager
def counting(*, quiet: bool) -> Iterator[Bar]:
    """Counts on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield Bar(None, quiet=quiet)
        return
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.fields[words]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, quiet=quiet)


def print_report(done: Archived, report: PurgeReport, *, purge: bool, quiet: bool, as_json: bool) -> None:
    """What came of it, for people or for programs."""
    left = done.manifest.left
    if as_json:
        click.echo(json.dumps(_json(done, report)))
        return
    if quiet and done.complete and not left.unfinished.runs and not report.changed:
        return
    place = shown(done.path)
    if done.path:
        verb = "archived" if not done.resumed else "went on with an unfinished archive, and archived"
        click.echo(f"{verb} {about(done.manifest)}; every byte read back: {visible(place)}", err=True)
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
                f"{_count(skips.runs, 'run')} {words}: {visible(', '.join(skips.some[:_NAMED]))}{more}", err=True
            )
    for line in done.manifest.partial:
        click.echo(f"the list was incomplete: {visible(line)}", err=True)
    if purge:
        _print_purge(report)
    if done.path:
        click.echo(f"to read it back in: {visible(shlex.join(('runspan', 'export', place)))}", err=True)


def _print_purge(report: PurgeReport) -> None:
    click.echo(f"{_count(report.deleted, 'run')} purged from the store", err=True)
    if report.spans:
        click.echo(f"  with {_count(report.spans, 'span')} of others in their traces, which no archive holds", err=True)
    if report.changed:
        named = ", ".join(report.named[:_NAMED])
        words = "stay because they changed meanwhile; the next archive has them as they are now"
        click.echo(f"{_count(report.changed, 'run')} {words}: {visible(named)}", err=True)


def _json(done: Archived, report: PurgeReport) -> dict[str, Any]:
    manifest = done.manifest
    return {
        "archive": shown(done.path),
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
    tenant = f", of {visible(manifest.tenant)}" if manifest.tenant else ""
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
