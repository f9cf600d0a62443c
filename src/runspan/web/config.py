"""``WebConfig``: what the application does, apart from where it listens; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The options of ``create_app``. The application itself reads no environment variables."""

    max_body: int = 64 * MIB
    """The limit of a request body in bytes, both as sent and once decompressed."""
    reads_per_minute: int = 1000
    """Read requests per API key; 0 for no limit."""
    writes_per_minute: int = 200
    """Write requests per API key; 0 for no limit. Requests to ``/v1/traces`` have a limit of their own."""
    traces_per_minute: int = 0
    """Requests to ``/v1/traces`` per API key; 0 for no limit.

    Off by default: one request of an exporter carries hundreds of runs, so counting it as one write says little, and
    rejecting it delays all of them. The limit of the body and the server's threads bound the load.
    """
    open_reads_per_minute: int = 0
    """Read requests per client address while the server requires no key; 0 for no limit."""
    open_writes_per_minute: int = 0
    """Write requests per client address while the server requires no key; 0 for no limit."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that a server without keys accepts, besides those of loopback and of ``public_url``; see
    ``OriginGuard``. A server with keys accepts any name."""
    metrics_open: bool = True
    """Whether ``/metrics`` requires no key. It contains counts, never the content of a run."""
    tenant_usage: bool = False
    """Whether ``/metrics`` has what each tenant has sent today, by its name."""
    access_log: bool = False
    """Whether each request is logged to the logger ``runspan.access``."""
    stuck_after: float = 900.0
    """Seconds by which a run's heartbeat is overdue when ``/metrics`` counts it as stuck."""
    stuck_max_age: float = 604_800.0
    """Seconds. ``/metrics`` does not count a run as stuck that was older when it was last observed, and has the age of
    a suspended run until it is older."""
    jaeger_url: str = ""
    """Base URL of Jaeger's user interface, with its path prefix, for links to traces; empty for no link."""
    grafana_url: str = ""
    """Base URL of Grafana, with its path prefix, for links to traces; empty for no link."""
    grafana_datasource: str = "tempo"
    """The uid of the Tempo data source in Grafana."""
    trace_url: str = ""
    """URL of any other tool, containing ``{trace_id}``; empty for no link.

    ``{span_id}`` is replaced as well, by nothing in links to a trace.
    """
    backend: str = ""
    """The name of the backend in ``/readyz``, error messages and pages."""
    pages: bool = True
    """Whether to serve the HTML pages besides the API."""
    public_url: str = ""
    """The server as browsers reach it; see ``PublicUrl``."""
    logins_per_minute: int = 20
    """Wrong keys that a client address may send to the login page; 0 for no limit."""
