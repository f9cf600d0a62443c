"""A stack of the real programs, each on free ports of loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from alerts.__main__ import rule_file

from support.cli import server
from support.servers.alertmanager import Alertmanager, Webhook, start_alertmanager
from support.servers.collector import Collector, start_collector
from support.servers.programs import require_program
from support.servers.prometheus import Prometheus, start_prometheus


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
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """runspan, the Collector, Prometheus with the rules, Alertmanager, and a webhook that it notifies."""
    for name in ("otelcol", "prometheus", "alertmanager"):
        require_program(name)

    def place(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    with ExitStack() as opened:
        url, _ = opened.enter_context(server(place("store")))
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
        rules = write_rules(place("rules"), url)
        prometheus = start_prometheus(place("prometheus"), targets, alertmanager=alertmanager.address, rules=rules)
        opened.callback(prometheus.stop)
        yield Stack(place("sent"), url, collector, prometheus, alertmanager, webhook)


def write_rules(directory: Path, runspan: str) -> Path:
    """The rules of a site where runspan is served at this address; nothing else differs from those that are shipped."""
    site = directory / "site.yaml.txt"
    site.write_text(f"settings: {{runspan: '{runspan}'}}\n")
    (directory / "runspan.yaml").write_text(rule_file(site))
    return directory
