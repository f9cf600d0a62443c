"""Links that browsers follow: to this server's own pages, and to traces in Jaeger and Grafana; no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

from runspan.errors import ConfigError

TRACE_PLACEHOLDER: Final = "{trace_id}"
SPAN_PLACEHOLDER: Final = "{span_id}"
"""Replaced by the ids in ``TraceLinks.template``."""


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """The URL of this server as browsers reach it. Raises ConfigError if it is not one."""

    url: str = ""
    """Empty if there is no proxy before the server. A path is the prefix that the proxy strips from requests."""

    def __post_init__(self) -> None:
        if not self.url:
            return
        parts = urlsplit(self.url) if _is_http_url(self.url) else None
        if parts is None or parts.query or parts.fragment or "@" in parts.netloc or set(self.url) & set(';,"\\'):
            raise ConfigError(where="public url", expected="a URL such as https://runs.example.com", got=repr(self.url))

    @property
    def root_path(self) -> str:
        """The prefix of every path of a page, such as ``/runspan``; empty if there is none."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def secure(self) -> bool:
        """Whether browsers connect over TLS, so that cookies can be marked ``Secure``."""
        return self.url.startswith("https://")

    @property
    def origin(self) -> str:
        """The value of ``Origin`` in requests from the server's own pages; empty if it is not configured."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}".lower() if self.url else ""

    def login_path(self, next_path: str) -> str:
        """Return the path of the login page, which redirects to ``next_path``, a path without the prefix."""
        return f"{self.root_path}/login" + (f"?next={quote(next_path, safe='/')}" if next_path != "/" else "")


def local_target(text: str) -> str:
    """Return ``text`` if it is a path of this server, else ``/``, so that no login redirects to another host.

    Browsers read ``//host`` and ``/\\host`` as another host, and remove tabs and line ends first.
    """
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if is_path else "/"


@dataclass(frozen=True, slots=True)
class TraceLinks:
    """Links to traces in other tools. Raises ConfigError if a browser cannot follow one of the URLs."""

    jaeger: str = ""
    """Base URL of Jaeger's user interface, with its path prefix; empty for no link."""
    grafana: str = ""
    """Base URL of Grafana, with its path prefix; empty for no link."""
    datasource: str = "tempo"
    """The uid of the Tempo data source in Grafana."""
    template: str = ""
    """URL of any other tool, containing ``{trace_id}``; empty for no link.

    ``{span_id}`` is replaced as well, by nothing in links to a trace.
    """

    def __post_init__(self) -> None:
        _check_url("jaeger url", self.jaeger, "http://jaeger:16686")
        _check_url("grafana url", self.grafana, "http://grafana:3000")
        _check_url("trace url", self.template, f"http://host/trace/{TRACE_PLACEHOLDER}")
        if self.template and TRACE_PLACEHOLDER not in self.template:
            expected = f"a URL with {TRACE_PLACEHOLDER} in it"
            raise ConfigError(where="trace url", expected=expected, got=repr(self.template))
        if self.grafana and not self.datasource:
            raise ConfigError(where="grafana datasource", expected="the uid of a Tempo data source", got="none")

    def for_trace(self, trace_id: bytes, span_id: bytes = b"") -> dict[str, str]:
        """Return the links to a trace by tool (``trace``, ``jaeger``, ``grafana``), the preferred one first.

        ``span_id``: the span that the tool opens in the trace; empty for none.
        """
        trace, span = trace_id.hex(), span_id.hex()
        links = {}
        if self.template:
            links["trace"] = self.template.replace(TRACE_PLACEHOLDER, trace).replace(SPAN_PLACEHOLDER, span)
        if self.jaeger:
            links["jaeger"] = f"{self.jaeger.rstrip('/')}/trace/{trace}" + (f"?uiFind={span}" if span else "")
        if self.grafana:
            panes = quote(json.dumps(self._explore_panes(trace, span), separators=(",", ":")), safe="")
            links["grafana"] = f"{self.grafana.rstrip('/')}/explore?schemaVersion=1&panes={panes}"
        return links

    def _explore_panes(self, trace: str, span: str) -> dict[str, object]:
        """Return the state of Grafana Explore: one query for the trace id, which ignores the time range."""
        source = {"type": "tempo", "uid": self.datasource}
        query = {"refId": "A", "datasource": source, "queryType": "traceql", "query": trace}
        time_range = {"from": "now-1h", "to": "now"}
        pane: dict[str, object] = {"datasource": self.datasource, "queries": [query], "range": time_range}
        if span:
            pane["panelsState"] = {"trace": {"spanId": span}}
        return {"trace": pane}


def _check_url(where: str, text: str, example: str) -> None:
    if not text:
        return
    if not _is_http_url(text):
        raise ConfigError(where=where, expected=f"a URL such as {example}", got=repr(text))
    if "@" in urlsplit(text).netloc:
        raise ConfigError(where=where, expected="a URL without a login", got="one with it")


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
    return has_host and text.isascii() and text.isprintable() and " " not in text
