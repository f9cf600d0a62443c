"""``WebSettings``: what the application does, apart from where it listens; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class WebConfig:
    """The command line fills it; the application reads no environment.

    max_body: the bound of a request body in bytes, as sent and again once inflated.
    reads_per_minute, writes_per_minute: per key; 0 means no limit. Requests without a key, which an open server
        takes, are limited per client address, by ``open_reads_per_minute`` and ``open_writes_per_minute``.
    traces_per_minute: requests to ``/v1/traces`` per key; 0 means no limit. They have a limit of their own, off at
        first, because an exporter puts hundreds of runs into one request: counting it as one write says nothing, and
        refusing it delays a whole batch. The bound on the body and the server's threads hold it back.
    allowed_hosts: names that an open server answers to, beside those of loopback and the host of public_url; see
        ``origins.OpenDoor``. With the first key any name does.
    metrics_open: whether ``/metrics`` answers without a key. It tells counts, never a run's content.
    access_log: whether every request is logged, to the logger ``runspan.access``.
    stuck_after: seconds without an observation after which ``/metrics`` counts a run as stuck.
    jaeger_url, grafana_url, grafana_datasource, trace_url: where people look at a trace; see ``web.trace_links.Links``.
    backend: what ``/readyz`` calls the backend.
    pages: whether there are pages for people, beside the API.
    public_url: the server as browsers reach it; see ``pages.places.Places``.
    logins_per_minute: how many wrong keys an address may send to the login page; 0 means no limit.
    """

    max_body: int = 64 * MIB
    reads_per_minute: int = 1000
    writes_per_minute: int = 200
    traces_per_minute: int = 0
    open_reads_per_minute: int = 0
    open_writes_per_minute: int = 0
    allowed_hosts: tuple[str, ...] = ()
    metrics_open: bool = True
    access_log: bool = False
    stuck_after: float = 900.0
    jaeger_url: str = ""
    grafana_url: str = ""
    grafana_datasource: str = "tempo"
    trace_url: str = ""
    backend: str = ""
    pages: bool = True
    public_url: str = ""
    logins_per_minute: int = 20
