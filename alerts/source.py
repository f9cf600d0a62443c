"""Reads ``alerts.yaml`` and a site's own file beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

SOURCE: Final = Path(__file__).with_name("alerts.yaml")
SEVERITIES: Final = ("critical", "warning", "none")
_REQUIRED: Final = {"alert", "severity", "expr", "summary", "description"}
_OPTIONAL: Final = {"for", "enabled"}
_URLS: Final = ("runspan", "runbooks", "grafana")
_ABSOLUTE: Final = re.compile(r"https?://[^\s/?#]+[^\s?#]*$|<runspan>[^\s?#]*$")
"""In a notification a link has nothing that it could be relative to."""


class SourceError(Exception):
    """A source that makes no rules; the text says where and what was expected."""


@dataclass(frozen=True)
class Source:
    """settings: by name. links: of each annotation, its places by name. groups: of alerts, as written."""

    settings: Mapping[str, str]
    links: Mapping[str, Mapping[str, str]]
    groups: tuple[dict[str, Any], ...]
    alerts: Mapping[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[str, dict[str, Any]] = {}
        for alert in (alert for group in self.groups for alert in group["alerts"]):
            name = alert.get("alert", "?")
            missing, unknown = _REQUIRED - alert.keys(), alert.keys() - _REQUIRED - _OPTIONAL - self.links.keys()
            if missing or unknown:
                raise SourceError(f"{name}: missing {sorted(missing)}, unknown {sorted(unknown)}")
            if alert["severity"] not in SEVERITIES:
                raise SourceError(f"{name}: severity is one of {', '.join(SEVERITIES)}, not {alert['severity']!r}")
            if name in found:
                raise SourceError(f"{name} stands twice")
            found[name] = alert
        object.__setattr__(self, "alerts", found)

    def enabled(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Each group's name and the alerts of it that are wanted."""
        for group in self.groups:
            yield group["name"], [alert for alert in group["alerts"] if alert.get("enabled", True)]


def read(site: Path | None = None, source: Path = SOURCE, external_url: str | None = None) -> Source:
    """The source, with the settings and the alerts' members that a site's own file changes.

    external_url: the setting ``runspan``, above that of the site's file.
    """
    written = yaml.safe_load(source.read_text())
    own = {} if site is None else yaml.safe_load(site.read_text())
    own = {} if own is None else own
    _expect_known(own, {"settings", "alerts"}, str(site))
    settings, changes = own.get("settings") or {}, own.get("alerts") or {}
    _expect_known(settings, written["settings"], f"{site}: settings")
    by_name = {alert["alert"]: alert for group in written["groups"] for alert in group["alerts"]}
    _expect_known(changes, by_name, f"{site}: alerts")
    for name, members in changes.items():
        _expect_known(members, by_name[name].keys() | _OPTIONAL, f"{site}: alerts: {name}")
        by_name[name].update(members)
    known = {name: str(value) for name, value in (written["settings"] | settings).items()}
    known["runspan"] = external_url or known["runspan"]
    for name in _URLS:
        known[name] = known[name].rstrip("/")
        if not _ABSOLUTE.match(known[name]):
            raise SourceError(f"settings: {name}: expected a URL as browsers reach it, got {known[name]!r}")
    return Source(known, written["links"], tuple(written["groups"]))


def _expect_known(got: Any, known: Any, where: str) -> None:
    if not isinstance(got, dict):
        raise SourceError(f"{where}: expected a mapping, got {type(got).__name__}")
    unknown = got.keys() - set(known)
    if unknown:
        raise SourceError(
            f"{where}: unknown {', '.join(map(str, sorted(unknown)))}; known are {', '.join(sorted(known))}"
        )
