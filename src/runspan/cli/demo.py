"""``runspan demo``: send sample runs through a server, read them back, and compare every document."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import click
import httpx

from runspan.backends.sqlite import SqliteStore
from runspan.cli import options
from runspan.cli.app import INCOMPLETE, INTERRUPTED, handle_signals
from runspan.cli.output import escape_control
from runspan.cli.state import create_key_store
from runspan.delivery import connect, exporter_config
from runspan.errors import ConfigError
from runspan.export import export
from runspan.model.document import Run
from runspan.otlp.protobuf_writer import Resource
from runspan.platform_api.client import run_path
from runspan.sources import documents
from runspan.testing import generate
from runspan.web.app import create_app
from runspan.web.server import WebServer

SAMPLES: Final = Path("examples/runs")
GENERATED: Final = 200


@click.command()
@options.option(
    "--data",
    metavar="DIR",
    default="runspan-demo",
    env="RUNSPAN_DEMO_DATA",
    help="Directory of the demo's own store, so that samples are not mixed with real runs.",
)
@options.port
@options.option(
    "--runs",
    "source",
    metavar="PATH",
    show_default=f"{SAMPLES} if it exists, else generated runs",
    help="File or folder of run documents.",
)
@options.option(
    "--exit", "leave", is_flag=True, env="RUNSPAN_DEMO_EXIT", help="Exit after the check instead of serving."
)
@click.pass_context
def demo(ctx: click.Context, data: str, port: int, source: str | None, leave: bool) -> None:
    """Send sample runs through a server, and compare what comes back.

    Starts a server on this machine, exports the documents to it over OTLP/HTTP, reads each one back over the REST API
    and compares the bytes. Then it continues to serve, so that you can look around, until Ctrl-C.

    \b
    Examples:
      runspan demo
      runspan demo --runs my-runs.ndjson --port 0 --exit
    """
    origin, runs = _samples(source)
    with handle_signals(), _serving(data, port) as url:
        click.echo(f"runspan is serving at {url}, its store is in {data}")
        click.echo(f"sending {len(runs)} runs, {origin}")
        with connect(exporter_config({}, endpoint=url)) as exporter:
            report = export(runs, exporter, observed_at=time.time_ns, resource=Resource())
        for line in report.summary_lines():
            click.echo(line)
        if report.stopped == "interrupted":
            ctx.exit(INTERRUPTED)
        newest = list({run.id: run for run in runs}.values())
        same = _compare(newest, url)
        click.echo(f"{same} of {len(newest)} documents came back the same, byte for byte")
        if same < len(newest) or not report.complete:
            ctx.exit(INCOMPLETE)
        _print_examples(newest, url, data)
        if leave:
            return
        click.echo("serving; press Ctrl-C to stop")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("")


def _samples(source: str | None) -> tuple[str, list[Run]]:
    """Return a description of the runs' origin, and the runs. A document that cannot be read ends the demo."""
    if source is None and not SAMPLES.is_dir():
        return "generated for this demo", [Run.from_json(text) for text in generate(GENERATED)]
    place = source or str(SAMPLES)
    runs = []
    for document in documents(place):
        if not isinstance(document, Run):
            raise document
        runs.append(document)
    if not runs:
        raise ConfigError(where=place, expected="run documents", got="none", hint="name another file with --runs")
    return f"from {place}", runs


@contextmanager
def _serving(data: str, port: int) -> Iterator[str]:
    """Run a server on a store in the directory, in a thread; yield its URL."""
    with ExitStack() as opened:
        keys = opened.enter_context(closing(create_key_store(data)))
        if not keys.unused:
            raise ConfigError(
                "this directory has API keys", where=data, hint="use another directory for the demo: --data DIR"
            )
        store = opened.enter_context(closing(SqliteStore(Path(data), index=True)))
        try:
            server = WebServer(create_app(store, store, keys=keys), port=port)
        except ConfigError as error:
            error.hint = "choose another one: runspan demo --port 0 selects a free one"
            raise
        thread = threading.Thread(target=server.run, name="runspan-demo")
        thread.start()
        opened.callback(thread.join)
        opened.callback(server.stop)
        yield server.url


def _compare(runs: list[Run], url: str) -> int:
    same = 0
    with httpx.Client(base_url=url, trust_env=False) as client:
        for run in runs:
            response = client.get(run_path(run.id))
            if response.content == b'{"success":true,"data":' + run.text + b"}":
                same += 1
            else:
                click.echo(f"  {escape_control(run.id)}: HTTP {response.status_code}, not the same", err=True)
    return same


def _print_examples(runs: list[Run], url: str, data: str) -> None:
    shown = next((run for run in runs if run.status == "failed"), runs[0])
    commands = (
        ("curl", f"{url}/api/v1/runs?status=failed&limit=5"),
        ("curl", f"{url}{run_path(shown.id)}"),
        ("runspan", "list", "--data", data),
        ("runspan", "get", shown.id, "--data", data),
    )
    click.echo(f"\nlook around in a browser: {url}/\nor in a shell:")
    for command in commands:
        click.echo(f"  {escape_control(shlex.join(command))}")
