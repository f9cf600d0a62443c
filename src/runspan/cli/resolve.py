"""``runspan resolve``: end a run whose engine died."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from typing import Final

import click

from runspan.backends import open_store
from runspan.cli import options
from runspan.cli.output import escape_control, hint_for
from runspan.delivery import Batch, RetryPolicy, RunSpans, connect, exporter_config
from runspan.errors import BackendRefused, ConfigError
from runspan.model.document import str_or_none
from runspan.model.span import run_ids
from runspan.otlp.protobuf_reader import read_protobuf
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.resolve import RESOLUTIONS, resolve
from runspan.system import user_name

_SEND_SECONDS: Final = 30.0
_CHECK_KEY: Final = "the key of a runspan server needs the permission runs:write"


@click.command("resolve")
@click.argument("run_id", type=options.Utf8Text(), metavar="ID")
@options.option(
    "--status", type=click.Choice(RESOLUTIONS), required=True, help=f"The end of the run: {' or '.join(RESOLUTIONS)}."
)
@options.option(
    "--why", type=options.Utf8Text(), metavar="TEXT", default="", help="The reason, for the error of the document."
)
@options.option(
    "--by",
    type=options.Utf8Text(),
    metavar="NAME",
    default="",
    show_default="the user and host of this command",
    help="Who ends the run, for the error of the document.",
)
@options.option("--force", is_flag=True, help="Write another end of a run that has ended.")
@options.backend
@options.option(
    "--endpoint",
    metavar="URL",
    show_default="a runspan server as --backend itself; a store is written directly",
    help="OTLP receiver of the backend, or of a Collector in front of it.",
)
@options.protocol
@options.service_name(default="runspan", help="The service.name under which the run was sent.")
def resolve_run(
    run_id: str,
    status: str,
    why: str,
    by: str,
    force: bool,
    backend: options.BackendOptions,
    endpoint: str | None,
    protocol: str | None,
    service_name: str,
) -> None:
    """End a run whose engine died, so that it is stuck no more.

    Reads the run, and writes its end as a correction: the status, completedAt, durationMs, and an error with who ended
    it, why, and when the run was last observed. Everything else stays as it was last observed, so open steps stay open.
    The correction ranks above anything that the engine still sends. If the engine ended the run after all, send its
    document with `runspan export --correct`. Alerts do not count the correction as a failure.

    \b
    Examples:
      runspan resolve run_abc123 --status cancelled --why "host replaced" --data ./data
      runspan resolve run_abc123 --status timed_out --backend http://127.0.0.1:8321
      runspan resolve run_1 --status cancelled --backend tempo+http://t:3200 --endpoint http://t:4318
      runspan resolve run_abc123 --status timed_out --force --data ./data
    """
    if endpoint is None and backend.kind not in ("sqlite", "rest"):
        raise ConfigError(
            "this backend is not written directly",
            where="--endpoint",
            expected="an OTLP receiver",
            got="none",
            hint="name the backend's own, or that of the Collector in front of it: --endpoint http://HOST:4318",
        )
    with closing(backend.open_reader((service_name,) if backend.kind == "jaeger" else None)) as reader:
        spans = reader.spans(run_ids(run_id, backend.tenant).trace_id)
    run, span = resolve(
        spans, status=status, by=by or f"{user_name()}@{socket.gethostname()}", why=why, now=time.time_ns(), force=force
    )
    resource = Resource(service_name)
    if endpoint is None and backend.kind == "sqlite":
        with closing(open_store(backend.url)) as store:
            result = store.write(read_protobuf(request_bytes(resource, [scoped_bytes(span)])), backend.tenant)
        reasons = [rejection.reason for rejection in result.rejected]
    else:
        reasons = _send(RunSpans.of(run_id, [scoped_bytes(span)], run.text), resource, endpoint, protocol, backend)
    if reasons:
        raise BackendRefused(
            "the end was not written", where=f"run {run_id}", got=reasons[0], hint=hint_for(reasons[0]) or _CHECK_KEY
        )
    click.echo(f"run {escape_control(run_id)} ended as {str_or_none(run.envelope.status)}", err=True)


def _send(
    run: RunSpans, resource: Resource, endpoint: str | None, protocol: str | None, backend: options.BackendOptions
) -> list[str]:
    """Send the spans over OTLP, and return why they were not accepted."""
    config = exporter_config(
        os.environ,
        api_key=options.read_api_key(backend.api_key_file),
        endpoint=endpoint or backend.url,
        protocol=protocol,
    )
    # A Collector must not count what a person decided as news.
    with connect(config.as_replay(), workers=1, retry=RetryPolicy(max_time=_SEND_SECONDS)) as exporter:
        exporter.submit(Batch(resource, (run,)))
        report = exporter.flush()
    return [*filter(None, [report.stopped]), *(rejection.reason for rejection in report.rejections)]
