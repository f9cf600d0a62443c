"""Pages that come and pages that do not: restarts of the Collector and Prometheus, backfills, canaries, bursts.

The rules are the shipped ones with a window of failures of 20 seconds; ``test_alerts`` has the campaign with theirs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from operate.conftest import Stack
from operate.kit import document, send, step, wait_until
from runspan import Recorder
from runspan.codec.fields import WORKFLOW_ID
from support.cli import SAMPLES, environment, running, runspan
from support.receivers import OK, Answer, Post, http_receiver
from support.servers.collector import total

SITE: dict[str, Any] = {"settings": {"failure_window": "20s"}, "alerts": {"RunspanRunStuck": {"for": "0s"}}}
SERVE = ("--stuck-after", "1s")
SECONDS = 60
"""Within which a failure pages."""
KNOWN = {"RunspanWatchdog"}
"""What is always sent."""


def fail(stack: Stack, run_id: str, workflow: str) -> float:
    """Send a run that failed just now; return the time at which it was accepted."""
    send(stack.directory, [document(run_id, workflow, "failed", [step("charge", "failed")])], stack.collector.otlp)
    return time.time()


def pages(stack: Stack, workflow: str, status: str = "firing") -> list[dict[str, Any]]:
    """The notifications of *run failed* for a workflow."""
    alerts = stack.webhook.alerts("RunspanRunFailed", status)
    return [alert for alert in alerts if alert["labels"]["runspan_workflow_id"] == workflow]


def paged(stack: Stack, workflow: str, count: int, since: float) -> None:
    """Wait for so many pages of a workflow, the last one within a minute."""

    def starts() -> set[str]:
        return {alert["startsAt"] for alert in pages(stack, workflow)}

    assert stack.webhook.wait_for(lambda: len(starts()) >= count, SECONDS), stack.prometheus.alerts()
    logging.getLogger("runspan.tests").info("page %d of %s after %.1f s", count, workflow, time.time() - since)
    assert len(starts()) == count


def cleared(stack: Stack, workflow: str, seconds: float) -> None:
    """Wait until every page of a workflow was followed by the message that it is resolved."""
    started = {alert["startsAt"] for alert in pages(stack, workflow)}
    assert stack.webhook.wait_for(
        lambda: started <= {alert["startsAt"] for alert in pages(stack, workflow, "resolved")}, seconds
    ), "not resolved"


@pytest.fixture(scope="module", autouse=True)
def scraped(stack: Stack) -> None:
    """Prometheus has scraped the Collector before the first run."""
    wait_until(lambda: stack.prometheus.up().get("span-metrics", False), SECONDS, "a scrape of the Collector")


def restart_collector(stack: Stack) -> None:
    stack.collector.program.kill()
    stack.collector.start()


def restart_prometheus(stack: Stack) -> None:
    stack.prometheus.program.kill()
    stack.prometheus.start()


def restart_both(stack: Stack) -> None:
    stack.collector.program.kill()
    stack.prometheus.program.kill()
    stack.prometheus.start()
    stack.collector.start()


RESTARTS = [
    pytest.param(restart_both, id="both"),
    pytest.param(restart_collector, id="collector", marks=pytest.mark.campaign),
    pytest.param(restart_prometheus, id="prometheus", marks=pytest.mark.campaign),
]


def test_what_is_no_failure_of_now_pages_nobody(stack: Stack) -> None:
    """A backfill of old runs, finished and not, a canary, a cancelled task and a burst of 2,000 runs: all are stored,
    and nothing but the watchdog is sent."""
    otlp = stack.collector.otlp
    runspan("export", SAMPLES, "--endpoint", otlp, "--quiet")
    runspan("verify", "--canary", "--backend", stack.runspan, "--endpoint", otlp)
    with Recorder(endpoint=otlp) as recorder:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(cancelled(recorder))
        assert recorder.flush()
    send(stack.directory, [document(f"run_burst_{n}", f"wf_burst_{n % 20}") for n in range(2000)], otlp)
    # More than the burst, the canary and the cancelled run: the samples too.
    stored = lambda: total(stack.runspan, "runspan_store_runs", {}) > 2002  # noqa: E731
    wait_until(stored, SECONDS, "all runs are stored")
    last = time.time()
    wait_until(lambda: len(stack.prometheus.times('up{job="span-metrics"}', last)) > 3, SECONDS, "four more scrapes")
    assert set().union(*stack.webhook.receivers().values()) <= KNOWN, stack.webhook.receivers()
    firing = stack.prometheus.alerts() + stack.prometheus.alerts(state="pending")
    assert {alert["labels"]["alertname"] for alert in firing} <= KNOWN


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_what_a_process_counts_before_its_first_report_pages_after_every_start(stack: Stack, tmp_path: Path) -> None:
    """A watch refuses a document, has a run rejected, reports both ten seconds later, and is killed; the next one does
    the same. Each pages, though the counters stand at 1 whenever Prometheus sees them."""
    env = {
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=watch",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{stack.collector.otlp}/v1/metrics",
        "OTEL_METRIC_EXPORT_INTERVAL": "10000",
    }

    def rejections(status: str = "firing") -> set[str]:
        return {alert["startsAt"] for alert in stack.webhook.alerts("RunspanExportRejected", status)}

    def refused() -> bool:
        # Alertmanager tells of a warning up to two minutes later, when this one is over.
        return bool(stack.prometheus.alerts("RunspanDocumentsRefused"))

    def answer(post: Post) -> Answer:
        workflows = [
            pair.value.string_value for span in post.spans for pair in span.attributes if pair.key == WORKFLOW_ID
        ]
        return Answer(400) if "wf_rejected" in workflows else OK

    with http_receiver(answer) as receiver:
        for number in (1, 2):
            folder = tmp_path / str(number)
            folder.mkdir()
            runs = [document(f"run_{name}_{number}", f"wf_{name}") for name in ("accepted", "rejected")]
            (folder / "runs.ndjson").write_text("".join(json.dumps(each) + "\n" for each in [{"no": "id"}, *runs]))
            with running("export", "--watch", folder, "--poll", "1s", "--endpoint", receiver.url, env=env) as child:
                wait_until(refused, 2 * SECONDS, "the alert of a refused document")
                came = partial(lambda number: len(rejections()) >= number, number)
                assert stack.webhook.wait_for(came, SECONDS), stack.prometheus.alerts()
                child.process.kill()
            for counter in ("runspan_export_rejected_total", "runspan_export_refused_total"):
                seen = stack.prometheus.query(f"min_over_time({counter}[10m])")
                assert [sample["value"][1] for sample in seen] == ["1"] * number
            over = stack.webhook.wait_for(lambda: rejections() <= rejections("resolved"), 4 * SECONDS)
            assert over, (rejections(), rejections("resolved"), stack.prometheus.alerts("RunspanExportRejected"))
            wait_until(lambda: not refused(), SECONDS, "the end of that alert")
    assert len(rejections()) == 2


async def cancelled(recorder: Recorder) -> None:
    async with recorder.run("wf_stopped") as run, run.step("wait"):
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await asyncio.sleep(1)


@pytest.mark.parametrize("restart", RESTARTS)
def test_a_failure_after_a_restart_pages_within_a_minute(stack: Stack, restart: Callable[[Stack], None]) -> None:
    """One failure, a page, the message that it is over; the same again after SIGKILL and a start of the Collector, of
    Prometheus, or of both, though the counter stands at 1 each time."""
    workflow = f"wf_{restart.__name__}"
    paged(stack, workflow, 1, fail(stack, f"run_{workflow}_1", workflow))
    cleared(stack, workflow, 2 * SECONDS)
    restart(stack)
    paged(stack, workflow, 2, fail(stack, f"run_{workflow}_2", workflow))
    cleared(stack, workflow, 2 * SECONDS)


def test_a_dead_run_pages_once_and_is_over_when_a_person_ends_it(stack: Stack) -> None:
    """The engine is killed in a step. Its run is stuck when its heartbeat is overdue, and pages once; `runspan resolve`
    ends it, and the alert with it. The stuck run of another workflow, later, has a page of its own."""
    ids = [crash(stack, workflow) for workflow in ("wf_dead", "wf_dead_too")]

    def alerts(workflow: str, status: str = "firing") -> set[str]:
        found = stack.webhook.alerts("RunspanRunStuck", status)
        return {alert["startsAt"] for alert in found if alert["labels"]["runspan_workflow_id"] == workflow}

    for workflow, run_id in zip(("wf_dead", "wf_dead_too"), ids, strict=True):
        arrived = partial(alerts, workflow)
        assert stack.webhook.wait_for(lambda arrived=arrived: bool(arrived()), 2 * SECONDS), stack.prometheus.alerts()
        (stuck,) = runspan(
            "list", "--stuck", "1s", "--workflow", workflow, "--json", "--backend", stack.runspan
        ).stdout.splitlines()
        assert json.loads(stuck)["id"] == run_id
    runspan("resolve", ids[0], "--status", "cancelled", "--why", "killed", "--backend", stack.runspan)
    assert stack.webhook.wait_for(lambda: bool(alerts("wf_dead", "resolved")), 2 * SECONDS)
    assert len(alerts("wf_dead")) == 1
    assert not alerts("wf_dead_too", "resolved")
    assert [alert for alert in stack.webhook.alerts("RunspanRunFailed") if "wf_dead" in str(alert["labels"])] == []
    runspan("resolve", ids[1], "--status", "timed_out", "--backend", stack.runspan)
    assert stack.webhook.wait_for(lambda: bool(alerts("wf_dead_too", "resolved")), 2 * SECONDS)
    assert len(alerts("wf_dead_too")) == 1


ENGINE = """
import sys, time
from runspan import Recorder
recorder = Recorder(endpoint=sys.argv[1])
with recorder.run(sys.argv[2]) as run, run.step("work"):
    recorder.flush()
    print(run.id, flush=True)
    time.sleep(600)
"""


def crash(stack: Stack, workflow: str) -> str:
    """Run an engine until the first snapshot of its run was accepted, and kill it; return the id of the run."""
    command = [sys.executable, "-c", ENGINE, stack.collector.otlp, workflow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as engine:
        assert engine.stdout is not None
        run_id = engine.stdout.readline().strip()
        url = f"{stack.runspan}/api/v1/runs/{run_id}"
        try:
            wait_until(lambda: httpx.get(url, trust_env=False).is_success, SECONDS, "the run is stored")
        finally:
            engine.kill()
    return run_id


@pytest.mark.campaign
def test_a_failure_while_prometheus_is_away_pages_when_it_is_back(stack: Stack) -> None:
    """The Collector counts meanwhile, and Prometheus compares with what it saw before."""
    paged(stack, "wf_away", 1, fail(stack, "run_away_1", "wf_away"))
    cleared(stack, "wf_away", 2 * SECONDS)
    stack.prometheus.program.kill()
    fail(stack, "run_away_2", "wf_away")
    time.sleep(25)  # longer than the window
    stack.prometheus.start()
    paged(stack, "wf_away", 2, time.time())
