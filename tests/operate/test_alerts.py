"""From a run document to a webhook: Collector, Prometheus and Alertmanager as they are shipped."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime
from typing import Any

import httpx
import pytest

from operate.conftest import Stack
from operate.kit import REPLAY, document, moment, send, step, wait_until
from runspan import Run, encode
from runspan.otlp.json import write_json
from runspan.otlp.protobuf_writer import Resource
from support.servers.collector import total

SECONDS = 60
SCRAPE = 5.0
"""Of deploy/prometheus.yaml."""
BATCH = 0.5
"""Until a span that was taken is in the Collector's counters."""


@pytest.fixture(scope="module")
def failed(stack: Stack) -> float:
    """What must raise nothing was sent, and then one run that failed; the time at which that one was accepted."""
    wait_until(lambda: stack.prometheus.up().get("span-metrics", False), SECONDS, "a scrape of the Collector")
    for documents, headers in quiet_runs():
        send(stack.directory, documents, stack.collector.otlp, headers=headers)
    correct(stack)
    asks = document("run_asks", "wf_asks", "suspended", [step("look", ago=18_000)], ago=18_000)
    send(stack.directory, [asks], stack.collector.otlp)
    run = document("run_first_failure", "wf_fails", "failed", [step("look"), step("charge", "failed")])
    run |= {"startedAt": moment(3 * 86_400), "durationMs": 3 * 86_400_000}
    send(stack.directory, [run], stack.collector.otlp)
    return time.time()


def quiet_runs() -> list[tuple[list[dict[str, Any]], str]]:
    """Documents that are no failure of this moment, with the header that they are sent with."""
    attempts = [
        {
            "attempt": 1,
            "status": "failed",
            "startedAt": moment(3),
            "completedAt": moment(2),
            "error": {"code": "TIMEOUT"},
        },
        {"attempt": 2, "status": "completed", "startedAt": moment(2), "completedAt": moment(1)},
    ]
    retried = document("run_retried", "quiet_retried", steps=[step("call", attempt=2, attempts=attempts)])
    going_on = {
        "id": "call",
        "name": "Call",
        "type": "action",
        "status": "retrying",
        "startedAt": moment(3),
        "attempt": 2,
    }
    unfinished = [
        document("run_unfinished", "quiet_unfinished", "running", [step("look"), going_on]),
        document("run_waiting", "quiet_unfinished", "suspended", [step("look")]),
    ]
    old = [
        document(f"run_old_{n}", "quiet_backfill", "failed", [step("charge", "failed", ago=7200)], ago=7200)
        for n in range(1000)
    ]
    again = [document(f"run_again_{n}", "quiet_replay", "failed", [step("charge", "failed")]) for n in range(20)]
    return [([retried], ""), (unfinished, ""), (old, ""), (again, REPLAY)]


def correct(stack: Stack) -> None:
    """A run that completed turns out to have failed. Its new revision needs no header; its steps, which are sent with
    it, do."""
    good = document("run_corrected", "quiet_corrected")
    send(stack.directory, [good], stack.collector.otlp)
    bad = {**good, "status": "failed", "steps": [step("charge", "failed")]}
    *steps, revision = encode(Run.from_json(json.dumps(bad).encode()), after_root=True, observed_at=time.time_ns())
    name, value = REPLAY.split("=")
    for spans, header in (([revision], {}), (steps, {name: value})):
        body = write_json(spans, Resource("runspan", {}))
        headers = {"content-type": "application/json", **header}
        answer = httpx.post(f"{stack.collector.otlp}/v1/traces", content=body, headers=headers, trust_env=False)
        assert answer.status_code == 200


def arrived(stack: Stack, name: str, workflow: str = "wf_fails") -> dict[str, Any]:
    """The first notification of a rule for a workflow."""

    def found() -> list[dict[str, Any]]:
        alerts = stack.webhook.alerts(name)
        return [alert for alert in alerts if alert["labels"].get("runspan_workflow_id") == workflow]

    assert stack.webhook.wait_for(lambda: bool(found()), SECONDS), stack.prometheus.alerts(state="firing")
    return found()[0]


def test_one_failed_run_is_told_within_two_scrapes(stack: Stack, failed: float) -> None:
    """*Run failed* and *step failed* arrive at the webhook, and no more than two scrapes lie between the receiver's
    answer and the alert, though no series of that workflow was ever there before."""
    for name in ("RunspanRunFailed", "RunspanStepFailed"):
        alert = arrived(stack, name)
        began = datetime.fromisoformat(alert["startsAt"]).timestamp()
        scrapes = stack.prometheus.times('up{job="span-metrics"}', failed + BATCH, began)
        logging.getLogger("runspan.tests").info("%s after %.1f s, %d scrapes", name, began - failed, len(scrapes))
        assert len(scrapes) <= 2, f"{name} after {began - failed:.1f} s"
    step_alert = arrived(stack, "RunspanStepFailed")
    assert step_alert["labels"]["runspan_step_id"] == "charge"
    assert arrived(stack, "RunspanRunFailed")["labels"]["severity"] == "critical"


def test_the_notification_links_to_the_run(stack: Stack, failed: float) -> None:
    """``runs_url`` answers, and the list that it filters is the run that failed, though it started three days ago.
    ``runbook_url`` is a page of the same server."""
    for name in ("RunspanRunFailed", "RunspanStepFailed"):
        link = httpx.URL(arrived(stack, name)["annotations"]["runs_url"])
        assert str(link).startswith(stack.runspan)
        answer = httpx.get(f"{stack.runspan}/api/v1/runs", params=link.params, trust_env=False).json()
        assert [run["id"] for run in answer["data"]] == ["run_first_failure"]
        runbook = arrived(stack, name)["annotations"]["runbook_url"]
        assert runbook.startswith(stack.runspan)
        for target in (link, runbook, f"{stack.runspan}/runs/run_first_failure"):
            page = httpx.get(target, trust_env=False)
            assert page.is_success
            assert page.headers["content-type"].startswith("text/html")


def test_the_texts_are_whole(stack: Stack, failed: float) -> None:
    """Every template in the annotations of an alert that arrived was filled in."""
    alert = arrived(stack, "RunspanRunFailed")
    assert alert["annotations"]["summary"] == "Workflow wf_fails failed"
    assert "1 runs of wf_fails" in alert["annotations"]["description"]
    assert all("{{" not in text and "<no value>" not in text for text in alert["annotations"].values())
    assert "wf_fails" in httpx.URL(alert["annotations"]["traces_url"]).params["panes"]


def test_an_approval_that_does_not_come_is_told(stack: Stack, failed: float) -> None:
    """One revision of a run that is suspended, and began five hours ago, is enough; the link leads to it."""
    alert = arrived(stack, "RunspanApprovalWaiting", "wf_asks")
    params = httpx.URL(alert["annotations"]["runs_url"]).params
    answer = httpx.get(f"{stack.runspan}/api/v1/runs", params=params, trust_env=False).json()
    assert [run["id"] for run in answer["data"]] == ["run_asks"]


def test_an_approval_that_comes_ends_the_alert(stack: Stack, failed: float) -> None:
    """As soon as the run goes on, and not when its last suspended revision is old."""
    arrived(stack, "RunspanApprovalWaiting", "wf_asks")
    asked = document("run_asks", "wf_asks", steps=[step("look", ago=18_000), step("approve")])
    asked |= {"startedAt": moment(18_010), "durationMs": 18_009_000}
    send(stack.directory, [asked], stack.collector.otlp)

    def is_over() -> bool:
        alerts = stack.webhook.alerts("RunspanApprovalWaiting", "resolved")
        return any(alert["labels"]["runspan_workflow_id"] == "wf_asks" for alert in alerts)

    # The group's interval is two minutes for what is not critical.
    assert stack.webhook.wait_for(is_over, 4 * SECONDS), stack.prometheus.alerts()


def test_what_is_no_failure_of_now_raises_nothing(stack: Stack, failed: float) -> None:
    """A retry that got through, revisions, a correction, a re-export that says so and a thousand old failures were all
    taken and stored, and no alert names their workflows."""
    arrived(stack, "RunspanRunFailed")
    last = time.time()
    wait_until(lambda: len(stack.prometheus.times('up{job="span-metrics"}', last)) > 2, SECONDS, "three more scrapes")
    told = stack.webhook.alerts() + stack.prometheus.alerts() + stack.prometheus.alerts(state="pending")
    workflows = {alert["labels"].get("runspan_workflow_id", "") for alert in told}
    assert workflows <= {"", "wf_fails", "wf_asks"}
    assert total(stack.runspan, "runspan_store_runs", {}) == 1 + 2 + 1000 + 20 + 1 + 1 + 1
    found = httpx.get(f"{stack.runspan}/api/v1/runs/run_corrected", trust_env=False).json()
    assert found["data"]["status"] == "failed"


def test_counters_have_the_id_of_the_collectors_start(stack: Stack, failed: float) -> None:
    """A counter of another start of the Collector is another series, which the rules rely on; no label is of a run."""
    arrived(stack, "RunspanRunFailed")
    labels = {label for series in stack.prometheus.query("runspan_runs_total") for label in series["metric"]}
    known = {"__name__", "instance", "job", "runspan_run_status", "runspan_workflow_id", "service_name"}
    assert labels == known | {"signal_to_metrics_service_instance_id"}
    for series, label in (
        ("traces_span_metrics_calls_total", "collector_instance_id"),
        ("otelcol_receiver_accepted_spans", "service_instance_id"),
    ):
        assert all(label in found["metric"] for found in stack.prometheus.query(series))


def test_failures_that_follow_each_other_are_one_page(stack: Stack, failed: float) -> None:
    """A second failure while the alert fires is in its text and in the list of runs, and pages nobody again."""

    def told() -> list[dict[str, Any]]:
        alerts = stack.webhook.alerts("RunspanRunFailed")
        return [alert for alert in alerts if alert["labels"]["runspan_workflow_id"] == "wf_again"]

    for number in (1, 2):
        failure = document(f"run_again_{number}", "wf_again", "failed", [step("look")])
        send(stack.directory, [failure], stack.collector.otlp)
        arrived(stack, "RunspanRunFailed", "wf_again")

    def counts_both() -> bool:
        texts = [alert["annotations"]["description"] for alert in stack.alertmanager.alerts()]
        return any(text.startswith("2 runs of wf_again") for text in texts)

    wait_until(counts_both, SECONDS, "Alertmanager has the number of both")
    time.sleep(12)  # the interval of the group
    assert len(told()) == 1
    link = httpx.URL(told()[0]["annotations"]["runs_url"])
    answer = httpx.get(f"{stack.runspan}/api/v1/runs", params=link.params, trust_env=False).json()
    assert {run["id"] for run in answer["data"]} == {"run_again_1", "run_again_2"}


@pytest.mark.campaign
@pytest.mark.timeout(1500)
def test_the_shipped_rules_page_after_restarts(stack: Stack, failed: float) -> None:
    """A failure pages, and five minutes later it is over. Collector and Prometheus are killed and started, and the same
    workflow fails again: it pages within a minute."""

    def arrivals(status: str) -> set[str]:
        alerts = stack.webhook.alerts("RunspanRunFailed", status)
        return {alert["startsAt"] for alert in alerts if alert["labels"]["runspan_workflow_id"] == "wf_fails"}

    arrived(stack, "RunspanRunFailed")
    assert stack.webhook.wait_for(lambda: len(arrivals("resolved")) == 1, 600)
    for program in (stack.collector, stack.prometheus):
        program.program.kill()
    for program in (stack.prometheus, stack.collector):
        program.start()
    send(stack.directory, [document("run_second", "wf_fails", "failed", [step("look")])], stack.collector.otlp)
    assert stack.webhook.wait_for(lambda: len(arrivals("firing")) == 2, SECONDS), stack.prometheus.alerts()


def test_the_watchdog_is_always_told(stack: Stack, failed: float) -> None:
    """The alert that shows that alerts arrive does so without any failure."""
    assert stack.webhook.wait_for(lambda: bool(stack.webhook.alerts("RunspanWatchdog")), SECONDS)
