"""``runspan serve``: the API, the receiver and the store in one process."""

from __future__ import annotations

import ipaddress
import logging
import os
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import click

from runspan.backends import FORMS, connect, open_store
from runspan.backends.sqlite import SqliteStore
from runspan.cli.errors import escape_control
from runspan.cli.options import STUCK_SECONDS, Duration, Retention, Seconds, Utf8Text, data_option, option, port_option
from runspan.cli.resources import backend_name, create_key_store, directory, is_remote, is_rest
from runspan.contracts import TraceReader
from runspan.errors import RunspanError, SettingError
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.config import MIB, WebConfig
from runspan.web.server import WebServer
from runspan.web.server import serve as serve_app
from runspan.web.sessions import SESSIONS_FILE, SessionStore

EXPIRE_EVERY = 3600.0


@click.command()
@data_option
@option(
    "--backend",
    metavar="URL",
    show_default="sqlite: of --data",
    help="What to serve: sqlite:DIR, or, to read only, tempo+http://HOST:3200 or jaeger+http://HOST:16686. The keys "
    "stay in --data.",
)
@option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="Address to listen on. Beyond this machine only with API keys: `runspan keys create`.",
)
@port_option
@option(
    "--allow-host",
    "allowed_hosts",
    type=Utf8Text(),
    multiple=True,
    metavar="NAME",
    show_default="names of this machine's loopback: localhost, 127.0.0.1, [::1]",
    help="Another name or address that the server answers to while it has no API keys, such as host.docker.internal. "
    "May be given several times.",
)
@option("--threads", default=8, type=click.IntRange(1, 256), metavar="COUNT", help="Requests answered at once.")
@option(
    "--retention",
    type=Retention(),
    metavar="DAYS",
    show_default="keep for ever",
    help="Delete runs this many days after their end: a number, or the plans' free (7), pro (30), enterprise (90). "
    "One that has not ended is kept this long after it was last written.",
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
    help="Another place where people look at a trace, with {trace_id} in it, as http://host/trace/{trace_id}.",
)
@option(
    "--jaeger-url",
    metavar="URL",
    default="",
    show_default="no links",
    help="Jaeger's pages as a browser reaches them, such as http://jaeger:16686, for links to traces.",
)
@option(
    "--grafana-url",
    metavar="URL",
    default="",
    show_default="no links",
    help="Grafana as a browser reaches it, such as http://grafana:3000, for links to traces.",
)
@option(
    "--grafana-datasource", metavar="UID", default="tempo", help="Grafana's uid of the Tempo data source in the links."
)
@option(
    "--stuck-after",
    type=Seconds(),
    metavar="TIME",
    default=f"{STUCK_SECONDS // 60}m",
    help="When a run that is pending or running and is not observed so any more counts as stuck in /metrics "
    "(runspan_runs_stuck, of the embedded store).",
)
@option("--private-metrics", is_flag=True, help="Ask for an API key at /metrics too.")
@option("--no-pages", is_flag=True, help="Serve the API alone, without the pages for people at / and without a login.")
@option(
    "--public-url",
    metavar="URL",
    default="",
    show_default="browsers reach the server directly",
    help="The server as browsers reach it through a proxy, such as https://runs.example.com. With https the login's "
    "cookie travels over TLS only; a path in it is a prefix that the proxy takes away.",
)
@option(
    "--trusted-proxy",
    metavar="ADDRESS",
    default="",
    show_default="X-Forwarded-For counts for nothing",
    help="Address that the connections of the proxy in front come from. The last entry of its X-Forwarded-For is then "
    "who asks, for the limit of wrong keys at the login and for the log.",
)
@option(
    "--session",
    type=Duration(),
    metavar="TIME",
    default="12h",
    help="How long a browser stays logged in; never longer than its API key is valid.",
)
@option("--access-log", is_flag=True, help="Log every request to standard error, without keys and bodies.")
def serve(
    data: str,
    backend: str | None,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    threads: int,
    retention: float | None,
    max_body: int,
    reads_per_minute: int,
    writes_per_minute: int,
    traces_per_minute: int,
    trace_url: str,
    jaeger_url: str,
    grafana_url: str,
    grafana_datasource: str,
    stuck_after: float,
    private_metrics: bool,
    no_pages: bool,
    public_url: str,
    trusted_proxy: str,
    session: int,
    access_log: bool,
) -> None:
    """Serve the runs page and the REST API, and receive traces.

    \b
    GET  /                        for people: runs, what happened in one, two compared
    GET  /api/v1/runs             newest first: workflowId, status, since, limit, cursor, stuckAfter
    GET  /api/v1/runs/{id}        one run document, exactly as it was sent
    GET  /api/v1/runs/{id}/trace  its trace id, and links to the trace
    GET  /api/v1/traces/{id}      a trace as OTLP/JSON
    POST /api/v1/runs             push a document
    POST /v1/traces               OTLP/HTTP receiver: protobuf or JSON, gzip
    GET  /healthz /readyz /metrics /api/v1/openapi.json

    Over Tempo or Jaeger it only reads: POST answers 501, and runs go to the backend's own OTLP receiver. How to log in
    there is set by RUNSPAN_BACKEND_USER and _PASSWORD, _TOKEN, _TENANT, _HEADERS, _CERTIFICATE and their like.

    Without any API key the server is open to everybody on this machine and listens nowhere else. It then answers to no
    name but localhost, the addresses of loopback and --allow-host, so that no web page gets at runs through a browser.

    It speaks plain HTTP: beyond this machine put it behind a TLS proxy that also bounds slow clients and bodies. Ctrl-C
    or SIGTERM ends it once running requests are answered; what was acknowledged is on disk.

    \b
    Examples:
      runspan serve --data ./data
      runspan serve --data ./data --retention 90 --host 0.0.0.0
      runspan serve --backend tempo+http://127.0.0.1:3200 --grafana-url http://127.0.0.1:3000
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    url = backend or f"sqlite:{data}"
    if is_rest(url):
        raise SettingError(
            "a server cannot be served again",
            where="backend",
            expected="sqlite:DIR, tempo+http://HOST:PORT or jaeger+http://HOST:PORT",
            got=repr(url),
            hint="`runspan list` and `runspan get` read from a running server",
        )
    config = WebConfig(
        max_body=max_body * MIB,
        reads_per_minute=reads_per_minute,
        writes_per_minute=writes_per_minute,
        traces_per_minute=traces_per_minute,
        allowed_hosts=allowed_hosts,
        metrics_open=not private_metrics,
        access_log=access_log,
        pages=not no_pages,
        public_url=public_url,
        stuck_after=stuck_after,
        trace_url=trace_url,
        jaeger_url=jaeger_url,
        grafana_url=grafana_url,
        grafana_datasource=grafana_datasource,
        backend=backend_name(url),
    )
    with ExitStack() as opened:
        keys = opened.enter_context(closing(create_key_store(data)))
        sessions = opened.enter_context(closing(SessionStore(directory(data) / SESSIONS_FILE, keys, lifetime=session)))
        _require_keys(keys, host, data)
        reader = opened.enter_context(closing(_open(url, retention)))
        store = reader if isinstance(reader, SqliteStore) else None
        if store is not None:
            opened.enter_context(_expiring(store, retention))
        serve_app(
            create_app(reader, store, config=config, keys=keys, sessions=sessions),
            host=host,
            port=port,
            threads=threads,
            max_body=config.max_body,
            trusted_proxy=trusted_proxy,
            on_ready=lambda server: _print_banner(server, url, keys, reads_only=store is None, pages=not no_pages),
        )
    end = "runspan stopped" if store is None else "runspan stopped; everything acknowledged is on disk"
    click.echo(end, err=True)


class LogFormatter(logging.Formatter):
    """A record is one line, and its stack trace indented lines: what a client sent can neither steer a terminal nor
    look like another record."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape_control(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"  {escape_control(line)}" for line in text.split("\n"))


def _open(url: str, retention: float | None) -> SqliteStore | TraceReader:
    if not is_remote(url):
        return open_store(url, retention_days=retention, forms=FORMS)
    if retention is not None:
        raise SettingError(
            where="--retention",
            expected="a store of our own to delete from",
            got=f"a {url.partition('+')[0].title()}",
            hint="set the backend's own: Tempo's block_retention, the ttl of Jaeger's storage",
        )
    return connect(url, env=os.environ)


def _print_banner(server: WebServer, url: str, keys: ApiKeyStore, *, reads_only: bool, pages: bool) -> None:
    click.echo(f"runspan is serving {url} at {server.url}", err=True)
    if pages:
        click.echo(f"  look:   {server.url}/", err=True)
    click.echo(f"  runs:   {server.url}/api/v1/runs", err=True)
    if reads_only:
        click.echo("  traces: none are taken; send them to the backend's own OTLP receiver", err=True)
    else:
        click.echo(f"  traces: {server.url}/v1/traces", err=True)
    if keys.unused:
        may = "read" if reads_only else "read and write"
        click.echo(f"  open: no API key was made, so everybody on this machine may {may}", err=True)


def _require_keys(keys: ApiKeyStore, host: str, data: str) -> None:
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
