"""``runspan verify``: send runs, wait until a backend shows them, read them back, and compare byte for byte."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final
from uuid import uuid4

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runspan.backends import open_store
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.cli.errors import INCOMPLETE, escape_control, format_error, hint_on, terminating
from runspan.cli.options import Seconds, Utf8Text, json_option, option, reading_options
from runspan.cli.resources import is_remote, is_rest, open_reader, otlp_environment
from runspan.contracts import TraceReader, TraceWriter
from runspan.delivery import GRPC, HTTP, ExporterConfig, RetryPolicy, connect, exporter_config
from runspan.errors import BackendUnreachable, DocumentError, SettingError
from runspan.export import export
from runspan.model.run import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.sources import documents
from runspan.verify import CANARY, Send, Sent, VerifyResult, canary
from runspan.verify import verify as verify_runs

_IS_IT: Final = "is this the address of an OTLP receiver, with this protocol?"
_WIDE: Final = 100_000
_STYLES: Final = {"same": "green", "not in lists": "yellow"}


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@reading_options
@option(
    "--endpoint",
    metavar="URL",
    show_default="none; sqlite is written directly",
    help="OTLP receiver of the backend, or of a Collector before it.",
)
@option("--protocol", type=click.Choice([HTTP, GRPC]), show_default=HTTP, help="How the receiver takes traces.")
@option("--wait", type=Seconds(), metavar="TIME", default="60s", help="How long a run may take to show, as 60s or 5m.")
@option("--canary", is_flag=True, help="Instead of a file send one made-up run, which is safe on a production stack.")
@option(
    "--canary-age",
    type=Seconds(),
    metavar="TIME",
    default="0s",
    help="How long ago the canary ended: 30d tells whether runs as old as that can be brought in.",
)
@option(
    "--service-name",
    type=Utf8Text(),
    metavar="NAME",
    env=("RUNSPAN_SERVICE_NAME", "OTEL_SERVICE_NAME"),
    show_default=f"runspan, {CANARY} for the canary",
    help="The traces' service.name.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    files: tuple[str, ...],
    data: str,
    backend: str | None,
    tenant: str,
    api_key_file: Path | None,
    endpoint: str | None,
    protocol: str | None,
    wait: float,
    canary: bool,
    canary_age: float,
    service_name: str | None,
    as_json: bool,
) -> None:
    """Check that a backend gives runs back as they were sent.

    Sends the documents of FILE, waits until each can be read by its id and stands in lists, and compares the bytes.
    Where one does not come back, the report names the setting of the backend to change. Without --backend the store in
    --data is checked, which must exist.

    \b
    Examples:
      runspan verify runs.ndjson --backend tempo+http://t:3200 --endpoint http://t:4318
      runspan verify --canary --backend jaeger+http://j:16686 --endpoint http://j:4318
      runspan verify --canary --canary-age 30d --backend tempo+http://t:3200 --endpoint http://t:4318

    The canary is one completed run of the workflow and service runspan-canary, 300 steps, without a failure and without
    tokens. The exit code is 0 only if every document came back the same, lists show it, and none was refused.
    """
    url = backend or f"sqlite:{data}"
    now = time.time_ns()
    runs, refused = _runs(files, canary, now - int(canary_age * 1e9))
    resource = Resource(service_name or (CANARY if canary else "runspan"))
    if backend is None:
        _refuse_no_store(data)
    settings = None
    if endpoint is not None:
        settings = exporter_config(otlp_environment(api_key_file), endpoint=endpoint, protocol=protocol)
    elif is_remote(url) or is_rest(url):
        raise SettingError(
            "this backend is not written directly",
            where="--endpoint",
            expected="an OTLP receiver",
            got="none",
            hint="name the backend's own, or that of the Collector before it: --endpoint http://HOST:4318",
        )
    with ExitStack() as opened, terminating():
        reader: TraceReader
        if settings is not None:
            reader = opened.enter_context(closing(open_reader(backend, data, api_key_file, (resource.service_name,))))
            send: Send = _Sender(settings, resource, tenant, wait)
        else:
            store = opened.enter_context(closing(open_store(url)))
            reader, send = store, _Writer(store, tenant)
        kind = url.partition("+")[0].lower() if is_remote(url) else "other"
        verdicts = verify_runs(
            runs,
            send,
            reader,
            kind=kind,
            tenant=tenant,
            wait=wait,
            now=now,
            clock=time.monotonic,
            sleep=time.sleep,
        )
    same = sum(verdict.result == "same" for verdict in verdicts)
    if as_json:
        complete = same == len(verdicts) and not refused
        shown = {"backend": url, "complete": complete, "same": same, "refused": refused}
        click.echo(json.dumps(shown | {"runs": [verdict.to_dict() for verdict in verdicts]}))
    else:
        _print(verdicts, url, same, refused)
    ctx.exit(0 if same == len(verdicts) and not refused else INCOMPLETE)


class _Sender:
    """Sends over OTLP."""

    def __init__(self, settings: ExporterConfig, resource: Resource, tenant: str, wait: float) -> None:
        self._settings = settings
        self._resource = resource
        self._tenant = tenant
        self._retry = RetryPolicy(max_time=wait)

    def __call__(self, runs: Sequence[Run], observed_at: int) -> Sent:
        with connect(self._settings, retry=self._retry) as delivery:
            report = export(
                runs, delivery, tenant=self._tenant, observed_at=lambda: observed_at, resource=self._resource
            )
        if report.stopped == "interrupted":
            raise KeyboardInterrupt
        if report.stopped and not report.runs_accepted:
            raise BackendUnreachable(
                "nothing was taken",
                where=self._settings.display_url,
                got=report.stopped,
                hint=hint_on(report.stopped) or _IS_IT,
            )
        refused = {each.what: f"{each.reason}: {hint_on(each.reason)}" for each in report.rejections}
        return Sent({run_id: words.removesuffix(": ") for run_id, words in refused.items()}, report.stopped)


class _Writer:
    """Writes into a store of our own."""

    def __init__(self, store: TraceWriter, tenant: str) -> None:
        self._store = store
        self._tenant = tenant

    def __call__(self, runs: Sequence[Run], observed_at: int) -> Sent:
        refused = {}
        for run in runs:
            for rejection in self._store.put(run, tenant=self._tenant, observed_at=observed_at).rejected:
                refused[run.id] = rejection.reason
        return Sent(refused)


def _runs(files: tuple[str, ...], wants_canary: bool, ended: int) -> tuple[list[Run], int]:
    """The runs to send, of each id the last, and how many documents were refused."""
    if wants_canary == bool(files):
        got = "both" if files else "neither"
        raise SettingError(where="verify", expected="files or --canary", got=got, hint="see runspan verify -h")
    if wants_canary:
        return [canary(f"{CANARY}-{uuid4().hex}", ended)], 0
    runs: dict[str, Run] = {}
    refused = 0
    for file in files:
        for document in documents(file):
            if isinstance(document, DocumentError):
                refused += 1
                for line in format_error(document):
                    click.echo(line, err=True)
            else:
                runs.pop(document.id, None)
                runs[document.id] = document
    if not runs and not refused:
        raise SettingError(where=" ".join(files), expected="run documents", got="none", hint="name another file")
    return list(runs.values()), refused


def _refuse_no_store(data: str) -> None:
    """Without a backend's name, a store made for the check would be checked in place of the one that was meant."""
    if not Path(data, FILE_NAME).exists():
        raise SettingError(
            "no backend was named, and no runs are kept here",
            where=data,
            expected="--backend, or the directory of an embedded store in --data",
            hint="name what to check: --backend tempo+http://HOST:3200, jaeger+http://HOST:16686 or sqlite:DIR",
        )


def _print(verdicts: Sequence[VerifyResult], url: str, same: int, refused: int) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RUN", no_wrap=True)
    table.add_column("RESULT", no_wrap=True)
    table.add_column("BY ID", no_wrap=True, justify="right")
    table.add_column("IN LISTS", no_wrap=True, justify="right")
    table.add_column("DETAIL", overflow="fold")
    for verdict in verdicts:
        table.add_row(
            Text(escape_control(verdict.run_id)),
            Text(verdict.result, style=_STYLES.get(verdict.result, "red")),
            _seconds(verdict.by_id),
            _seconds(verdict.in_lists),
            Text(escape_control(verdict.detail)),
        )
    with console.capture() as rendered:
        console.print(table)
    for line in rendered.get().splitlines():
        click.echo(line.rstrip())
    summary = f"{same} of {len(verdicts) + refused} documents came back the same, byte for byte, and stand in lists"
    not_sent = f"; {refused} refused, not sent" if refused else ""
    click.echo(f"{escape_control(url)}: {summary}{not_sent}", err=True)
    for advice in dict.fromkeys(line for verdict in verdicts for line in verdict.settings):
        click.echo(f"  check: {escape_control(advice)}", err=True)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
