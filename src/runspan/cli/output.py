"""What commands print: errors with hints, reports, tables, and progress on a terminal."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import click

from runspan.errors import RunspanError
from runspan.model.timestamps import SECOND

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

    from runspan.delivery import ExportReport, OtlpExporter
    from runspan.parallel_export import ParallelExporter
    from runspan.sync.report import SyncReport

_HINTS: Final = (
    (
        "Txn is too big",
        "a span of that run exceeds the 9 to 10 MB that Jaeger's Badger storage accepts; use another storage, or Tempo",
    ),
    ("no org id", "name the tenant: OTEL_EXPORTER_OTLP_HEADERS=X-Scope-OrgID=NAME"),
    ("HTTP 401", "set RUNSPAN_API_KEY, or --api-key-file, to a key of the server"),
    ("--allow-host", "address it as 127.0.0.1, or start it with: runspan serve --allow-host NAME"),
    ("HTTP 403", "use an API key with the permission runs:write"),
    ("HTTP 404", "is this the address of an OTLP receiver? a path in the URL is used unchanged"),
    ("ConnectError", "is a receiver listening there? start one with: runspan serve"),
    ("UNAVAILABLE", "is a gRPC receiver listening there? `runspan serve` accepts http/protobuf only"),
)
"""What to do about an export error, by a part of its message. The first match counts."""

_CHECK_AFTER: Final = 1.0
_REPEAT_AFTER: Final = 30.0
_UNLIMITED_WIDTH: Final = 100_000
"""Columns of a table that is not printed on a terminal: each row stays on one line, for grep and awk."""


def hint_for(reason: str) -> str:
    """Return what to do about a receiver's error message, or ""."""
    return next((hint for part, hint in _HINTS if part in reason), "")


def escape_control(text: str) -> str:
    """Return the text with control characters and line breaks escaped, so that it cannot steer a terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def print_error(error: RunspanError) -> None:
    """Print what is wrong on standard error and, on a second line, the hint."""
    suffix = f" ({error.hint})" if error.hint else ""
    text = str(error).removesuffix(suffix) or type(error).__name__
    click.echo(f"runspan: {escape_control(text)}", err=True)
    if error.hint:
        print_hint(error.hint)


def print_skipped(path: str) -> None:
    """Print that a symbolic link in a folder is not followed."""
    from runspan.sources.filesystem import SYMLINK_OUT  # noqa: PLC0415

    click.echo(f"runspan: {escape_control(path)}: not read: {SYMLINK_OUT}", err=True)


def print_hint(hint: str) -> None:
    """Print what to do about the line above."""
    click.echo(f"  hint: {escape_control(hint)}", err=True)


def print_report(report: ExportReport | SyncReport, reasons: Iterable[str], *, as_json: bool, silent: bool) -> None:
    """Print a report as JSON on standard output, or as lines with hints on standard error.

    ``reasons`` are the error messages to give hints for. With ``silent`` only JSON is printed.
    """
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    elif not silent:
        for line in report.summary_lines():
            click.echo(line, err=True)
        for hint in dict.fromkeys(filter(None, map(hint_for, reasons))):
            print_hint(hint)


def new_table(*headings: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all commands. The columns named by ``right`` are aligned right."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in right else "left")
    return table


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED_WIDTH)
    # rich would exit by itself if the reader closed the pipe, so click prints what it renders.
    with console.capture() as rendered:
        console.print(table)
    for line in rendered.get().splitlines():
        click.echo(line.rstrip())


class ProgressDisplay:
    """The progress of a command: a bar with a text on a terminal, otherwise a line now and then or nothing."""

    def __init__(self, bar: Progress | None = None, *, total: int | None = None, line_every: float | None = None):
        self._bar = bar
        self._task = bar.add_task("", total=total, text="") if bar else None
        self._line_every = line_every
        self._line_at = time.monotonic() + (line_every or 0)

    def advance(self, amount: int) -> None:
        """Move the bar forward."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, amount)

    def update(self, text: str, *, completed: int | None = None, total: int | None = None) -> None:
        """Update the text and, if given, the position of the bar and its end."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, text=text, completed=completed, total=total)
        elif self._line_every is not None and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + self._line_every
            self.note(text if completed is None else f"{completed:,} runs done, {text}")

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        line = escape_control(f"runspan: {text}")
        if self._bar is None:
            click.echo(line, err=True)
            return
        from rich.text import Text  # noqa: PLC0415

        self._bar.console.print(Text(line), soft_wrap=True)


@contextmanager
def progress_display(
    *,
    quiet: bool,
    unit: Literal["bytes", "runs", ""] = "",
    total: Callable[[], int | None] = lambda: None,
    line_every: float | None = None,
) -> Iterator[ProgressDisplay]:
    """Show a bar on standard error if that is a terminal.

    ``unit`` is what the bar counts; without one it is a spinner. ``total`` is called for the bar's end only if there is
    a bar. ``line_every`` is the number of seconds between lines if there is no terminal, None for no lines.
    """
    if quiet or not sys.stderr.isatty():
        yield ProgressDisplay(line_every=None if quiet else line_every)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(*_columns(unit), console=Console(stderr=True), transient=True) as bar:
        yield ProgressDisplay(bar, total=total())


def _columns(unit: str) -> list[ProgressColumn]:
    from rich import progress  # noqa: PLC0415

    text = progress.TextColumn("{task.fields[text]}", markup=False)
    elapsed = progress.TimeElapsedColumn()
    if unit == "bytes":
        return [progress.BarColumn(), progress.DownloadColumn(), elapsed, progress.TimeRemainingColumn(), text]
    bar = [progress.BarColumn(bar_width=20), progress.MofNCompleteColumn()] if unit == "runs" else []
    return [progress.SpinnerColumn(), *bar, elapsed, text]


@contextmanager
def background(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Let a thread work while the block runs. The event that ``work`` gets is set when the block ends."""
    ended = threading.Event()
    # A daemon: the end of the process does not wait longer for work that takes long.
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def report_retries(
    current: Callable[[], OtlpExporter | ParallelExporter | None],
    display: ProgressDisplay,
    retry_max_time: float,
    *,
    quiet: bool,
) -> AbstractContextManager[None]:
    """Print why requests are retried while the block runs, so that a receiver that is down is noticed at once.

    ``current`` returns the exporter in use, if there is one.
    """

    def work(ended: threading.Event) -> None:
        reported = ""
        pause = _CHECK_AFTER
        while not ended.wait(pause):
            exporter = current()
            error = exporter.last_error if exporter else ""
            pause = _CHECK_AFTER
            if exporter and error and error != reported:
                display.note(f"{exporter.endpoint}: {error}; retrying for {retry_max_time:g} s, press Ctrl-C to stop")
                reported, pause = error, _REPEAT_AFTER

    return nullcontext() if quiet else background(work, "runspan-retries")


def format_elapsed(nanoseconds: int) -> str:
    """Return a duration in its two largest units: ``2d 3h``, ``4m 5s``."""
    seconds = nanoseconds // SECOND
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    for (unit, length), (smaller, part) in pairwise(units):
        if seconds >= length:
            rest = seconds % length // part
            return f"{seconds // length}{unit} {rest}{smaller}" if rest else f"{seconds // length}{unit}"
    return f"{seconds}s"
