"""The links of every alert, followed: from the notification to the list, and from the list to the run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
import pytest
import yaml
from alerts.__main__ import rule_file
from playwright.sync_api import Browser, expect

from operate.kit import document, moment, step
from runspan import Run
from runspan.backends.sqlite import SqliteStore
from support.cli import runspan, server
from web.pages.chromium import watched

WORKFLOW = "wf a&b=ü/#1"
LABELS = {"runspan_workflow_id": WORKFLOW, "runspan_step_id": "charge", "runspan_run_status": "failed"}
DAYS = 3 * 86_400
FAILED = {"RunspanRunFailed", "RunspanStepFailed", "RunspanFailureBudgetBurnFast", "RunspanFailureBudgetBurnSlow"}
NEWEST = {
    "RunspanNoRuns",
    "RunspanExportNotDelivering",
    "RunspanExportRejected",
    "RunspanDocumentsRefused",
    "RunspanSyncStalled",
    "RunspanSyncLagging",
    "RunspanRetentionClose",
    "RunspanTokenBudget",
    "RunspanCostBudget",
}
"""Alerts of no single run: their list has the newest ones."""
NAMES = [rule["alert"] for group in yaml.safe_load(rule_file())["groups"] for rule in group["rules"]]


def runs() -> Iterator[dict[str, Any]]:
    """A run of three days that failed a minute ago, one that waits and one that is stuck, and fifty newer ones."""
    failed = document("run_days", WORKFLOW, "failed", [step("charge", "failed", ago=60)], ago=60)
    yield failed | {"startedAt": moment(DAYS), "durationMs": DAYS * 1000}
    yield document("run_waits", WORKFLOW, "suspended", ago=18_000)
    yield document("run_stuck", WORKFLOW, "running", ago=7200)
    for number in range(60):
        yield document(f"run_other_{number}", "wf_other", ago=30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, dict[str, str]]]]:
    """A server with these runs, and the annotations of the alerts of its site, filled in as Prometheus does."""
    data = tmp_path_factory.mktemp("links")
    hour_ago = time.time_ns() - 3_600_000_000_000
    with SqliteStore(data) as store:
        for found in runs():
            store.put(Run.from_dict(found), observed_at=hour_ago)
    with server(data) as (url, _):
        groups = yaml.safe_load(rule_file(external_url=url))["groups"]
        yield url, {rule["alert"]: filled(rule["annotations"]) for group in groups for rule in group["rules"]}


def filled(annotations: dict[str, str]) -> dict[str, str]:
    """The links with the labels of an alert."""

    def label(found: re.Match[str]) -> str:
        return quote_plus(LABELS[found[1]])

    links = {name: text for name, text in annotations.items() if name.endswith("_url")}
    return {name: re.sub(r"\{\{ \$labels\.(\w+) \| urlquery \}\}", label, text) for name, text in links.items()}


def expected(name: str) -> str:
    """How the id of the run begins to which an alert's list must lead."""
    special = {"RunspanRunStuck": "run_stuck", "RunspanApprovalWaiting": "run_waits"}
    return special.get(name, "run_other" if name in NEWEST else "run_days")


@pytest.mark.parametrize("name", NAMES)
def test_the_list_of_an_alert_has_its_run(site: tuple[str, dict[str, dict[str, str]]], name: str) -> None:
    """The first page of the list, and the run's own page behind it. Alerts without a list are not about runs."""
    url, alerts = site
    if "runs_url" not in alerts[name]:
        assert name.startswith(("RunspanCollector", "RunspanExporter", "RunspanQueue", "RunspanS", "RunspanRules",
                                "RunspanNotifications", "RunspanWatchdog", "RunspanExpiry"))  # fmt: skip
        return
    link = httpx.URL(alerts[name]["runs_url"])
    page = httpx.get(link, trust_env=False)
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    listed = httpx.get(f"{url}/api/v1/runs", params=link.params, trust_env=False).json()["data"]
    found = [run["id"] for run in listed if run["id"].startswith(expected(name))]
    assert found, listed
    assert httpx.get(f"{url}/runs/{found[0]}", trust_env=False).status_code == 200
    if name in FAILED:
        assert {run["workflowId"] for run in listed} == {WORKFLOW}


@pytest.mark.parametrize("name", NAMES)
def test_the_runbook_of_an_alert_is_a_page(site: tuple[str, dict[str, dict[str, str]]], name: str) -> None:
    """Its anchor is on the page, and the link at the end of the section leads on."""
    url, alerts = site
    page, _, anchor = alerts[name]["runbook_url"].partition("#")
    text = httpx.get(page, trust_env=False).raise_for_status().text
    section = text.partition(f'<h2 id="{anchor}">')[2].partition("<h2 ")[0].partition("</article>")[0]
    last = section.strip().rpartition("\n")[2]
    if link := re.search(r'<a href="(/[^"]*)"', last):
        httpx.get(url + unescape(link[1]), trust_env=False).raise_for_status()
    else:
        assert re.search(r"<code>http://127\.0\.0\.1:(3000|909\d)/", last)


def test_a_run_of_days_is_two_clicks_away(site: tuple[str, dict[str, dict[str, str]]], browser: Browser) -> None:
    """The first opens the list from the notification, the second the run, which shows the failed step's error. From the
    runbook it is one click more."""
    url, alerts = site
    with watched(browser) as (_, page, _watch):
        page.goto(alerts["RunspanRunFailed"]["runs_url"])
        rows = page.locator("table.runs tbody tr")
        expect(rows).to_have_count(1)
        rows.get_by_role("link", name="run_days").click()
        expect(page).to_have_url(f"{url}/runs/run_days")
        expect(page.get_by_text("the card was declined").first).to_be_visible()
        page.goto(alerts["RunspanRunFailed"]["runbook_url"])
        heading = page.get_by_role("heading", name="RunspanRunFailed")
        expect(heading).to_be_in_viewport()
        page.get_by_role("link", name="The failed runs").first.click()
        expect(rows).to_have_count(1)


def test_runbooks_need_no_login(tmp_path: Path) -> None:
    """A server with keys shows them to everybody, and nothing else."""
    runspan("keys", "create", "--data", tmp_path, "--name", "somebody")
    with server(tmp_path) as (url, _):
        assert httpx.get(f"{url}/runbooks", trust_env=False).status_code == 200
        assert httpx.get(f"{url}/", trust_env=False).status_code == 303
