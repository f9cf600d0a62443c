"""``runspan verify``: send runs, wait until a backend returns them, read them back, and compare byte for byte."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Final
from uuid import uuid4

import click
import msgspec
from rich.text import Text

from runspan.backends import open_store
from runspan.cli import options
from runspan.cli.app import INCOMPLETE, handle_signals
from runspan.cli.output import escape_control, hint_for, new_table, print_error, print_skipped, print_table
from runspan.contracts import TraceReader, TraceWriter
from runspan.delivery import ExporterConfig, RetryPolicy, connect, exporter_config
from runspan.errors import BackendError, BackendRefused, BackendUnreachable, ConfigError, DocumentError
from runspan.export import export
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import documents
from runspan.verify import CANARY, Send, Sent, VerifyResult, canary
from runspan.verify import verify as verify_runs
from runspan.verify.diagnosis import JAEGER

_CHECK_ENDPOINT: Final = "is this the address of an OTLP receiver, with this protocol?"
_STYLES: Final = {"same": "green", "not in lists": "yellow"}
_CHECK_DELAYS: Final = (1.0, 3.0)
"""Seconds before each retry of a check that was refused: Jaeger answers 500 for its storage, wherever that fails."""


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@options.backend
@options.option(
    "--endpoint",
    metavar="URL",
    show_default="none; sqlite is written directly",
    help="OTLP receiver of the backend, or of a Collector in front of it.",
)
@options.protocol
@options.time(
    "--wait", type=options.Seconds(), default="60s", help="How long to wait until a run can be read back and is listed."
)
@options.option("--canary", is_flag=True, help="Send one generated run instead of files, which is safe in production.")
@options.time(
    "--canary-age",
    type=options.Seconds(),
    default="0s",
    help="How long ago the canary ended: 30d checks whether the backend accepts runs that old.",
)
@options.follow_symlinks
@options.service_name(show_default=f"runspan, {CANARY} for the canary", help="The service.name of the traces.")
@options.as_json
@click.pass_context
def verify(
    ctx: click.Context,
    backend: options.BackendOptions,
    files: tuple[str, ...],
    endpoint: str | None,
    protocol: str | None,
    wait: float,
    canary: bool,
    canary_age: float,
    follow_symlinks: bool,
    service_name: str | None,
    as_json: bool,
) -> None:
    """Check that a backend returns runs exactly as they were sent.

    Sends the documents of FILE, waits until each can be read by its id and is listed, and compares the bytes. If one
    does not come back, the report names the setting of the backend to change. Without --backend the store in --data is
    checked, which must exist.

    \b
    Examples:
      runspan verify runs.ndjson --backend tempo+http://t:3200 --endpoint http://t:4318
      runspan verify --canary --backend jaeger+http://j:16686 --endpoint http://j:4318
      runspan verify --canary --canary-age 30d --backend tempo+http://t:3200 --endpoint http://t:4318

    The canary is one completed run of the workflow and service runspan-canary, with 300 steps, no failure and no
    tokens. The exit code is 0 only if every document came back unchanged and is listed, and none was refused.
    """
    now = time.time_ns()
    runs, refused = _runs(files, canary, now - int(canary_age * 1e9), follow_symlinks)
    resource = Resource(service_name or (CANARY if canary else "runspan"))
    if backend.backend_url is None:
        backend.require_store()  # one created for the check would be checked instead of the backend that was meant
    config = None
    if endpoint is not None:
        key = options.read_api_key(backend.api_key_file)
        config = exporter_config(os.environ, api_key=key, endpoint=endpoint, protocol=protocol)
    elif backend.kind != "sqlite":
        raise ConfigError(
            "this backend is not written directly",
            where="--endpoint",
            expected="an OTLP receiver",
            got="none",
            hint="name the backend's own, or that of the Collector in front of it: --endpoint http://HOST:4318",
        )
    with ExitStack() as stack, handle_signals():
        reader: TraceReader
        if config is not None:
            reader = stack.enter_context(closing(backend.open_reader((resource.service_name,))))
            send: Send = partial(_send, config, resource, backend.tenant, wait)
        else:
            store = stack.enter_context(closing(open_store(backend.url)))
            reader, send = store, partial(_write, store, backend.tenant)
        results = verify_runs(
            runs,
            send,
            reader,
            kind=backend.kind,
            tenant=backend.tenant,
            wait=wait,
            now=now,
            clock=time.monotonic,
            sleep=time.sleep,
        )
    problem = _services_problem(backend)
    same = sum(result.result == "same" for result in results)
    complete = same == len(results) and not refused and problem is None
    if as_json:
        summary = {"backend": backend.url, "complete": complete, "same": same, "refused": refused}
        click.echo(json.dumps(summary | {"runs": msgspec.to_builtins(results)}))
    else:
        _print(results, backend.url, same, refused)
    if problem is not None:
        raise problem
    ctx.exit(0 if complete else INCOMPLETE)


def _services_problem(backend: options.BackendOptions) -> BackendRefused | None:
    """Return why lists over a Jaeger fail that do not know the service of the runs, as the check does."""
    if backend.kind == JAEGER:
        with closing(backend.open_reader()) as reader:
            for delay in (*_CHECK_DELAYS, None):
                try:
                    reader.check()
                    break
                except BackendRefused as error:
                    if delay is None:
                        return error
                    time.sleep(delay)
                except BackendError:
                    break  # it is busy or slow, which is not what is checked
    return None


def _send(
    config: ExporterConfig, resource: Resource, tenant: str, wait: float, runs: Sequence[Run], observed_at: int
) -> Sent:
    """Send runs over OTLP."""
    with connect(config, retry=RetryPolicy(max_time=wait)) as exporter:
        report = export(runs, exporter, tenant=tenant, observed_at=lambda: observed_at, resource=resource)
    if report.stopped == "interrupted":
        raise KeyboardInterrupt
    if report.stopped and not report.runs_accepted:
        raise BackendUnreachable(
            "nothing was accepted",
            where=config.display_url,
            got=report.stopped,
            hint=hint_for(report.stopped) or _CHECK_ENDPOINT,
        )
    rejected = {each.what: ": ".join(filter(None, (each.reason, hint_for(each.reason)))) for each in report.rejections}
    return Sent(rejected, report.stopped)


def _write(store: TraceWriter, tenant: str, runs: Sequence[Run], observed_at: int) -> Sent:
    """Write runs into an embedded store."""
    rejected = {}
    for run in runs:
        for rejection in store.put(run, tenant=tenant, observed_at=observed_at).rejected:
            rejected[run.id] = rejection.reason
    return Sent(rejected)


def _runs(files: tuple[str, ...], wants_canary: bool, ended: int, follow_symlinks: bool) -> tuple[list[Run], int]:
    """Return the runs to send, the last one of each id, and the number of refused documents."""
    if wants_canary == bool(files):
        got = "both" if files else "neither"
        raise ConfigError(where="verify", expected="files or --canary", got=got, hint="see runspan verify -h")
    if wants_canary:
        return [canary(f"{CANARY}-{uuid4().hex}", ended)], 0
    runs: dict[str, Run] = {}
    refused = 0
    for file in files:
        for document in documents(file, follow_symlinks=follow_symlinks, on_skipped=print_skipped):
            if isinstance(document, DocumentError):
                refused += 1
                print_error(document)
            else:
                runs.pop(document.id, None)
                runs[document.id] = document
    if not runs and not refused:
        raise ConfigError(where=" ".join(files), expected="run documents", got="none", hint="name another file")
    return list(runs.values()), refused


def _print(results: Sequence[VerifyResult], url: str, same: int, refused: int) -> None:
    table = new_table("RUN", "RESULT", "BY ID", "IN LISTS", right=("BY ID", "IN LISTS"))
    table.add_column("DETAIL", overflow="fold")
    for result in results:
        table.add_row(
            Text(escape_control(result.run_id)),
            Text(result.result, style=_STYLES.get(result.result, "red")),
            _seconds(result.by_id),
            _seconds(result.in_lists),
            Text(escape_control(result.detail)),
        )
    print_table(table)
    summary = f"{same} of {len(results) + refused} documents came back the same, byte for byte, and are listed"
    not_sent = f"; {refused} refused, not sent" if refused else ""
    click.echo(f"{escape_control(url)}: {summary}{not_sent}", err=True)
    for advice in dict.fromkeys(line for result in results for line in result.advice):
        click.echo(f"  check: {escape_control(advice)}", err=True)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
