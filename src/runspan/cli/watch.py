"""``runspan export --watch``: the watch put together from the command's options, until a signal ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import click

from runspan.cli.errors import escape_control, hint_on, terminating
from runspan.cli.options import export_metrics
from runspan.cli.progress import Bar, report_trouble
from runspan.delivery import ExporterConfig, OnSettled, OtlpExporter, RetryPolicy, connect
from runspan.errors import SettingError
from runspan.otlp.protobuf_writer import Resource
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.instruments import EXPORTED, REFUSED, REJECTED, WATCH_WAITING, WATCHED
from runspan.watch.poller import DirectoryPoller
from runspan.watch.service import WatchConfig, WatchService
from runspan.watch.state_db import WatchState

LEDGER: Final = ".runspan-ledger-{}.sqlite3"
"""Beside the files, so that it goes where they go; one for each target."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The values of the command's options. settings: made anew for each delivery, so that a new API key counts."""

    folder: str
    settings: Callable[[], ExporterConfig]
    tenant: str
    resource: Resource
    service_name: str
    workers: int
    retry_for: float
    batch_spans: int
    poll: float
    done_folder: Path | None
    ledger: Path | None
    listen: tuple[str, int] | None
    quiet: bool


def watch(options: WatchOptions) -> None:
    """Returns after SIGTERM or Ctrl-C. SettingError when the folder or the ledger cannot be used."""
    folder = _folder(options)
    target = options.settings().display_url
    whose = f"{target} for {options.tenant}" if options.tenant else target
    path = options.ledger or folder / LEDGER.format(sha256(whose.encode()).hexdigest()[:8])
    health = MetricsRegistry(time.time_ns, parts=("export", "watch"))
    bar = Bar(None, None, quiet=options.quiet)

    def deliver(on_settled: OnSettled) -> OtlpExporter:
        retry = RetryPolicy(budget=options.retry_for)
        settings = options.settings()
        ledger.spans.bind_receiver(settings.identity)
        return connect(settings, workers=options.workers, retry=retry, on_settled=on_settled)

    with (
        closing(WatchState(path, whose, options.tenant)) as ledger,
        terminating(),
        export_metrics(health, options.listen, service_name=options.service_name, quiet=options.quiet),
    ):
        watching = WatchService(
            DirectoryPoller(str(folder), ledger, time.monotonic),
            ledger,
            WatchConfig(
                options.tenant,
                options.resource,
                options.poll,
                str(options.done_folder or ""),
                options.batch_spans,
            ),
            connect=deliver,
            wait=threading.Event().wait,
            clock=time.time_ns,
            metrics=health,
            note=_note,
        )
        if not options.quiet:
            click.echo(f"runspan: watching {escape_control(str(folder))} for {escape_control(whose)}", err=True)
        with suppress(KeyboardInterrupt), report_trouble(watching, bar, options.retry_for):
            watching.run()
    if not options.quiet:
        click.echo(_summary(health), err=True)


def _folder(options: WatchOptions) -> Path:
    folder = Path(options.folder)
    for place, name in ((folder, "--watch"), (options.done_folder, "--done-dir")):
        if place is not None and not place.is_dir():
            hint = "make it first, or check the path"
            raise SettingError(where=f"{name} {place}", expected="a folder that is there", got="none", hint=hint)
    if options.done_folder is not None and options.done_folder.resolve() == folder.resolve():
        raise SettingError(where="--done-dir", expected="another folder", got="the one that is watched")
    return folder


def _note(line: str) -> None:
    click.echo(f"runspan: {escape_control(line)}", err=True)
    if hint := hint_on(line):
        click.echo(f"  hint: {hint}", err=True)


def _summary(health: MetricsRegistry) -> str:
    told = health.collect()
    words = f"{told[EXPORTED]:,.0f} runs accepted, {told[WATCHED]:,.0f} files done with"
    if told[REJECTED] or told[REFUSED]:
        words += f", {told[REJECTED]:,.0f} runs rejected, {told[REFUSED]:,.0f} documents refused"
    waiting = told.get(WATCH_WAITING, 0)
    return f"{words}; {waiting:,.0f} files wait for the next start" if waiting else words
