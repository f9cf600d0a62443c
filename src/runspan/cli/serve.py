"""``runspan serve``: the API, the receiver and the store in one process."""

from __future__ import annotations

import gc
import logging
import math
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import click

from runspan.backends import connect
from runspan.backends.remote.config import remote_config
from runspan.backends.sqlite import Limits, SqliteStore
from runspan.backends.sqlite.reserve import Reserve
from runspan.backends.sqlite.schema import FILE_NAME
from runspan.cli import options
from runspan.cli.app import handle_signals
from runspan.cli.output import background
from runspan.cli.server_log import log_to_stderr
from runspan.cli.state import StateOptions, create_key_store, state
from runspan.contracts import TraceReader
from runspan.delivery.config import HTTP, exporter_config
from runspan.errors import ConfigError, RunspanError
from runspan.forward import MAX_REQUEST, Forwarder
from runspan.otlp.env import read_attributes
from runspan.otlp.protobuf_writer import Resource
from runspan.storage.data_directory import SESSIONS_FILE
from runspan.system import allow_open_files, share_heaps
from runspan.web.api_keys import ApiKeyStore
from runspan.web.app import create_app
from runspan.web.auth import is_loopback
from runspan.web.config import MIB, WebConfig
from runspan.web.limits import ServerLimits
from runspan.web.server import WebServer
from runspan.web.sessions import SessionStore
from runspan.web.usage import USAGE_FILE, Quota, Quotas, UsageStore
from runspan.web.windows import SharedWindows

_EXPIRE_EVERY: Final = 3600.0
_LIMITS: Final = Limits()
_SWITCH_INTERVAL: Final = 0.0005
"""Seconds after which a thread lets others run Python code. A request waits so long for each thread that is computing,
and does so dozens of times, since every call that may block lets others run too. The default is ten times as long."""
_GC_OBJECTS: Final = 50_000
"""Objects after which the garbage collector looks for cycles; the default is some hundreds."""
_EXPIRE_WHEN_FULL: Final = 10.0
_END_AFTER: Final = 8.5
"""Seconds after a signal at which the process ends in any case."""
_MOST_FILES: Final = 65_536

_link_option = partial(options.option, metavar="URL", default="", show_default="no links")


@click.command()
@state
@options.option(
    "--backend",
    "backend_url",
    metavar="URL",
    show_default="sqlite: of --data",
    help="Backend to serve: sqlite:DIR or, to read only, tempo+http://HOST:3200 or jaeger+http://HOST:16686. "
    "Servers of one Tempo or Jaeger share their API keys with --state.",
)
@options.option(
    "--forward-to",
    metavar="URL",
    show_default="refuse writes over Tempo and Jaeger",
    help="OTLP/HTTP receiver of the Collector before the backend, such as http://collector:4318, to which POST "
    "/api/v1/runs and POST /v1/traces are forwarded. They are acknowledged once it has acknowledged them. The "
    "variables OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT (10 s by default), _COMPRESSION and _CERTIFICATE apply.",
)
@options.mebibytes(
    "--max-forwarded",
    least=MAX_REQUEST // MIB,
    default=MAX_REQUEST // MIB,
    help="MiB of a request that the backend behind the Collector takes: max_recv_msg_size_mib of its OTLP receiver. A "
    "step, or the members of a run, that may not fit is refused with 413.",
)
@options.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    help="Address to listen on. Another one than this machine's loopback needs API keys: `runspan keys create`.",
)
@options.port
@options.option(
    "--allow-host",
    "allowed_hosts",
    type=options.Utf8Text(),
    multiple=True,
    metavar="NAME",
    show_default="names of this machine's loopback: localhost, 127.0.0.1, [::1]",
    help="Another name or address that the server accepts as Host while it has no API keys, such as "
    "host.docker.internal. The option may be repeated.",
)
@options.grouped(
    "limits",
    ServerLimits,
    options.concurrency(
        default=16,
        most=256,
        help="Number of requests that are handled at once. A tenant may use as many of these places as are free: half "
        "of them if it is the only one, then half of the rest for the next one.",
    ),
    options.time(
        "--queue-time",
        type=options.Seconds(),
        default="5s",
        help="How long a request waits for one of its tenant's places until it is refused with 503 and Retry-After.",
    ),
    options.count(
        "--max-connections",
        "connections",
        least=1,
        default=1000,
        help="Open connections. One more closes the one that has been idle for longest.",
    ),
    options.count(
        "--max-client-connections",
        "client_connections",
        least=1,
        default=200,
        help="Open connections of one client address, or of one IPv6 network of 64 bits; not of --trusted-proxy.",
    ),
    options.time(
        "--idle-time",
        type=options.Seconds(),
        default="2m",
        help="How long a connection may stay open without a request.",
    ),
    options.time(
        "--header-time",
        type=options.Seconds(),
        default="15s",
        help="How long the headers of a request may take, then it is refused with 408.",
    ),
    options.option(
        "--min-rate",
        default=16,
        type=click.IntRange(1, 1 << 20),
        callback=lambda ctx, param, kibibytes: kibibytes << 10,
        metavar="KIB",
        help="KiB a second that a client has to send of a body, or read of a response, on average after --slow-time. "
        "A slower body is refused with 408, over OTLP with 503; a slower reader loses its connection.",
    ),
    options.time(
        "--slow-time",
        type=options.Seconds(),
        default="30s",
        help="How long a client may send or read more slowly than --min-rate.",
    ),
    options.mebibytes(
        "--max-bodies",
        "bodies",
        default=512,
        help="MiB of request bodies that are received or handled at once, in memory and, from 4 MiB each, in the "
        "system's temporary directory. A tenant may use half of it. More is refused with 503 and Retry-After. At least "
        "twice --max-body.",
    ),
    options.mebibytes(
        "--max-unsent",
        "unsent",
        default=256,
        help="MiB of responses in memory that clients have not read yet. More closes the connection that has been "
        "sending for longest.",
    ),
)
@options.option(
    "--retention",
    type=options.Retention(),
    metavar="DAYS",
    show_default="keep forever",
    help="Delete runs this many days after their end: a number, or one of the plans free (7), pro (30), enterprise "
    "(90). An unfinished run is deleted this long after it was last written.",
)
@options.option(
    "--max-expire-share",
    default=50,
    type=click.IntRange(1, 100),
    callback=lambda ctx, param, percent: percent / 100,
    metavar="PERCENT",
    help="Delete at most this share of the runs at once: otherwise a clock that is set ahead, or a wrong --retention, "
    "deletes them all. When more are past their retention, none is deleted, and the log says why. Ten runs are always "
    "deleted, and those that passed their retention while the server was running. 100: no limit.",
)
@options.mebibytes(
    "--max-body",
    most=1024,
    default=64,
    help="Largest request body in MiB, compressed and uncompressed.",
)
@options.grouped(
    "store_limits",
    Limits,
    options.count(
        "--max-steps",
        least=1,
        default=_LIMITS.max_steps,
        help="Steps of one run. In one trace twice as many spans may wait for others, and twice as many of other "
        "instrumentation are kept.",
    ),
    options.count(
        "--max-waiting-spans",
        least=1,
        default=_LIMITS.max_waiting_spans,
        help="Spans of one tenant that wait for others of their runs, in the embedded store.",
    ),
    options.mebibytes(
        "--max-waiting-mib",
        "max_waiting_bytes",
        default=_LIMITS.max_waiting_bytes // MIB,
        help="The same in MiB; those of one trace may take a quarter.",
    ),
)
@options.option(
    "--no-search",
    is_flag=True,
    help="Keep no index of the runs in --data, and delete the one that is there. It takes processor time and disk "
    "space. Statistics need it, and lists for triggerType, errorCode, minDuration, model, stepType, q and sort.",
)
@options.count("--reads-per-minute", default=1000, help="Limit for each key; 0: none.")
@options.count("--writes-per-minute", default=200, help="Limit for each key; 0: none.")
@options.count(
    "--traces-per-minute",
    default=0,
    help="Limit of OTLP requests for each key, each of which may contain hundreds of runs; 0: none.",
)
@options.count(
    "--runs-per-day",
    default=0,
    help="Quota of each tenant: runs of which it sends something on a day, in UTC. More new ones are refused with 429; "
    "those that were counted go on. 0: none.",
)
@options.count(
    "--mib-per-day",
    default=0,
    help="Quota of each tenant: MiB of request bodies that it sends on a day, in UTC, decompressed. 0: none.",
)
@options.option(
    "--tenant-quota",
    "tenant_quotas",
    type=options.Utf8Text(),
    multiple=True,
    metavar="TENANT=RUNS,MIB",
    show_default="the same for all",
    help="The two quotas of one tenant in place of the others, such as acme=5000,200. The option may be repeated.",
)
@options.option(
    "--tenant-usage",
    is_flag=True,
    help="Include in /metrics what each tenant has sent today, by its name: of up to 100 tenants, and of the others.",
)
@_link_option(
    "--trace-url",
    help="Template of links to traces in another tool, which contains {trace_id} and may contain {span_id}, such as "
    "http://host/trace/{trace_id}.",
)
@_link_option(
    "--jaeger-url",
    help="Jaeger's web interface as browsers reach it, such as http://jaeger:16686, for links to traces.",
)
@_link_option("--grafana-url", help="Grafana as browsers reach it, such as http://grafana:3000, for links to traces.")
@options.option(
    "--grafana-datasource", metavar="UID", default="tempo", help="Grafana's uid of the Tempo data source in links."
)
@options.time(
    "--stuck-after",
    type=options.Seconds(),
    default=f"{options.STUCK_AFTER // 60}m",
    help="Count a pending or running run as stuck in /metrics when its next heartbeat is overdue by this much "
    "(runspan_runs_stuck, of the embedded store).",
)
@options.time(
    "--stuck-max-age",
    type=options.Seconds(),
    default="7d",
    help="Count no run as stuck in /metrics that was older than this when it was last observed: it was not watched "
    "while it ran, but sent from a file. The age of a suspended run is in /metrics until it is so old.",
)
@options.option("--private-metrics", is_flag=True, help="Require an API key at /metrics too.")
@options.option("--no-pages", is_flag=True, help="Serve the API only, without the web pages at / and without a login.")
@options.option(
    "--public-url",
    metavar="URL",
    default="",
    show_default="browsers reach the server directly",
    help="URL at which browsers reach the server through a proxy, such as https://runs.example.com. With https the "
    "session cookie is sent over TLS only; a path is a prefix that the proxy removes.",
)
@options.option(
    "--trusted-proxy",
    metavar="ADDRESS",
    default="",
    show_default="X-Forwarded-For is ignored",
    help="Address of the proxy in front of the server. The last entry of its X-Forwarded-For is then the client's "
    "address, for the limit of failed logins and for the log.",
)
@options.time(
    "--session-lifetime", default="12h", help="How long a browser stays logged in, at most until its API key expires."
)
@options.option("--access-log", is_flag=True, help="Log every request to standard error, without keys and bodies.")
@options.grouped("config", WebConfig)
def serve(
    config: WebConfig,
    state: StateOptions,
    backend_url: str | None,
    forward_to: str | None,
    max_forwarded: int,
    host: str,
    port: int,
    limits: ServerLimits,
    retention: float | None,
    store_limits: Limits,
    max_expire_share: float,
    no_search: bool,
    private_metrics: bool,
    no_pages: bool,
    trusted_proxy: str,
    session_lifetime: int,
    runs_per_day: int,
    mib_per_day: int,
    tenant_quotas: tuple[str, ...],
) -> None:
    """Serve the web pages and the REST API, and receive traces.

    \b
    GET  /                        web pages: list of runs, a run in detail, a comparison of two
    GET  /api/v1/runs             newest first: workflowId, status, since, from, to, endedFrom,
                                  endedTo, stuckAfter, triggerType, errorCode, minDuration,
                                  model, stepType, q, sort, limit, cursor
    GET  /api/v1/runs/{id}        one run document, exactly as it was sent
    GET  /api/v1/runs/{id}/trace  its trace id, and links to the trace
    GET  /api/v1/stats            runs, durations, failures and cost by workflow, day, hour, model,
                                  step or error: workflowId, from, to, groupBy, timeZone, limit
    GET  /api/v1/traces/{id}      a trace as OTLP/JSON
    POST /api/v1/runs             store a document
    POST /v1/traces               OTLP/HTTP receiver: protobuf or JSON, gzip
    GET  /healthz /readyz /metrics /api/v1/openapi.json

    With Tempo or Jaeger the server only reads unless --forward-to names a Collector before them: POST returns 501, and
    runs are sent to the backend's own OTLP receiver.
    RUNSPAN_BACKEND_USER and _PASSWORD, _TOKEN, _TENANT, _HEADERS, _CERTIFICATE and others configure the login there.
    Any number of such servers may stand behind a balancer: with --state they share keys, logins and limits in
    PostgreSQL, and need no disk.

    Without API keys the server is open to everybody on this machine and listens on loopback only. It then accepts no
    Host but localhost, loopback addresses and --allow-host, so that no web page reaches runs through a browser.

    The server speaks plain HTTP; on a network, put it behind a TLS proxy. It bounds connections, slow clients and
    bodies itself. Ctrl-C, SIGTERM or SIGHUP ends it within 10 seconds, after the current requests are answered if they
    end in time; everything acknowledged is on disk.

    \b
    Examples:
      runspan serve --data ./data
      runspan serve --data ./data --retention 90 --host 0.0.0.0
      runspan serve --backend tempo+http://127.0.0.1:3200 --grafana-url http://127.0.0.1:3000
      runspan serve --backend tempo+http://tempo:3200 --state postgresql://runspan@db/runspan
    """
    data = state.data
    url = backend_url or f"sqlite:{data}"
    if options.backend_kind(url) == "rest":
        raise ConfigError(
            "a server cannot be served again",
            where="backend",
            expected="sqlite:DIR, tempo+http://HOST:PORT or jaeger+http://HOST:PORT",
            got=repr(url),
            hint="`runspan list` and `runspan get` read from a running server",
        )
    allow_open_files(_MOST_FILES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        share_heaps()
    config = replace(config, metrics_open=not private_metrics, pages=not no_pages, backend=_public_name(url))
    with ExitStack() as stack:
        stack.enter_context(log_to_stderr())
        if options.backend_kind(url) == "sqlite":  # on a full disk the keys and the sessions need room too
            Reserve(Path(url.partition(":")[2], FILE_NAME)).release_if_nearly_full()
        database = state.connect()
        if database is not None:
            stack.enter_context(closing(database))
        keys = stack.enter_context(closing(create_key_store(data) if database is None else ApiKeyStore(database)))
        sessions = stack.enter_context(
            closing(SessionStore(database or Path(data, SESSIONS_FILE), keys, lifetime=session_lifetime))
        )
        quotas = _read_quotas(Quota(runs_per_day, mib_per_day * MIB), tenant_quotas)
        usage: UsageStore | None = None
        if config.tenant_usage or quotas != Quotas():
            usage = stack.enter_context(closing(UsageStore(database or Path(data, USAGE_FILE), quotas)))
        if keys.unused and not is_loopback(host):
            where = ("--data", data) if database is None else ()
            create = shlex.join(("runspan", "keys", "create", *where, "--name", "NAME"))
            raise ConfigError(
                "refusing to listen beyond this machine without API keys",
                where=f"--host {host!r}",
                hint=f"create one first: {create}",
            )
        if retention is not None and options.backend_kind(url) != "sqlite":
            raise ConfigError(
                where="--retention",
                expected="an embedded store to delete from",
                got=f"a {options.backend_kind(url).title()}",
                hint="set the backend's own: Tempo's block_retention, the ttl of Jaeger's storage",
            )
        if forward_to and options.backend_kind(url) == "sqlite":
            raise ConfigError(
                where="--forward-to",
                expected="Tempo or Jaeger as --backend",
                got="the embedded store, which takes runs itself",
                hint="leave it out, or name the backend that the Collector writes to",
            )
        reader = stack.enter_context(
            closing(
                connect(
                    url,
                    retention_days=retention,
                    max_expire_share=max_expire_share,
                    limits=store_limits,
                    index=not no_search,
                    env=os.environ,
                )
            )
        )
        store = reader if isinstance(reader, SqliteStore) else None
        forwarder = _open_forwarder(stack, reader, url, forward_to, max_forwarded) if forward_to else None
        if store is not None:
            stack.enter_context(background(partial(_expire_regularly, store, retention), "runspan-retention"))
        server = WebServer(
            create_app(
                reader,
                store or forwarder,
                config=config,
                keys=keys,
                sessions=sessions,
                windows=None if database is None else SharedWindows(database),
                usage=usage,
            ),
            host=host,
            port=port,
            limits=limits,
            max_body=config.max_body,
            trusted_proxy=trusted_proxy,
        )
        sys.setswitchinterval(_SWITCH_INTERVAL)
        # A large request makes thousands of objects, and none of them is garbage before its end.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS, 10, 10)
        with handle_signals(partial(_stop, server), repeat=True):
            _print_banner(server, url, keys, forward_to, read_only=not (store or forwarder), pages=config.pages)
            if database is not None:
                click.echo(f"  state:  {database.name}", err=True)
            server.run()
    end = "runspan stopped" if store is None else "runspan stopped; everything acknowledged is on disk"
    click.echo(end, err=True)


def _read_quotas(default: Quota, of_tenants: Sequence[str]) -> Quotas:
    found = {}
    for text in of_tenants:
        match = re.fullmatch(r"(.*)=([0-9]{1,12}),([0-9]{1,9})", text, re.DOTALL)
        if match is None:
            raise ConfigError(
                where="--tenant-quota",
                expected="TENANT=RUNS,MIB, such as acme=5000,200, with 0 for no limit",
                got=repr(text[:100]),
            )
        found[match[1]] = Quota(int(match[2]), int(match[3]) * MIB)
    return Quotas(default, found)


def _open_forwarder(stack: ExitStack, reader: TraceReader, url: str, forward_to: str, max_request: int) -> Forwarder:
    """Return the writer that forwards to the Collector before the backend of a URL."""
    backend = remote_config(url, os.environ)
    config = exporter_config(os.environ, endpoint=forward_to, protocol=HTTP)
    attributes = read_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    service_name = attributes.pop("service.name", "runspan")
    resource = Resource(os.environ.get("OTEL_SERVICE_NAME") or service_name, attributes)
    forwarder = Forwarder(
        reader, config, tenant_headers=backend.tenant_headers, resource=resource, max_request=max_request
    )
    return stack.enter_context(closing(forwarder))


def _stop(server: WebServer) -> None:
    """Stop the server, and end the process if that takes too long.

    The store is safe against the end of the process at any time, so a disk or a backend that hangs must not delay it.
    """
    timer = threading.Timer(_END_AFTER, _end)
    timer.daemon = True
    timer.start()
    server.stop()


def _end() -> None:
    message = "runspan ended before all requests were answered; everything acknowledged is on disk"
    printing = threading.Thread(target=click.echo, args=(message,), kwargs={"err": True}, daemon=True)
    printing.start()
    printing.join(0.5)  # who reads standard error may have stopped reading
    os._exit(1)


def _public_name(url: str) -> str:
    """Return the backend's name for ``/readyz``, which does not reveal a directory of this machine."""
    kind = options.backend_kind(url)
    return "the embedded store" if kind == "sqlite" else f"{kind.title()} at {url.partition('+')[2].rstrip('/')}"


def _print_banner(
    server: WebServer, url: str, keys: ApiKeyStore, forward_to: str | None, *, read_only: bool, pages: bool
) -> None:
    click.echo(f"runspan is serving {url} at {server.url}", err=True)
    if pages:
        click.echo(f"  pages:  {server.url}/", err=True)
    click.echo(f"  runs:   {server.url}/api/v1/runs", err=True)
    if read_only:
        click.echo("  traces: not accepted here; send them to the backend's own OTLP receiver", err=True)
    else:
        forwarded = f", forwarded to {forward_to}" if forward_to else ""
        click.echo(f"  traces: {server.url}/v1/traces{forwarded}", err=True)
    if keys.unused:
        may = "read" if read_only else "read and write"
        click.echo(f"  open: no API key was made, so everybody on this machine may {may}", err=True)


def _expire_regularly(store: SqliteStore, retention: float | None, ended: threading.Event) -> None:
    """Delete runs past their retention, and fragments that are too old: now, every hour, and when the disk is full.

    When the store closes, a deletion stops between two batches, and the next start resumes it.
    """
    log = logging.getLogger("runspan.retention")
    failure = ""
    last = -math.inf
    while not ended.is_set():
        pause = _EXPIRE_WHEN_FULL if store.is_full else _EXPIRE_EVERY
        if time.monotonic() - last >= pause:
            last = time.monotonic()
            try:
                deleted = store.expire(time.time_ns())
                failure = ""
                if retention is not None:
                    log.info("deleted %d runs past their retention of %g days", deleted, retention)
            except RunspanError as error:
                if not ended.is_set():
                    log.log(logging.DEBUG if error.message == failure else logging.ERROR, "retention: %s", error)
                failure = error.message
            except Exception:  # the next one may succeed, and without this thread nothing would ever be deleted
                log.exception("retention: internal error")
        ended.wait(1)
