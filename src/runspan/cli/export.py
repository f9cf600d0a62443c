"""``runspan export``: run documents from files to any OTLP receiver."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from runspan.cli import options
from runspan.cli.app import INCOMPLETE, INTERRUPTED, handle_signals, reduce_garbage_collection
from runspan.cli.output import (
    ProgressDisplay,
    print_error,
    print_report,
    print_skipped,
    progress_display,
    report_retries,
)
from runspan.codec.encode import encode
from runspan.delivery import DeadLetters, ExportReport
from runspan.delivery.config import COMPRESSIONS
from runspan.errors import ConfigError, DocumentError
from runspan.export import TARGET_SPANS
from runspan.export import export as export_documents
from runspan.model.document import Run
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import tenants, total_bytes
from runspan.sources.files import lines, parse
from runspan.sources.filesystem import display_path
from runspan.sources.splitter import RawDocument, RawLines, flatten

if TYPE_CHECKING:
    from runspan.parallel_export import ParallelExporter

_ONLY_WITH_WATCH: Final = ("recursive", "done_dir", "state_file", "metrics_listen")
_NOT_WITH_WATCH: Final = ("dead_letter", "correct", "dry_run", "as_json")


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]")
@options.receiver
@options.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    show_default="OTEL_EXPORTER_OTLP_COMPRESSION, else gzip for HTTP",
    help="Compression of request bodies.",
)
@options.time(
    "--timeout",
    type=options.Seconds(),
    show_default="OTEL_EXPORTER_OTLP_TIMEOUT, else 10s",
    help="How long one attempt of a request may take.",
)
@options.retry_max_time(
    "How long a failing request is retried. The export ends if the receiver accepts nothing for this long."
)
@options.concurrency("--concurrency", "export_concurrency", help="Number of requests in flight.")
@options.count(
    "--batch-spans", least=1, most=10_000, default=TARGET_SPANS, help="Approximate number of spans in a request."
)
@options.dead_letter(show_default="keep none")
@options.count(
    "--workers",
    least=1,
    most=64,
    default=1,
    help="Number of processes that encode and send, each with its own requests in flight. Several are for large files "
    "and idle cores; each takes up to 150 MB. If one is killed, the export stops, and has to be done again.",
)
@options.option(
    "--correct",
    is_flag=True,
    help="Send the documents as corrections of runs whose end was sent before: each ranks above that end.",
)
@options.option(
    "--watch",
    "watched",
    metavar="DIR",
    show_default="export the files and exit",
    help="Export the files of this folder, and each file that appears or changes, until SIGTERM, SIGHUP or Ctrl-C.",
)
@options.time(
    "--poll",
    type=options.Seconds(),
    default="2s",
    help="How often --watch reads the folder. It exports a file once two reads in a row find it unchanged.",
)
@options.option("--recursive", is_flag=True, help="Let --watch read the folders in the folder too.")
@options.follow_symlinks
@options.option(
    "--done-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="leave the files where they are",
    help="Move each file here, with --watch, once the receiver has all of its runs and it was unchanged for a minute.",
)
@options.file(
    "--state-file", show_default="hidden in the folder", help="Database in which --watch records what the receiver has."
)
@options.metrics_listen
@options.option("--dry-run", is_flag=True, help="Send nothing; print each run's trace as a line of OTLP/JSON.")
@options.quiet
@options.as_json
@click.pass_context
def export(
    ctx: click.Context,
    receiver: options.ReceiverOptions,
    files: tuple[str, ...],
    batch_spans: int,
    dead_letter: Path | None,
    workers: int,
    correct: bool,
    watched: str | None,
    poll: float,
    recursive: bool,
    follow_symlinks: bool,
    done_dir: Path | None,
    state_file: Path | None,
    metrics_listen: tuple[str, int] | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send run documents as traces.

    FILE is a JSON document, a JSON array of documents, or NDJSON, also compressed with gzip or zstd; a folder of such
    files; an archive of `runspan archive`; a URL such as s3://bucket/prefix/ with `pip install 'runspan[objects]'`; or
    - for standard input. It is read as a stream. A document that cannot be carried exactly is refused with its
    position, and the others are sent. Sending a file again is safe: the receiver keeps what it has. A finished run
    that has changed since it was sent needs --correct: without it the trace has two different ends of the run, which
    readers report as a conflict.

    With --watch, a file is finished when the receiver has all of its runs, and it is read again when it changes. A run
    that has continued is sent as it is now, but each finished step only once; a finished run that has changed is sent
    as a correction. Files are moved only with --done-dir, and never deleted.

    \b
    Examples:
      runspan export runs.ndjson.gz --endpoint http://127.0.0.1:8321
      runspan export examples/runs --endpoint collector:4317 --protocol grpc
      curl -s https://example.com/runs.ndjson | runspan export -
      runspan export runs.ndjson --dead-letter left.ndjson || runspan export left.ndjson
      runspan export runs.ndjson --replay --endpoint http://collector:4318
      runspan export year.ndjson.zst --workers 4 --endpoint http://collector:4318
      runspan export corrected.json --correct --endpoint http://127.0.0.1:8321
      runspan export runs.ndjson --dry-run | jq .
      runspan export --watch ./runs --endpoint http://127.0.0.1:8321 --metrics-listen 9464

    Secrets are never options: the API key of a runspan server comes from RUNSPAN_API_KEY or a file, other headers come
    from OTEL_EXPORTER_OTLP_HEADERS.

    The report is printed on standard error. The exit code is 0 if every document was accepted, else 1.
    """
    resource = receiver.resource()
    reduce_garbage_collection()
    _check_arguments(ctx, files, receiver.tenant, follow_symlinks)
    if dry_run:
        found = _read(files, follow_symlinks, print_skipped)
        ctx.exit(_dry_run(found, resource, receiver.tenant, correct, quiet))
    if watched is not None:
        # Not at the top: most exports watch nothing.
        from runspan.cli.watch import watch  # noqa: PLC0415
        from runspan.watch.service import WatchConfig  # noqa: PLC0415

        config = WatchConfig(
            receiver.tenant,
            resource,
            poll,
            done_folder=str(done_dir or ""),
            recursive=recursive,
            follow_symlinks=follow_symlinks,
            target_spans=batch_spans,
        )
        watch(Path(watched), config, receiver, state_file, metrics_listen=metrics_listen, quiet=quiet)
        return
    letters = _open_dead_letters(dead_letter, files)
    parallel = (
        _parallel_exporter(workers, receiver, resource, batch_spans, correct, dead_letter) if workers > 1 else None
    )
    with (
        handle_signals(),
        parallel or nullcontext(),  # before there are threads
        progress_display(
            quiet=quiet or as_json, unit="bytes", total=partial(_total_bytes, files, follow_symlinks)
        ) as display,
        letters or nullcontext(),
    ):
        on_progress = partial(_show_progress, display)
        retries = partial(
            report_retries, display=display, retry_max_time=receiver.retry_max_time, quiet=quiet or as_json
        )
        if parallel is not None:
            with retries(lambda: parallel):
                unparsed = _lines(files, follow_symlinks, parallel.stats.skipped, display.advance)
                report = parallel.export(unparsed, on_progress)
        else:
            exporter = receiver.connect(receiver.config(), dead_letters=letters)
            # An interrupt ends the export with a report as well: the exporter counts what was not sent.
            with suppress(KeyboardInterrupt), exporter, retries(lambda: exporter):
                export_documents(
                    _read(files, follow_symlinks, exporter.stats.skipped, display.advance),
                    exporter,
                    tenant=receiver.tenant,
                    observed_at=time.time_ns,
                    resource=resource,
                    after_root=correct,
                    target_spans=batch_spans,
                    on_progress=on_progress,
                )
            report = exporter.report()
    if letters is not None and parallel is None:
        report = report.with_dead_letters(letters)
    reasons = (report.stopped, *(rejection.reason for rejection in report.rejections))
    print_report(
        report,
        reasons,
        as_json=as_json,
        silent=quiet and report.complete and not (report.warnings or report.links_skipped),
    )
    ctx.exit(0 if report.complete else INTERRUPTED if report.stopped == "interrupted" else INCOMPLETE)


def _check_arguments(ctx: click.Context, files: tuple[str, ...], tenant: str, follow_symlinks: bool) -> None:
    """Check, before anything is read, that the options fit together and that archives hold runs of this tenant."""
    if _is_given(ctx, "workers") and (ctx.params["watched"] is not None or ctx.params["dry_run"]):
        reason = (
            "which prints the traces in order" if ctx.params["dry_run"] else "which compares each file with the last"
        )
        raise ConfigError(
            where="--workers",
            expected=f"no {'--dry-run' if ctx.params['dry_run'] else '--watch'}, {reason}",
            got="both",
            hint="omit --workers",
        )
    if ctx.params["watched"] is not None:
        others = [*files, *(_flag(name) for name in _NOT_WITH_WATCH if _is_given(ctx, name))]
        if others:
            raise ConfigError(where="--watch", expected="one folder and no other input or output", got=others[0])
        return
    if alone := [name for name in _ONLY_WITH_WATCH if _is_given(ctx, name)]:
        raise ConfigError(where=_flag(alone[0]), expected="--watch as well", got="none")
    if not files:
        raise click.MissingParameter(ctx=ctx, param_type="argument", param_hint="'FILE...'")
    for file in files:
        for owner in tenants(file, follow_symlinks=follow_symlinks):
            if owner != tenant and ctx.get_parameter_source("tenant") is ParameterSource.DEFAULT:
                raise ConfigError(
                    where=display_path(file),
                    expected="an archive of runs without a tenant",
                    got=f"one of {owner}",
                    hint=f"runspan export --tenant {shlex.quote(owner)} …; another name makes them runs of that tenant",
                )


def _flag(name: str) -> str:
    return "--json" if name == "as_json" else f"--{name.replace('_', '-')}"


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option is on the command line. The environment may be shared by several commands."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _open_dead_letters(path: Path | None, files: Iterable[str]) -> DeadLetters | None:
    """Open the file of dead letters. It must not be an input: reading it would never end."""
    if path is None:
        return None
    for file in files:
        source = Path(file)
        if source.is_dir() and path.absolute().parent.resolve() == source.resolve():
            got = "a file in a folder that is read"
        elif path.exists() and source.exists() and path.samefile(source):
            got = "a file that is read"
        else:
            continue
        raise ConfigError(
            where=f"--dead-letter {path}",
            expected="a file of its own",
            got=got,
            hint="rename the file to send again first, or keep dead letters elsewhere",
        )
    return DeadLetters(str(path))


def _read(
    files: Iterable[str],
    follow_symlinks: bool,
    on_skipped: Callable[[str], None],
    advance: Callable[[int], None] | None = None,
) -> Iterator[Run | DocumentError]:
    """Read the documents of all files. A file that does not exist is reported before anything is sent."""
    return map(parse, flatten(_lines(files, follow_symlinks, on_skipped, advance)))


def _lines(
    files: Iterable[str],
    follow_symlinks: bool,
    on_skipped: Callable[[str], None],
    advance: Callable[[int], None] | None,
) -> Iterator[RawDocument | RawLines]:
    """Read the texts of the documents of all files, as ``_read`` does."""
    sources = [lines(file, follow_symlinks=follow_symlinks, on_skipped=on_skipped, on_bytes=advance) for file in files]
    return chain.from_iterable(sources)


def _parallel_exporter(
    workers: int,
    receiver: options.ReceiverOptions,
    resource: Resource,
    batch_spans: int,
    correct: bool,
    dead_letter: Path | None,
) -> ParallelExporter:
    # Not at the top: most exports need no other process.
    from runspan.parallel_export import ParallelExporter, WorkerConfig  # noqa: PLC0415

    config = WorkerConfig(
        receiver.config(),
        resource,
        receiver.tenant,
        receiver.retry(),
        receiver.export_concurrency,
        batch_spans,
        correct,
        None if dead_letter is None else str(dead_letter),
    )
    return ParallelExporter(workers, config)


def _total_bytes(files: Iterable[str], follow_symlinks: bool) -> int | None:
    """Return the size of all files, None if one is unknown."""
    sizes = [total_bytes(file, follow_symlinks=follow_symlinks) for file in files]
    return None if None in sizes else sum(filter(None, sizes))


def _show_progress(display: ProgressDisplay, report: ExportReport) -> None:
    failed = report.runs_rejected + report.documents_refused
    display.update(f"{report.runs_accepted:,} runs accepted" + (f", {failed:,} not" if failed else ""))


def _dry_run(found: Iterable[Run | DocumentError], resource: Resource, tenant: str, correct: bool, quiet: bool) -> int:
    """Print what would be sent, one line for each run; return the exit code."""
    runs = spans = refused = 0
    for document in found:
        try:
            if isinstance(document, DocumentError):
                raise document
            encoded = encode(document, tenant=tenant, observed_at=time.time_ns(), after_root=correct)
        except DocumentError as error:
            print_error(error)
            refused += 1
            continue
        runs += 1
        spans += len(encoded)
        sys.stdout.buffer.write(write_json(encoded, resource) + b"\n")
    sys.stdout.buffer.flush()
    if refused or not quiet:
        click.echo(f"{runs:,} runs, {spans:,} spans, {refused:,} documents refused; nothing was sent", err=True)
    return INCOMPLETE if refused else 0
