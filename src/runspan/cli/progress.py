"""What an export shows while it runs: a bar by bytes read on a terminal, and why it is waiting."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from runspan.delivery import Report
from runspan.sources import total_bytes

_LOOK_AFTER: Final = 1.0
_TELL_AGAIN_AFTER: Final = 30.0


class HasTrouble(Protocol):
    """Something that sends. trouble: why the last request will be sent again, or ""."""

    @property
    def endpoint(self) -> str: ...
    @property
    def trouble(self) -> str: ...


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

    def tell(self, report: Report) -> None:
        """So much came of it until now."""
        if self._bar is not None and self._task is not None:
            words = f"{report.runs_accepted:,} runs accepted"
            wrong = report.runs_rejected + report.runs_in_doubt + report.documents_refused
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
def telling_trouble(delivery: HasTrouble, bar: Bar, retry_for: float) -> Iterator[None]:
    """Tells why requests are being sent again, so that nobody waits minutes for a receiver that is not there."""
    ended = threading.Event()

    def work() -> None:
        told = ""
        pause = _LOOK_AFTER
        while not ended.wait(pause):
            trouble = delivery.trouble
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
