"""``runspan serve``: the API, the receiver and the store in one process."""

from __future__ import annotations

import ipaddress
import logging
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import click

from runspan.backends.connect import open_store
from runspan.backends.sqlite import SqliteStore
from runspan.cli.options import Retention, data_option, option, port_option
from runspan.cli.places import is_rest, make_key_ring
from runspan.errors import RunspanError, SettingError
from runspan.web.app import create_app
from runspan.web.keys import KeyRing
from runspan.web.server import WebServer
from runspan.web.server import serve as serve_app
from runspan.web.settings import MIB, WebSettings

EXPIRE_EVERY = 3600.0


@click.command()
@data_option
@option(
    "--backend",
    metavar="URL",
    show_default="sqlite: of --data",
    help="The store to serve, such as sqlite:DIR. The keys stay in --data.",
)
@option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="Address to listen on. Beyond this machine only with API keys: `runspan keys create`.",
)
@port_option
@option("--threads", default=8, type=click.IntRange(1, 256), metavar="COUNT", help="Requests answered at once.")
@option(
    "--retention",
    type=Retention(),
    metavar="DAYS",
    show_default="keep for ever",
    help="Delete runs this many days after their end: a number, or the plans' free (7), pro (30), enterprise (90).",
)
@option(
    "--max-body",
    default=64,
    type=click.IntRange(1, 1024),
    metavar="MIB",
    help="Largest request body in MiB, as sent and again once unpacked.",
)
@option(
    "--reads-per-minute", default=1000, type=click.IntRange(0), metavar="COUNT", help="Limit for each key; 0: none."
)
@option(
    "--writes-per-minute", default=200, type=click.IntRange(0), metavar="COUNT", help="Limit for each key; 0: none."
)
@option(
    "--traces-per-minute",
    default=0,
    type=click.IntRange(0),
    metavar="COUNT",
    help="Limit for each key of OTLP requests, which hold hundreds of runs; 0: none.",
)
@option(
    "--trace-url",
    metavar="URL",
    default="",
    show_default="no links",
    help="Where people look at a trace, with {trace_id} in it, as http://jaeger:16686/trace/{trace_id}.",
)
@option("--private-metrics", is_flag=True, help="Ask for an API key at /metrics too.")
@option("--access-log", is_flag=True, help="Log every request to standard error, without keys and bodies.")
def serve(
    data: str,
    backend: str | None,
    host: str,
    port: int,
    threads: int,
    retention: float | None,
    max_body: int,
    reads_per_minute: int,
    writes_per_minute: int,
    traces_per_minute: int,
    trace_url: str,
    private_metrics: bool,
    access_log: bool,
) -> None:
    """Serve the REST API and receive traces.

    \b
    GET  /api/v1/runs        list, newest first: workflowId, status, since, limit, cursor
    GET  /api/v1/runs/{id}   one run document, exactly as it was sent
    POST /api/v1/runs        push a document
    POST /v1/traces          OTLP/HTTP receiver: protobuf or JSON, gzip
    GET  /healthz /readyz /metrics /api/v1/openapi.json

    Without any API key the server is open to everybody on this machine and listens nowhere else. Ctrl-C or SIGTERM
    ends it once running requests are answered; what was acknowledged is on disk.

    \b
    Examples:
      runspan serve --data ./data
      runspan serve --data ./data --retention 90 --host 0.0.0.0
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    url = backend or f"sqlite:{data}"
    if is_rest(url):
        raise SettingError(
            "a server cannot be served again",
            where="backend",
            expected="a store, such as sqlite:DIR",
            got=repr(url),
            hint="`runspan list` and `runspan get` read from a running server",
        )
    settings = WebSettings(
        max_body=max_body * MIB,
        reads_per_minute=reads_per_minute,
        writes_per_minute=writes_per_minute,
        traces_per_minute=traces_per_minute,
        metrics_open=not private_metrics,
        access_log=access_log,
        trace_url=trace_url,
    )
    with ExitStack() as opened:
        keys = opened.enter_context(closing(make_key_ring(data)))
        _refuse_strangers(keys, host, data)
        store = opened.enter_context(closing(open_store(url, retention_days=retention)))
        opened.enter_context(_expiring(store, retention))
        serve_app(
            create_app(store, store, settings=settings, keys=keys),
            host=host,
            port=port,
            threads=threads,
            max_body=settings.max_body,
            on_ready=lambda server: _tell(server, url, keys),
        )
    click.echo("runspan stopped; everything acknowledged is on disk", err=True)


def _tell(server: WebServer, url: str, keys: KeyRing) -> None:
    click.echo(f"runspan is serving {url} at {server.url}", err=True)
    click.echo(f"  runs:   {server.url}/api/v1/runs", err=True)
    click.echo(f"  traces: {server.url}/v1/traces", err=True)
    if keys.unused:
        click.echo("  open: no API key was made, so everybody on this machine may read and write", err=True)


def _refuse_strangers(keys: KeyRing, host: str, data: str) -> None:
    if keys.unused and not _is_loopback(host):
        raise SettingError(
            "refusing to listen beyond this machine without API keys",
            where=f"--host {host!r}",
            hint=f"make one first: {shlex.join(('runspan', 'keys', 'create', '--data', data, '--name', 'NAME'))}",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _expiring(store: SqliteStore, retention: float | None) -> Iterator[None]:
    """Deletes what is past its retention, and spans that nothing waits for, now and every hour in a thread."""
    ended = threading.Event()
    log = logging.getLogger("runspan.retention")

    def work() -> None:
        while not ended.is_set():
            try:
                deleted = store.expire(time.time_ns())
                if retention is not None:
                    log.info("deleted %d runs past their retention of %g days", deleted, retention)
            except RunspanError as error:
                if not ended.is_set():
                    log.error("retention: %s", error)
            ended.wait(EXPIRE_EVERY)

    # A daemon: a deletion under way is cut between two batches when the store closes, and goes on at the next start.
    thread = threading.Thread(target=work, name="runspan-retention", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
