"""``runspan export``: run documents from files to any OTLP receiver."""

from __future__ import annotations

import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from runspan.cli.errors import INCOMPLETE, INTERRUPTED, format_error, hint_on, terminating
from runspan.cli.options import (
    Seconds,
    api_key_option,
    json_option,
    metrics_option,
    option,
    receiver_options,
    replay_option,
    service_name_option,
    tenant_option,
)
from runspan.cli.progress import progress, report_trouble
from runspan.cli.resources import otlp_environment, resource_of
from runspan.cli.watch import WatchOptions, watch
from runspan.codec.encode import encode
from runspan.delivery import (
    DeadLetters,
    ExporterConfig,
    ExportReport,
    RetryPolicy,
    connect,
    exporter_config,
)
from runspan.delivery.config import COMPRESSIONS
from runspan.errors import DocumentError, SettingError
from runspan.export import TARGET_SPANS
from runspan.export import export as export_documents
from runspan.model.run import Run
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import documents, tenants
from runspan.sources.filesystem import display_path

_WATCHED: Final = ("done_dir", "ledger", "metrics_listen")
_NOT_WATCHED: Final = ("dead_letter", "dry_run", "as_json")
GC_THRESHOLD: Final = 50_000
"""Allocations between collections. Documents and spans hold no cycles, so collecting often only costs time."""


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]")
@receiver_options
@option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    show_default="OTEL_EXPORTER_OTLP_COMPRESSION, else gzip for HTTP",
    help="Of the requests' bodies.",
)
@option(
    "--timeout",
    type=click.FloatRange(0.1),
    metavar="SECONDS",
    show_default="OTEL_EXPORTER_OTLP_TIMEOUT, else 10",
    help="How long one attempt may take.",
)
@option(
    "--retry-for",
    type=click.FloatRange(0),
    metavar="SECONDS",
    default=300.0,
    help="How long a request is tried again in all. A receiver that takes nothing for so long ends the export.",
)
@option("--workers", type=click.IntRange(1, 64), metavar="COUNT", default=4, help="Requests in flight.")
@option(
    "--batch-spans",
    type=click.IntRange(1, 10_000),
    metavar="COUNT",
    default=TARGET_SPANS,
    help="Spans in a request, about.",
)
@service_name_option
@option(
    "--dead-letter",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    show_default="keep none",
    help="Append every document that was rejected, in doubt or not sent to this file, which export reads back in.",
)
@replay_option
@tenant_option
@api_key_option
@option(
    "--watch",
    "watched",
    metavar="DIR",
    show_default="read the files and end",
    help="Send what is in this folder, and go on with each file that appears or changes, until SIGTERM or Ctrl-C.",
)
@option(
    "--poll",
    type=Seconds(),
    metavar="TIME",
    default="2s",
    help="How often to look, with --watch: 2s, 1m. A file is read once it is the same at two looks.",
)
@option(
    "--done-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="leave them where they are",
    help="Move each file there, with --watch, when the receiver has all of its runs and it has rested for a minute.",
)
@option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    show_default="hidden in the folder",
    help="Where --watch remembers what the receiver has.",
)
@metrics_option
@option("--dry-run", is_flag=True, help="Send nothing; print each run's trace as a line of OTLP/JSON.")
@option("--quiet", is_flag=True, help="No progress, and a report only when something went wrong: for cron.")
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    files: tuple[str, ...],
    endpoint: str | None,
    protocol: str | None,
    compression: str | None,
    timeout: float | None,
    retry_for: float,
    workers: int,
    batch_spans: int,
    service_name: str,
    dead_letter: Path | None,
    replay: bool,
    tenant: str,
    api_key_file: Path | None,
    watched: str | None,
    poll: float,
    done_dir: Path | None,
    ledger: Path | None,
    metrics_listen: tuple[str, int] | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send run documents as traces.

    FILE is a JSON document, a JSON array of them, or NDJSON, packed by gzip or zstd too; a folder of such files; an
    archive of `runspan archive`; a URL such as s3://bucket/prefix/ with `pip install 'runspan[objects]'`; or - for
    standard input. It is read as a stream. A document that cannot be carried exactly is refused with its place, and
    the others go. Sending a file again is safe: what is there already stays as it is.

    With --watch a file counts as done with once the receiver has all of its runs. Changed, it is read again: a run
    that went on is sent as it is now, but its finished steps once, and a finished run as a correction. Nothing is
    moved or deleted unless you ask.

    \b
    Examples:
      runspan export runs.ndjson.gz --endpoint http://127.0.0.1:8321
      runspan export examples/runs --endpoint collector:4317 --protocol grpc
      curl -s https://example.com/runs.ndjson | runspan export -
      runspan export runs.ndjson --dead-letter left.ndjson || runspan export left.ndjson
      runspan export runs.ndjson --replay --endpoint http://collector:4318
      runspan export runs.ndjson --dry-run | jq .
      runspan export --watch ./runs --endpoint http://127.0.0.1:8321 --metrics-listen 9464

    Secrets never stand on a command line: an API key for a runspan server comes from RUNSPAN_API_KEY or a file, other
    headers from OTEL_EXPORTER_OTLP_HEADERS.

    The report goes to standard error. The exit code is 0 only if every document was accepted, else 1.
    """
    resource = resource_of(service_name)
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    _check_files(ctx, files, tenant)
    if dry_run:
        ctx.exit(_dry_run(_all(files, None), resource, tenant, quiet))

    def settings() -> ExporterConfig:
        environment = otlp_environment(api_key_file)
        found = exporter_config(
            environment, endpoint=endpoint, protocol=protocol, compression=compression, timeout=timeout
        )
        return found.as_replay() if replay else found

    if watched is not None:
        watch(
            WatchOptions(
                watched,
                settings,
                tenant,
                resource,
                service_name,
                workers,
                retry_for,
                batch_spans,
                poll,
                done_dir,
                ledger,
                metrics_listen,
                quiet,
            )
        )
        return
    letters = _letters(dead_letter, files)
    with terminating(), progress(files, quiet=quiet or as_json) as bar, letters or nullcontext():
        delivery = connect(settings(), workers=workers, retry=RetryPolicy(max_time=retry_for), dead_letters=letters)
        # The delivery counts what an interrupt left behind, so it ends in a report as well.
        with suppress(KeyboardInterrupt), delivery, report_trouble(delivery, bar, retry_for):
            export_documents(
                _all(files, bar.advance),
                delivery,
                tenant=tenant,
                observed_at=time.time_ns,
                resource=resource,
                target_spans=batch_spans,
                on_progress=bar.tell,
            )
        report = delivery.report()
    if letters is not None:
        report = report.with_dead_letters(letters)
    _print(report, quiet=quiet, as_json=as_json)
    ctx.exit(0 if report.complete else INTERRUPTED if report.stopped == "interrupted" else INCOMPLETE)


def _check_files(ctx: click.Context, files: tuple[str, ...], tenant: str) -> None:
    """Before anything is read: something to send, options that belong together, and archives of this tenant."""
    if ctx.params["watched"] is not None:
        others = [*files, *(f"--{name.replace('_', '-')}" for name in _NOT_WATCHED if _is_given(ctx, name))]
        if others:
            raise SettingError(where="--watch", expected="one folder and nothing else to read or write", got=others[0])
        return
    if alone := [name for name in _WATCHED if _is_given(ctx, name)]:
        raise SettingError(where=f"--{alone[0].replace('_', '-')}", expected="--watch beside it", got="none")
    if not files:
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'FILE...'")
    for file in files:
        for owner in tenants(file):
            if owner != tenant and ctx.get_parameter_source("tenant") is ParameterSource.DEFAULT:
                hint = f"runspan export --tenant {shlex.quote(owner)} …; another name makes them that company's"
                raise SettingError(
                    where=display_path(file),
                    expected="an archive of runs without a company",
                    got=f"one of {owner}",
                    hint=hint,
                )


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line. The environment may be one for several commands."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _print(report: ExportReport, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_dict()))
        return
    if quiet and report.complete and not report.warnings:
        return
    for line in report.summary_lines():
        click.echo(line, err=True)
    reasons = dict.fromkeys((report.stopped, *(rejection.reason for rejection in report.rejections)))
    for hint in dict.fromkeys(filter(None, map(hint_on, reasons))):
        click.echo(f"  hint: {hint}", err=True)


def _letters(path: Path | None, files: Iterable[str]) -> DeadLetters | None:
    """The file of dead letters. One that is read at the same time would never come to its end."""
    if path is None:
        return None
    for file in files:
        place = Path(file)
        if place.is_dir() and path.absolute().parent.resolve() == place.resolve():
            got = "a file in a folder that is read"
        elif path.exists() and place.exists() and path.samefile(place):
            got = "a file that is read"
        else:
            continue
        raise SettingError(
            where=f"--dead-letter {path}",
            expected="a file of its own",
            got=got,
            hint="rename the file to send again first, or keep dead letters elsewhere",
        )
    return DeadLetters(str(path))


def _all(files: Iterable[str], advance: Callable[[int], None] | None) -> Iterator[Run | DocumentError]:
    """The documents of all files. A file that is not there is told before anything is sent."""
    sources = [documents(file, on_bytes=advance) for file in files]
    return (document for source in sources for document in source)


def _dry_run(found: Iterable[Run | DocumentError], resource: Resource, tenant: str, quiet: bool) -> int:
    """Prints what would be sent, each run on its own line; the exit code."""
    runs = spans = refused = 0
    for document in found:
        try:
            if isinstance(document, DocumentError):
                raise document
            encoded = encode(document, tenant=tenant, observed_at=time.time_ns())
        except DocumentError as error:
            for line in format_error(error):
                click.echo(line, err=True)
            refused += 1
            continue
        runs += 1
        spans += len(encoded)
        sys.stdout.buffer.write(write_json(encoded, resource) + b"\n")
    sys.stdout.buffer.flush()
    if refused or not quiet:
        click.echo(f"{runs:,} runs, {spans:,} spans, {refused:,} documents refused; nothing was sent", err=True)
    return INCOMPLETE if refused else 0
