"""What a sync shows while it runs: a bar with rate, backlog and lag on a terminal, else a line now and then.

What an export shows while it runs: a bar by bytes read on a terminal, and why it is waiting.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from runspan.cli.errors import escape_control
from runspan.delivery import ExportReport
from runspan.model.timestamps import SECOND
from runspan.sources import total_bytes
from runspan.sync import SyncProgress

_LOOK_AFTER: Final = 1.0
_TELL_AGAIN_AFTER: Final = 30.0


class HasLastError(Protocol):
    """Something that sends. trouble: why the last request will be sent again, or ""."""

    @property
    def endpoint(self) -> str: ...
    @property
    def last_error(self) -> str: ...


class Bar:
    """A progress bar, with the counts beside it. Silent without a ``Progress``."""

    def __init__(self, bar: Progress | None, total: int | None, *, quiet: bool) -> None:
        self._bar = bar
        self._quiet = quiet
        self._task = bar.add_task("export", total=total, runs="") if bar else None

    def advance(self, size: int) -> None:
        """So many bytes were read."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, size)

    def tell(self, report: ExportReport) -> None:
        """So much came of it until now."""
        if self._bar is not None and self._task is not None:
            words = f"{report.runs_accepted:,} runs accepted"
            wrong = report.runs_rejected + report.runs_unknown + report.documents_refused
            self._bar.update(self._task, runs=f"{words}, {wrong:,} not" if wrong else words)

    def note(self, words: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(Text(words), soft_wrap=True)
        elif not self._quiet:
            click.echo(words, err=True)


@contextmanager
def progress(files: Iterable[str], *, quiet: bool) -> Iterator[Bar]:
    """A bar on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield Bar(None, None, quiet=quiet)
        return
    sizes = [total_bytes(file) for file in files]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    columns = (
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[runs]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, total, quiet=quiet)


@contextmanager
def report_trouble(delivery: HasLastError, bar: Bar, retry_for: float) -> Iterator[None]:
    """Tells why requests are being sent again, so that nobody waits minutes for a receiver that is not there."""
    ended = threading.Event()

    def work() -> None:
        told = ""
        pause = _LOOK_AFTER
        while not ended.wait(pause):
            trouble = delivery.last_error
            pause = _LOOK_AFTER
            if trouble and trouble != told:
                bar.note(f"runspan: {delivery.endpoint}: {trouble}; trying again for {retry_for:g} s, Ctrl-C ends it")
                told, pause = trouble, _TELL_AGAIN_AFTER

    thread = threading.Thread(target=work, name="runspan-trouble", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


_LINE_EVERY: Final = 60.0
_RATE_OVER: Final = 10.0


class Display:
    """Tells how far a sync is, and its notes. retention: nanoseconds that the platform keeps a run, None: not told."""

    def __init__(self, bar: Progress | None, *, quiet: bool, retention: int | None, clock: Callable[[], int]) -> None:
        self._bar = bar
        self._quiet = quiet
        self._retention = retention
        self._clock = clock
        self._task = bar.add_task("sync", total=None, words="") if bar else None
        self._line_at = time.monotonic() + _LINE_EVERY
        self._fetched: deque[tuple[float, int]] = deque(maxlen=100)

    def tell(self, progress: SyncProgress) -> None:
        """So far it is."""
        if self._quiet:
            return
        now = time.monotonic()
        self._fetched.append((now, progress.counts.fetched))
        while len(self._fetched) > 2 and now - self._fetched[0][0] > _RATE_OVER:
            self._fetched.popleft()
        if self._bar is not None and self._task is not None:
            total = None if progress.walking else progress.known
            done = progress.known - progress.backlog
            self._bar.update(self._task, total=total, completed=done, words=self._words(progress))
        elif now >= self._line_at:
            self._line_at = now + _LINE_EVERY
            click.echo(f"runspan: {progress.known - progress.backlog:,} runs there, {self._words(progress)}", err=True)

    def note(self, words: str) -> None:
        """A line that stays, above the bar. Warnings and refusals are told in quiet as well."""
        line = escape_control(f"runspan: {words}")
        if self._bar is not None:
            self._bar.console.print(Text(line), soft_wrap=True)
        else:
            click.echo(line, err=True)

    def _words(self, progress: SyncProgress) -> str:
        parts = [f"{self._rate():,.1f}/s"]
        if progress.walking:
            parts.append(f"reading the list, {progress.counts.pages:,} pages")
        parts.append(f"backlog {progress.backlog:,}")
        if progress.unfinished:
            parts.append(f"{progress.unfinished:,} unfinished")
        if progress.behind is not None:
            behind = max(0, self._clock() - progress.behind)
            parts.append(f"lag {span_of_time(behind)}")
            if self._retention is not None:
                left = self._retention - behind
                parts.append(f"deleted in {span_of_time(left)}" if left > 0 else "past the platform's retention")
        wrong = progress.counts.refused + progress.counts.rejected
        if wrong:
            parts.append(f"{wrong:,} refused")
        return ", ".join(parts)

    def _rate(self) -> float:
        (began, before), (now, fetched) = self._fetched[0], self._fetched[-1]
        return (fetched - before) / (now - began) if now > began else 0.0


@contextmanager
def display(*, quiet: bool, retention: int | None, clock: Callable[[], int] = time.time_ns) -> Iterator[Display]:
    """A bar on standard error if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield Display(None, quiet=quiet, retention=retention, clock=clock)
        return
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Display(bar, quiet=quiet, retention=retention, clock=clock)


def span_of_time(nanoseconds: int) -> str:
    """A length of time in the two units that matter: ``2d 3h``, ``4m 5s``."""
    seconds = nanoseconds // SECOND
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    for (unit, length), (smaller, part) in pairwise(units):
        if seconds >= length:
            rest = seconds % length // part
            return f"{seconds // length}{unit} {rest}{smaller}" if rest else f"{seconds // length}{unit}"
    return f"{seconds}s"
