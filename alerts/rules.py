"""Makes Prometheus rules of the source: settings filled in, the forms in angle brackets written out, links built."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from alerts.source import Source, SourceError

_NEW: Final = re.compile(r"<new (\w+(?:\{[^}]*\})?) in (\w+)>")
_WATCHED: Final = re.compile(r"<watched for (\w+)>")
_DURATION: Final = re.compile(r"<duration (\w+)>")
_SETTING: Final = re.compile(r"<(\w+)>")
_LABEL: Final = re.compile(r"\{(\w+)\}")
_TIME: Final = re.compile(r"(\d+)([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MARK: Final = "RUNSPANLABEL"

_SCRAPED: Final = 'up{{job="span-metrics"}} offset {window} == 1'
"""Prometheus looked at the Collector when the window began, so what it did not see then is new."""
_YOUNG: Final = "otelcol_process_uptime < {seconds}"
"""The Collector itself began within the window, so all that it counts is new. Without this, a Prometheus that starts
beside a Collector that has counted for weeks would tell of every failure there ever was."""


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
        "runbook_url": f"{settings['runbooks']}#{name.lower()}",
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
    text = _NEW.sub(lambda match: _new(match[1], _setting(match[2], settings)), text.strip())
    text = _WATCHED.sub(lambda match: f"count({_SCRAPED.format(window=_setting(match[1], settings))})", text)
    return _filled(text, settings)


def _new(series: str, window: str) -> str:
    """How much each counter has grown in the window.

    A counter that Prometheus first sees at 1 has grown by 1, which ``increase`` cannot know: it counts from the first
    value on. So the counters that were not there when the window began count whole.
    """
    watched = f"(count({_SCRAPED.format(window=window)}) or count({_YOUNG.format(seconds=seconds(window))}))"
    return f"({series} unless {series} offset {window} and on () {watched} or increase({series}[{window}]))"


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
