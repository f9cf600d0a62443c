"""Links that browsers follow: to this server's own pages, and to traces in Jaeger and Grafana; no I/O."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote, urlsplit

from runspan.errors import ConfigError
from runspan.http.urls import parse_base_url, parse_url, refuse_login
from runspan.web.config import WebConfig

TRACE_PLACEHOLDER: Final = "{trace_id}"
SPAN_PLACEHOLDER: Final = "{span_id}"
"""Replaced by the ids in ``WebConfig.trace_url``."""

_IN_IDS: Final = "%20-runspan"
"""Keeps Jaeger's search out of the attributes of runspan: the run span's manifest has the ids of all steps."""


class PublicUrl:
    """The URL of this server as browsers reach it; empty if there is no proxy before it. ConfigError if it is not one.

    A path is the prefix that the proxy strips from requests.
    """

    def __init__(self, url: str) -> None:
        where, expected = "public url", "a URL such as https://runs.example.com"
        parts = urlsplit(url and parse_base_url(where, url, expected, login_hint=f"write {expected}"))
        if set(parts.path) & set(';,"\\'):
            raise ConfigError(where=where, expected=expected, got=repr(url))
        self.root_path = parts.path
        """The prefix of every path of a page, such as ``/runspan``; empty if there is none."""
        self.secure = parts.scheme == "https"
        """Whether browsers connect over TLS, so that cookies can be marked ``Secure``."""
        self.origin = f"{parts.scheme}://{parts.netloc}".lower() if url else ""
        """The value of ``Origin`` in requests from the server's own pages; empty if it is not configured."""

    def login_path(self, next_path: str) -> str:
        """Return the path of the login page, which redirects to ``next_path``, a path without the prefix."""
        return f"{self.root_path}/login" + (f"?next={quote(next_path, safe='/')}" if next_path != "/" else "")


def local_target(text: str) -> str:
    """Return ``text`` if it is a path of this server, else ``/``, so that no login redirects to another host.

    Browsers read ``//host`` and ``/\\host`` as another host, and remove tabs and line ends first.
    """
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if is_path else "/"


def check_trace_links(config: WebConfig) -> None:
    """Raise ConfigError if a browser cannot follow one of the configured links to traces."""
    for where, url, example in (
        ("jaeger url", config.jaeger_url, "http://jaeger:16686"),
        ("grafana url", config.grafana_url, "http://grafana:3000"),
        ("trace url", config.trace_url, f"http://host/trace/{TRACE_PLACEHOLDER}"),
    ):
        if url:
            refuse_login(where, url, "")
            parse_url(where, url, f"a URL such as {example}")
    if config.trace_url and TRACE_PLACEHOLDER not in config.trace_url:
        expected = f"a URL with {TRACE_PLACEHOLDER} in it"
        raise ConfigError(where="trace url", expected=expected, got=repr(config.trace_url))
    if config.grafana_url and not config.grafana_datasource:
        raise ConfigError(where="grafana datasource", expected="the uid of a Tempo data source", got="none")


def trace_links(config: WebConfig, trace_id: bytes, span_id: bytes = b"") -> dict[str, str]:
    """Return the links to a trace by tool (``trace``, ``jaeger``, ``grafana``), the preferred one first.

    ``span_id``: the span that the tool opens in the trace; empty for none.
    """
    trace, span = trace_id.hex(), span_id.hex()
    links = {}
    if config.trace_url:
        links["trace"] = config.trace_url.replace(TRACE_PLACEHOLDER, trace).replace(SPAN_PLACEHOLDER, span)
    if config.jaeger_url:
        links["jaeger"] = f"{config.jaeger_url.rstrip('/')}/trace/{trace}" + (
            f"?uiFind={span}{_IN_IDS}" if span else ""
        )
    if config.grafana_url:
        state = json.dumps(_explore_panes(config.grafana_datasource, trace, span), separators=(",", ":"))
        links["grafana"] = f"{config.grafana_url.rstrip('/')}/explore?schemaVersion=1&panes={quote(state, safe='')}"
    return links


def _explore_panes(datasource: str, trace: str, span: str) -> dict[str, object]:
    """Return the state of Grafana Explore: one query for the trace id, which ignores the time range."""
    source = {"type": "tempo", "uid": datasource}
    query = {"refId": "A", "datasource": source, "queryType": "traceql", "query": trace}
    time_range = {"from": "now-1h", "to": "now"}
    pane: dict[str, object] = {"datasource": datasource, "queries": [query], "range": time_range}
    if span:
        pane["panelsState"] = {"trace": {"spanId": span}}
    return {"trace": pane}
