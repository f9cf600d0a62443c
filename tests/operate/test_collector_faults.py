"""Nothing that the Collector took is lost: backends away under load, its queue on disk full, itself killed.

The short form runs with the suite. ``RUNSPAN_LONG=1`` runs the long one too: ten minutes, and the alerts as they are
shipped.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from alerts.__main__ import rule_file

from operate.backends import Backend, runspan_backend, shipped
from operate.kit import wait_until
from operate.load import Load
from support.servers.collector import Collector, start_collector
from support.servers.programs import require_program
from support.servers.prometheus import Prometheus, start_prometheus

REFUSED = "otelcol_exporter_enqueue_failed_spans"
QUICK = (
    "settings: {delivery_window: 20s}\n"
    "alerts:\n"
    "  RunspanExporterNotDelivering: {for: 0s}\n"
    "  RunspanQueueNearlyFull: {for: 0s}\n"
    "  RunspanCollectorDown: {for: 0s}\n"
)
"""The same rules, told sooner."""


@dataclass(frozen=True)
class Scale:
    """How long the backends are away, in seconds, the bound of each queue, the load, and the site's own settings."""

    away: float
    queue_bytes: int
    each: int
    size: int
    retry_for: float
    patience: float
    site: str = ""


SHORT = Scale(away=0, queue_bytes=1_500_000, each=60, size=4000, retry_for=4, patience=60, site=QUICK)
LONG = Scale(away=600, queue_bytes=60_000_000, each=100, size=16_000, retry_for=20, patience=900)
SCALES = [
    pytest.param(SHORT, id="short"),
    pytest.param(
        LONG,
        id="ten minutes",
        marks=[
            pytest.mark.skipif(not os.environ.get("RUNSPAN_LONG"), reason="takes 20 minutes: RUNSPAN_LONG=1"),
            pytest.mark.timeout(3600),
        ],
    ),
]


@dataclass
class Site:
    """What a test of faults has."""

    scale: Scale
    backends: list[Backend]
    collector: Collector
    prometheus: Prometheus
    load: Load

    @property
    def queued(self) -> float:
        """Bytes that wait for any backend."""
        return self.collector.own("otelcol_exporter_queue_size", data_type="traces")

    def fires(self, name: str, count: int = 1) -> None:
        """Waits for so many alerts of a rule."""
        wait_until(lambda: len(self.prometheus.alerts(name)) >= count, self.scale.patience, f"{name} fires")


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The backends that are at hand, runspan among them, all shut; the Collector, Prometheus, and a load."""
    scale: Scale = request.param
    for name in ("otelcol", "prometheus"):
        require_program(name)

    def place(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    with ExitStack() as opened:
        found = [opened.enter_context(shipped(name, place(name))) for name in ("tempo", "jaeger")]
        backends = [backend for backend in found if backend is not None]
        backends.append(opened.enter_context(runspan_backend(place("store"))))
        addresses = {backend.name: backend.gate.address for backend in backends}
        addresses["runspan"] = f"http://{addresses['runspan']}"
        collector = start_collector(place("collector"), env={"QUEUE_BYTES": str(scale.queue_bytes)}, **addresses)
        opened.callback(collector.stop)
        rules = place("rules")
        (rules / "site.txt").write_text(scale.site)
        (rules / "runspan.yaml").write_text(rule_file(rules / "site.txt"))
        targets = {
            "collector": f"127.0.0.1:{collector.ports['OWN']}",
            "span-metrics": f"127.0.0.1:{collector.ports['SPANS']}",
        }
        prometheus = start_prometheus(place("prometheus"), targets, rules=rules)
        opened.callback(prometheus.stop)
        wait_until(lambda: all(prometheus.up().get(job) for job in targets), 60, "a scrape of the Collector")
        load = opened.enter_context(
            Load(place("load"), collector.otlp, each=scale.each, size=scale.size, retry_for=scale.retry_for)
        )
        yield Site(scale, backends, collector, prometheus, load)


@pytest.mark.campaign
@pytest.mark.parametrize("site", SCALES, indirect=True)
def test_what_was_acknowledged_survives_an_outage_a_full_queue_and_kill(site: Site) -> None:
    """All backends are away under load until the queues on disk are at their bound; then the Collector is killed. The
    alerts for each of these fire. Once all is back, every run that a sender was told is taken is in every backend, byte
    for byte, and what was turned away is still with its sender."""
    scale, collector, began = site.scale, site.collector, time.monotonic()
    site.fires("RunspanExporterNotDelivering", len(site.backends))
    wait_until(lambda: collector.own(REFUSED) > 0, scale.patience + scale.away, "a full queue")
    bound = site.queued
    for name in ("RunspanQueueNearlyFull", "RunspanQueueFull", "RunspanCollectorRefusing"):
        site.fires(name)
    wait_until(lambda: time.monotonic() - began >= scale.away, scale.away + 1, "the outage's end")
    on_disk = sum(file.stat().st_size for file in (collector.directory / "queue").iterdir())
    assert on_disk < len(site.backends) * (3 * scale.queue_bytes + 4_000_000)

    collector.program.kill()
    site.fires("RunspanCollectorDown")
    collector.start()
    restored = site.queued
    assert restored > 0.5 * bound
    for backend in site.backends:
        backend.gate.open()
    away = time.monotonic() - began
    site.load.stop()
    drained = wait_until(lambda: site.queued == 0, scale.patience, "empty queues")

    taken = site.load.taken
    figures = {
        "backends": [backend.name for backend in site.backends],
        "seconds away": round(away),
        "runs sent": len(site.load.sent),
        "runs acknowledged": len(taken),
        "bytes queued": bound,
        "bytes on disk": on_disk,
        "bytes queued after the kill": restored,
        "seconds to drain": round(drained, 1),
    }
    logging.getLogger("runspan.tests").info("%s", json.dumps(figures))
    assert 0 < len(taken) < len(site.load.sent)
    for backend in site.backends:
        assert backend.lacks(taken) == [], backend.name
    assert collector.own("otelcol_exporter_send_failed_spans") == 0


@pytest.mark.campaign
@pytest.mark.parametrize("site", [pytest.param(SHORT, id="short")], indirect=True)
def test_what_was_acknowledged_survives_kills_in_the_middle_of_delivery(site: Site) -> None:
    """The backends are there, and the Collector is killed three times while runs stream through it."""
    collector = site.collector
    for backend in site.backends:
        backend.gate.open()
    for _ in range(3):
        wait_until(lambda: collector.own("otelcol_exporter_sent_spans") > 300, site.scale.patience, "delivery")
        collector.program.kill()
        collector.start()
    site.load.stop()
    wait_until(lambda: site.queued == 0, site.scale.patience, "empty queues")
    taken = site.load.taken
    logging.getLogger("runspan.tests").info("%d of %d acknowledged", len(taken), len(site.load.sent))
    assert len(taken) > 100
    for backend in site.backends:
        assert backend.lacks(taken) == [], backend.name
