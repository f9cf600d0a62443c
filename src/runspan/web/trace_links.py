"""Where people look at a trace: links into Jaeger's pages, Grafana Explore and any other place; no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from runspan.errors import SettingError

MARK = "{trace_id}"
"""What stands in a template for the trace id."""


@dataclass(frozen=True, slots=True)
class TraceLinks:
    """jaeger, grafana: the base URLs of the pages as a browser reaches them, with their prefix if they have one.

    datasource: the uid of a Tempo data source in Grafana. template: any other place, with ``{trace_id}`` in it. Empty
    means: no such place. SettingError when one of them is no URL that a browser can follow.
    """

    jaeger: str = ""
    grafana: str = ""
    datasource: str = "tempo"
    template: str = ""

    def __post_init__(self) -> None:
        _check("jaeger url", self.jaeger, "http://jaeger:16686")
        _check("grafana url", self.grafana, "http://grafana:3000")
        _check("trace url", self.template, f"http://host/trace/{MARK}")
        if self.template and MARK not in self.template:
            raise SettingError(where="trace url", expected=f"a URL with {MARK} in it", got=repr(self.template))
        if self.grafana and not self.datasource:
            raise SettingError(where="grafana datasource", expected="the uid of a Tempo data source", got="none")

    def of(self, trace_id: bytes) -> dict[str, str]:
        """The links to a trace by the names of their places, the one to prefer first."""
        number = trace_id.hex()
        found = {}
        if self.template:
            found["trace"] = self.template.replace(MARK, number)
        if self.jaeger:
            found["jaeger"] = f"{self.jaeger.rstrip('/')}/trace/{number}"
        if self.grafana:
            panes = quote(json.dumps(self._panes(number), separators=(",", ":")), safe="")
            found["grafana"] = f"{self.grafana.rstrip('/')}/explore?schemaVersion=1&panes={panes}"
        return found

    def _panes(self, number: str) -> dict[str, object]:
        """Explore's state: one pane with one query, whose text is the trace id. The range plays no part in it."""
        source = {"type": "tempo", "uid": self.datasource}
        query = {"refId": "A", "datasource": source, "queryType": "traceql", "query": number}
        pane = {"datasource": self.datasource, "queries": [query], "range": {"from": "now-1h", "to": "now"}}
        return {"trace": pane}


def _check(where: str, text: str, example: str) -> None:
    if not text:
        return
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and text.isascii() and text.isprintable()
    except ValueError:
        known = False
    if not known or " " in text:
        raise SettingError(where=where, expected=f"a URL such as {example}", got=repr(text))
    if "@" in parts.netloc:
        raise SettingError(where=where, expected="a URL without a login", got="one with it")
