"""A stack of the real programs, each on free ports of loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from alerts.__main__ import rule_file

from support.cli import server
from support.servers.alertmanager import Alertmanager, Webhook, start_alertmanager
from support.servers.collector import Collector, start_collector
from support.servers.programs import require_program
from support.servers.prometheus import Prometheus, backfill, start_prometheus


@dataclass
class Stack:
    """runspan: the URL of the server behind the Collector, whose pages the alerts link to."""

    directory: Path
    runspan: str
    collector: Collector
    prometheus: Prometheus
    alertmanager: Alertmanager
    webhook: Webhook


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """runspan, the Collector, Prometheus with the rules, Alertmanager, and a webhook that it notifies.

    A module changes the rules by ``SITE``, the content of a site's own file, and the server by ``SERVE``, its options.
    ``HISTORY`` returns the lines of OpenMetrics with which Prometheus begins.
    """
    site, serve = getattr(request.module, "SITE", {}), getattr(request.module, "SERVE", ())
    for name in ("otelcol", "prometheus", "alertmanager"):
        require_program(name)

    def place(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    with ExitStack() as opened:
        url, _ = opened.enter_context(server(place("store"), *serve))
        collector = start_collector(place("collector"), runspan=url)
        opened.callback(collector.stop)
        webhook = opened.enter_context(Webhook())
        alertmanager = start_alertmanager(place("alertmanager"), webhook)
        opened.callback(alertmanager.stop)
        targets = {
            "span-metrics": f"127.0.0.1:{collector.ports['SPANS']}",
            "health": f"127.0.0.1:{collector.ports['HEALTH']}",
            "collector": f"127.0.0.1:{collector.ports['OWN']}",
            "runspan": url.removeprefix("http://"),
            "alertmanager": alertmanager.address,
        }
        rules = write_rules(place("rules"), url, site)
        directory = place("prometheus")
        if hasattr(request.module, "HISTORY"):
            backfill(directory, request.module.HISTORY())
        prometheus = start_prometheus(directory, targets, alertmanager=alertmanager.address, rules=rules)
        opened.callback(prometheus.stop)
        yield Stack(place("sent"), url, collector, prometheus, alertmanager, webhook)


def write_rules(directory: Path, runspan: str, site: Mapping[str, Any] | None = None) -> Path:
    """The rules of a site where runspan is served at this address, with the changes of the site."""
    changes = dict(site or {})
    changes["settings"] = {"runspan": runspan, **changes.get("settings", {})}
    file = directory / "site.yaml.txt"
    file.write_text(yaml.safe_dump(changes))
    (directory / "runspan.yaml").write_text(rule_file(file))
    return directory
