"""``runspan export``: run documents from files to any OTLP receiver."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import click

from runspan.cli.options import api_key_option, json_option, option, tenant_option
from runspan.cli.places import otlp_environment
from runspan.cli.process import INCOMPLETE, INTERRUPTED, terminating, told
from runspan.cli.progress import progress, telling_trouble
from runspan.delivery import GRPC, HTTP, DeadLetters, Report, RetryPolicy, connect, settings_from
from runspan.delivery.settings import COMPRESSIONS
from runspan.encode import encode
from runspan.errors import DocumentError, SettingError
from runspan.export import TARGET_SPANS
from runspan.export import export as export_documents
from runspan.otlp.json import write_json
from runspan.otlp.wire import Resource
from runspan.run import Run
from runspan.sources import documents

GC_THRESHOLD: Final = 50_000
"""Allocations between collections. Documents and spans hold no cycles, so collecting often only costs time."""

HINTS: Final = (
    (
        "Txn is too big",
        "a span of that run is over the 9 to 10 MB that Jaeger's Badger takes; another storage takes it, or Tempo",
    ),
    ("no org id", "name the tenant: OTEL_EXPORTER_OTLP_HEADERS=X-Scope-OrgID=NAME"),
    ("HTTP 401", "set RUNSPAN_API_KEY, or --api-key-file, to a key of the server"),
    ("HTTP 403", "use an API key with the permission runs:write"),
    ("HTTP 404", "is this the address of an OTLP receiver? a path in the URL is used as it is"),
    ("ConnectError", "is a receiver listening there? start one with: runspan serve"),
    ("UNAVAILABLE", "is a gRPC receiver listening there? `runspan serve` takes http/protobuf only"),
)
"""What stands in the reason why runs were not taken, and what to do then."""


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@option(
    "--endpoint",
    metavar="URL",
    show_default="OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318",
    help="OTLP receiver, such as http://127.0.0.1:8321 or, with grpc, 127.0.0.1:4317.",
)
@option(
    "--protocol",
    type=click.Choice([HTTP, GRPC]),
    show_default=f"OTEL_EXPORTER_OTLP_PROTOCOL, else {HTTP}",
    help="How the receiver takes traces.",
)
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
@option(
    "--service-name",
    metavar="NAME",
    env=("RUNSPAN_SERVICE_NAME", "OTEL_SERVICE_NAME"),
    default="runspan",
    help="The traces' service.name; OTEL_RESOURCE_ATTRIBUTES adds to it.",
)
@option(
    "--dead-letter",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    show_default="keep none",
    help="Append every document that was rejected, in doubt or not sent to this file, which export reads back in.",
)
@tenant_option
@api_key_option
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
    tenant: str,
    api_key_file: Path | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Send run documents as traces.

    FILE is a JSON document, a JSON array of them, or NDJSON, also gzipped; a folder of such files; or - for standard
    input. It is read as a stream. A document that cannot be carried exactly is refused with its place, and the others
    go. Sending a file again is safe: what is there already stays as it is.

    \b
    Examples:
      runspan export runs.ndjson.gz --endpoint http://127.0.0.1:8321
      runspan export examples/runs --endpoint collector:4317 --protocol grpc
      curl -s https://example.com/runs.ndjson | runspan export -
      runspan export runs.ndjson --dead-letter left.ndjson || runspan export left.ndjson
      runspan export runs.ndjson --dry-run | jq .

    Secrets never stand on a command line: an API key for a runspan server comes from RUNSPAN_API_KEY or a file, other
    headers from OTEL_EXPORTER_OTLP_HEADERS.

    The report goes to standard error. The exit code is 0 only if every document was accepted, else 1.
    """
    resource = Resource(service_name, _resource_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    if dry_run:
        ctx.exit(_dry_run(_all(files, None), resource, tenant, quiet))
    settings = settings_from(
        otlp_environment(api_key_file), endpoint=endpoint, protocol=protocol, compression=compression, timeout=timeout
    )
    letters = _letters(dead_letter, files)
    with terminating(), progress(files, quiet=quiet or as_json) as bar, letters or nullcontext():
        delivery = connect(settings, workers=workers, retry=RetryPolicy(budget=retry_for), letters=letters)
        # The delivery counts what an interrupt left behind, so it ends in a report as well.
        with suppress(KeyboardInterrupt), delivery, telling_trouble(delivery, bar, retry_for):
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
        report = report.with_letters(letters)
    _print(report, quiet=quiet, as_json=as_json)
    ctx.exit(0 if report.complete else INTERRUPTED if report.stopped == "interrupted" else INCOMPLETE)


def _print(report: Report, *, quiet: bool, as_json: bool) -> None:
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


def hint_on(reason: str) -> str:
    """What to do about a receiver's refusal, or ""."""
    return next((hint for words, hint in HINTS if words in reason), "")


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


def _resource_attributes(text: str) -> dict[str, str]:
    """``OTEL_RESOURCE_ATTRIBUTES``: ``key=value`` joined by commas, values percent-encoded."""
    attributes: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SettingError(where="OTEL_RESOURCE_ATTRIBUTES", expected="key=value,key=value", got=repr(pair))
        attributes[key.strip()] = unquote(value.strip())
    attributes.pop("service.name", None)  # --service-name and OTEL_SERVICE_NAME go before it
    return attributes


def _dry_run(found: Iterable[Run | DocumentError], resource: Resource, tenant: str, quiet: bool) -> int:
    """Prints what would be sent, each run on its own line; the exit code."""
    runs = spans = refused = 0
    for document in found:
        try:
            if isinstance(document, DocumentError):
                raise document
            encoded = encode(document, tenant=tenant, observed_at=time.time_ns())
        except DocumentError as error:
            for line in told(error):
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
