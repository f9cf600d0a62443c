"""``runspan export --watch``: the watch service built from the command's options, until a signal ends it."""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import click

from runspan.cli import options
from runspan.cli.app import handle_signals
from runspan.cli.output import ProgressDisplay, escape_control, hint_for, print_hint, report_retries
from runspan.delivery import OnSettled, OtlpExporter
from runspan.errors import ConfigError
from runspan.system import require_posix
from runspan.telemetry import MetricsRegistry
from runspan.telemetry.registry import EXPORTED, REFUSED, REJECTED, WATCH_PENDING, WATCHED
from runspan.watch.poller import DirectoryPoller
from runspan.watch.service import WatchConfig, WatchService
from runspan.watch.state_db import WatchState

STATE_FILE: Final = ".runspan-state-{}.sqlite3"
"""In the watched folder, so that it is moved with the files; one for each receiver and tenant."""


def watch(
    folder: Path,
    config: WatchConfig,
    receiver: options.ReceiverOptions,
    state_file: Path | None,
    *,
    metrics_listen: tuple[str, int] | None,
    quiet: bool,
) -> None:
    """Export the folder's files until a signal ends it. ConfigError if the folder or the state cannot be used."""
    require_posix("a watched folder", f"--watch {folder}")
    _check_folders(folder, config.done_folder, recursive=config.recursive)
    target = receiver.config().display_url
    target = f"{target} for {receiver.tenant}" if receiver.tenant else target
    path = state_file or folder / STATE_FILE.format(sha256(target.encode()).hexdigest()[:8])
    metrics = MetricsRegistry(time.time_ns, components=("export", "watch"))
    display = ProgressDisplay()

    def connect(on_settled: OnSettled) -> OtlpExporter:
        exporter_config = receiver.config()  # anew for each connection, so that a replaced API key counts
        state.spans.bind_receiver(exporter_config.identity)
        return receiver.connect(exporter_config, on_settled=on_settled)

    def note(line: str) -> None:
        display.note(line)
        if hint := hint_for(line):
            print_hint(hint)

    with (
        closing(WatchState(path, target, receiver.tenant)) as state,
        handle_signals(),
        options.export_metrics(metrics, metrics_listen, service_name=receiver.service_name, quiet=quiet),
    ):
        poller = DirectoryPoller(
            str(folder),
            state,
            time.monotonic,
            recursive=config.recursive,
            follow_symlinks=config.follow_symlinks,
            done_folder=config.done_folder,
        )
        service = WatchService(
            poller,
            state,
            config,
            connect=connect,
            wait=threading.Event().wait,
            clock=time.time_ns,
            metrics=metrics,
            note=note,
        )
        if not quiet:
            click.echo(f"runspan: watching {escape_control(str(folder))} for {escape_control(target)}", err=True)
        retries = report_retries(lambda: service.exporter, display, receiver.retry_max_time, quiet=quiet)
        with suppress(KeyboardInterrupt), retries:
            service.run()
    if not quiet:
        click.echo(_summary(metrics, poller), err=True)


def _check_folders(folder: Path, done_folder: str, *, recursive: bool) -> None:
    for path, flag in ((str(folder), "--watch"), (done_folder, "--done-dir")):
        if path and not Path(path).is_dir():
            hint = "create it first, or check the path"
            raise ConfigError(where=f"{flag} {path}", expected="an existing folder", got="none", hint=hint)
    if done_folder and Path(done_folder).resolve() == folder.resolve():
        raise ConfigError(where="--done-dir", expected="another folder", got="the one that is watched")
    if recursive and done_folder and Path(done_folder).resolve() in folder.resolve().parents:
        got = "one that contains it"
        raise ConfigError(where="--done-dir", expected="a folder beside the one that is watched", got=got)


def _summary(metrics: MetricsRegistry, poller: DirectoryPoller) -> str:
    values = metrics.collect()
    summary = f"{values[EXPORTED]:,.0f} runs accepted, {values[WATCHED]:,.0f} files finished"
    if values[REJECTED] or values[REFUSED]:
        summary += f", {values[REJECTED]:,.0f} runs rejected, {values[REFUSED]:,.0f} documents refused"
    if pending := values.get(WATCH_PENDING, 0):
        summary += f"; {pending:,.0f} files are left for the next start"
    if skipped := len(poller.skipped):
        summary += f"; {skipped:,} folders and links were not read"
    return summary
