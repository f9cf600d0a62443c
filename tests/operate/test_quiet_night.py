"""A night without runs: no alert for services that rest at this hour, one for the service that does not.

Prometheus begins with ten days of counters, as a Collector exported them until a moment ago, and everything after that
is real. The rules are the shipped ones, but for the hour that *no runs* waits before it tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from operate.conftest import Stack
from operate.kit import document, send, wait_until

SITE: dict[str, Any] = {"alerts": {"RunspanNoRuns": {"for": "10s"}}}
SECONDS = 60
DAYS = 10
EVERY = 300
"""Seconds between two samples of the history."""
HOUR = 3600


def by_day(age: float) -> bool:
    """Runs end in twelve hours of each day, and the last of them nine hours ago."""
    return 9 <= age / HOUR % 24 < 21


SERVICES: dict[str, Callable[[float], bool]] = {
    "shop/office": by_day,
    # Last night it worked as an exception; a week ago it rested at this hour.
    "shop/month-end": lambda age: by_day(age) or 23 * HOUR < age < 32 * HOUR,
    "shop/dead": lambda age: age > 7 * HOUR,
}
"""Whether runs of a service ended so many seconds ago."""


def history() -> Iterator[str]:
    """The lines of OpenMetrics, from old to new."""
    now = time.time()
    ages = range(DAYS * 24 * HOUR, 60, -EVERY)
    yield "# TYPE up gauge"
    yield from (f'up{{job="span-metrics",instance="earlier:8889"}} 1 {now - age:.3f}' for age in ages)
    yield "# TYPE runspan_runs counter"
    for service, ran in SERVICES.items():
        labels = f'job="{service}",runspan_workflow_id="wf",runspan_run_status="completed"'
        count = 0
        for age in ages:
            count += 3 * ran(age)
            start = 'signal_to_metrics_service_instance_id="earlier"'
            yield f"runspan_runs_total{{{labels},{start}}} {count} {now - age:.3f}"
    yield "# EOF"


HISTORY = history


def silent(stack: Stack, status: str = "firing") -> set[str]:
    """The services that were told to be without runs."""
    return {alert["labels"]["job"] for alert in stack.webhook.alerts("RunspanNoRuns", status)}


@pytest.fixture(scope="module")
def night(stack: Stack) -> Stack:
    """The rule has fired for the service that should work, so it was evaluated for the others too."""
    wait_until(lambda: stack.prometheus.up().get("span-metrics", False), SECONDS, "a scrape of the Collector")
    assert stack.webhook.wait_for(lambda: bool(silent(stack)), 2 * SECONDS), stack.prometheus.alerts(state="pending")
    return stack


def test_only_a_service_that_should_work_now_is_told(night: Stack) -> None:
    """Of all alerts that there are, over a minute of evaluations, nothing else is pending or arrives anywhere."""
    seen: set[tuple[str, str]] = set()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        alerts = night.prometheus.alerts() + night.prometheus.alerts(state="pending")
        seen |= {(alert["labels"]["alertname"], alert["labels"].get("job", "")) for alert in alerts}
        time.sleep(1)
    assert seen == {("RunspanWatchdog", ""), ("RunspanNoRuns", "shop/dead")}
    assert silent(night) == {"shop/dead"}
    assert set().union(*night.webhook.receivers().values()) == {"RunspanWatchdog", "RunspanNoRuns"}


def test_the_rule_looks_at_the_hours_that_it_says(night: Stack) -> None:
    """What the services did: none ran within the window, and only the dead one did at this hour a week ago."""

    def ran(hours_ago: int) -> set[str]:
        offset = f"offset {hours_ago}h" if hours_ago else ""
        expression = f"sum by (job) (increase(runspan_runs_total[6h] {offset})) > 0"
        return {found["metric"]["job"] for found in night.prometheus.query(expression)}

    assert (ran(0), ran(24), ran(168)) == (set(), {"shop/dead", "shop/month-end"}, {"shop/dead"})


@pytest.mark.campaign
def test_the_alert_is_over_with_the_next_run(night: Stack) -> None:
    """One run of the service arrives, at night."""
    run = document("run_back", "wf")
    env = {"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=shop"}
    send(night.directory, [run], night.collector.otlp, "--service-name", "dead", env=env)
    # The group's interval is two minutes for what is not critical.
    assert night.webhook.wait_for(lambda: silent(night, "resolved") == {"shop/dead"}, 4 * SECONDS)
    assert httpx.get(f"{night.runspan}/api/v1/runs/run_back", trust_env=False).is_success


def test_a_pipeline_that_dies_at_night_pages(night: Stack) -> None:
    """Nothing has to run for that: the Collector does not answer."""
    night.collector.program.kill()
    came = lambda: bool(night.webhook.alerts("RunspanCollectorDown"))  # noqa: E731
    assert night.webhook.wait_for(came, 3 * SECONDS), night.prometheus.alerts(state="pending")
    assert {"RunspanCollectorDown"} <= night.webhook.receivers()["page"]
