"""Makes Prometheus rules of the source: settings filled in, the forms in angle brackets written out, links built."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from alerts.source import Source, SourceError

_NEW: Final = re.compile(r"<new (\w+(?:\{[^}]*\})?) in (\w+)(?:, (\w+) ago)?>")
_WATCHED: Final = re.compile(r"<watched for (\w+)>")
_DURATION: Final = re.compile(r"<duration (\w+)>")
_SETTING: Final = re.compile(r"<(\w+)>")
_LABEL: Final = re.compile(r"\{(\w+)\}")
_TIME: Final = re.compile(r"(\d+)([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MARK: Final = "RUNSPANLABEL"

_SCRAPED: Final = 'max_over_time(up{{job="span-metrics"}}[{gap}] offset {start}) == 1'
"""Prometheus scraped the Collector before the window began, so what it did not see then is new."""
_YOUNG: Final = "min_over_time(otelcol_process_uptime[{window}s]{offset}) < {window}"
"""The Collector was younger than the window when Prometheus first saw it, so all that it counts is new. This holds
until the one above does: were it to end earlier, an alert would clear between them and fire again. Without these two, a
Prometheus that starts beside a Collector that has counted for weeks would report every failure that ever happened."""


def rules(source: Source) -> dict[str, Any]:
    """The content of a Prometheus rule file."""
    return {
        "groups": [
            {"name": name, "rules": [_rule(alert, source) for alert in alerts]}
            for name, alerts in source.enabled()
            if alerts
        ]
    }


def _rule(alert: Mapping[str, Any], source: Source) -> dict[str, Any]:
    name, settings = alert["alert"], source.settings
    annotations = {
        "summary": _filled(alert["summary"], settings),
        "description": _filled(alert["description"], settings),
        "runbook_url": f"{_filled(settings['runbooks'], settings)}#{name.lower()}",
    }
    for kind, places in source.links.items():
        if kind not in alert:
            continue
        if alert[kind] not in places:
            raise SourceError(f"{name}: {kind} is one of {', '.join(places)}, not {alert[kind]!r}")
        place = _filled(places[alert[kind]], settings)
        annotations[kind] = _explore(place, settings) if kind == "traces_url" else _page(place)
    return {
        "alert": name,
        "expr": expression(alert["expr"], settings),
        "for": str(alert.get("for", "0s")),
        "labels": {"severity": alert["severity"]},
        "annotations": annotations,
    }


def expression(text: str, settings: Mapping[str, str]) -> str:
    """PromQL of an alert's expression."""
    text = _NEW.sub(lambda match: _new(match[1], settings, match[2], match[3]), text.strip())
    text = _WATCHED.sub(lambda match: f"count({_scraped(settings, _setting(match[1], settings))})", text)
    return _filled(text, settings)


def _new(series: str, settings: Mapping[str, str], name: str, ago: str | None) -> str:
    """How much each counter has grown in a window: its last value there minus its last value before.

    ``increase`` cannot be used: it misses the first value of a series, and a counter that is 1 before and after a
    restart. Here no series starts again, because each start of the Collector, and of a process of runspan, has a label
    of its own on its counters. A series that was not there before the window counts whole, or from the first value that
    Prometheus saw if it does not know what was there before.
    """
    window, gap = _setting(name, settings), settings["scrape_gap"]
    end = 0 if ago is None else seconds(_setting(ago, settings))
    offset, start = f" offset {end}s" if end else "", f"{end + seconds(window)}s"
    within = f"{series}[{window}]{offset}"
    last, before = f"last_over_time({within})", f"last_over_time({series}[{gap}] offset {start})"
    young = _YOUNG.format(offset=offset, window=seconds(window))
    watched = f"(count({_scraped(settings, start)}) or count({young}))"
    return f"({last} - {before} or {last} unless {before} and on () {watched} or {last} - min_over_time({within}))"


def _scraped(settings: Mapping[str, str], start: str) -> str:
    return _SCRAPED.format(gap=settings["scrape_gap"], start=start)


def seconds(window: str) -> int:
    """Of a duration as Prometheus writes it."""
    parts = _TIME.findall(window)
    if not parts or "".join(number + unit for number, unit in parts) != window:
        raise SourceError(f"expected a duration such as 5m, got {window!r}")
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def _filled(text: str, settings: Mapping[str, str]) -> str:
    text = _DURATION.sub(lambda match: _words(float(_setting(match[1], settings))), text)
    return _SETTING.sub(lambda match: _setting(match[1], settings), text)


def _setting(name: str, settings: Mapping[str, str]) -> str:
    if name not in settings:
        raise SourceError(f"<{name}> is no setting; there are {', '.join(settings)}")
    return settings[name]


def _words(number: float) -> str:
    """Seconds as people say them."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if number >= 2 * length:
            return f"{number / length:g} {unit}"
    return f"{number:g} seconds"


def _page(url: str) -> str:
    """A page's address, each label in it escaped when the alert fires."""
    return _LABEL.sub(r"{{ $labels.\1 | urlquery }}", url)


def _explore(query: str, settings: Mapping[str, str]) -> str:
    """Grafana Explore with a TraceQL query, see ``runspan.links``. Escaped here, but for the labels."""
    source = {"type": "tempo", "uid": settings["datasource"]}
    asked = {"refId": "A", "datasource": source, "queryType": "traceql", "limit": 20, "query": _marked(query)}
    pane = {"datasource": settings["datasource"], "queries": [asked], "range": {"from": "now-24h", "to": "now"}}
    panes = quote(json.dumps({"runs": pane}, separators=(",", ":")), safe="")
    panes = re.sub(rf"{_MARK}(\w+?){_MARK}", r"{{ $labels.\1 | urlquery }}", panes)
    return f"{settings['grafana']}/explore?schemaVersion=1&panes={panes}"


def _marked(query: str) -> str:
    return _LABEL.sub(rf"{_MARK}\1{_MARK}", query)
