"""The pages of workflows in Chromium: what they show, lead to and cover, and what they say without statistics."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from runspan import Run
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.config import remote_config
from runspan.backends.sqlite import SqliteStore
from runspan.web.app import create_app
from support.cli import server
from support.web import serving
from web.pages.chromium import Watch, watched
from web.pages.kit import agent, fill, run

HOSTILE = [
    "<script>alert('pwned')</script>",
    "\"'><svg onload=alert(2)>",
    "a/../../b",
    "%2e%2e",
    "é/漢 字?#&+",
    "run_\u202etxt.exe",
    "\x00\x1b[31m",
]


def table(page: Page, name: str) -> Locator:
    """The rows of a table."""
    return page.get_by_role("table", name=name, exact=True).locator("tbody tr")


def tile(page: Page, name: str) -> Locator:
    return page.locator(".tile").filter(has=page.get_by_text(name, exact=True)).locator("dd")


def opened(page: Page, url: str) -> Page:
    page.goto(url)
    expect(page.locator(".tiles")).to_be_visible()
    return page


def stats(url: str, **parameters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{url}/api/v1/stats", params=parameters, trust_env=False).json()["data"]
    return found


def test_what_did_the_agents_spend_today_by_workflow(browser: Browser, filled: str) -> None:
    """Two actions from the list of runs: the page of workflows, and today, here in a zone where it is about noon."""
    zone = f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"
    with watched(browser, timezone_id=zone) as (_, page, _watch):
        page.goto(filled)
        page.get_by_role("link", name="Workflows").click()
        expect(page.locator(".tiles")).to_be_visible()
        page.get_by_role("combobox", name="Time").select_option("today")
        expect(page).to_have_url(re.compile(r"/workflows\?from="))
        expect(page.locator("#coverage")).to_have_text("Runs that started from 00:00:00 until now")
        midnight = page.evaluate("new Date(new Date().setHours(0, 0, 0, 0)).toISOString()")
        expected = {group["workflowId"]: group for group in stats(filled, groupBy="workflow", **{"from": midnight})}
        expect(table(page, "Workflows")).to_have_count(len(expected))
        row = table(page, "Workflows").first  # the most expensive first
        expect(row.locator("th")).to_have_text("wf_triage")
        expect(row.locator("td").nth(1)).to_have_text(f"${expected['wf_triage']['usage']['costUsd']:.4f}")


def test_the_overview_shows_what_the_api_says(page: Page, filled: str) -> None:
    opened(page, f"{filled}/workflows?time=any")
    groups = stats(filled, groupBy="workflow")
    expect(tile(page, "Runs")).to_contain_text("130")
    expect(tile(page, "Spend")).to_contain_text(f"${0.019 * 17:.4f}")
    expect(table(page, "Workflows")).to_have_count(len(groups))
    row = table(page, "Workflows").filter(has_text="wf_ledger")
    expect(row.locator("td").nth(0)).to_have_text("13")
    expect(row.locator("td").nth(2)).to_contain_text("0 %")
    expect(row.locator("td").nth(4)).to_have_text("3.51 s")
    expect(row).to_contain_text("Xero: line 5 does not balance")
    expect(row.get_by_role("img", name=re.compile("Runs by day"))).to_be_visible()
    expect(table(page, "Models")).to_have_text(re.compile("claude-sonnet-4-6"))
    page.get_by_text("As a table").click()
    expect(table(page, "Spend by day, last 92 days").first).to_be_visible()


def test_links_lead_to_the_runs_that_were_counted(page: Page, filled: str) -> None:
    opened(page, f"{filled}/workflows?since=24h")
    row = table(page, "Workflows").filter(has_text="wf_ledger")
    count = int(row.locator("td").nth(0).inner_text())
    row.get_by_role("link", name=f"{count} failed").click()
    expect(page.locator("table.runs tbody tr")).to_have_count(count)
    expect(page).to_have_url(re.compile("status=failed%2Ctimed_out"))
    page.go_back()
    table(page, "Workflows").filter(has_text="wf_ledger").get_by_role("link", name=re.compile("ago")).click()
    expect(page).to_have_url(f"{filled}/runs/run_005")


def test_columns_are_sorted_by_their_headings(page: Page, filled: str) -> None:
    opened(page, f"{filled}/workflows?time=any")
    heading = page.get_by_role("columnheader", name="Runs")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    expect(table(page, "Workflows").first).to_contain_text("wf_invoices")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    expect(table(page, "Workflows").first).to_contain_text("wf_approval")
    expect(heading.get_by_role("button")).to_be_focused()


def test_a_workflow_from_the_list_and_from_a_run(page: Page, filled: str) -> None:
    """The list of a workflow's runs leads to its page for the same time, and so does the title of each run."""
    page.goto(f"{filled}/?workflowId=wf_ledger&since=24h")
    page.get_by_role("link", name="Statistics").click()
    expect(page).to_have_url(f"{filled}/workflows/wf_ledger?since=24h")
    expect(page.get_by_role("heading", level=1)).to_have_text("wf_ledger")
    page.goto(f"{filled}/runs/run_005")
    page.get_by_role("heading", level=1).get_by_role("link").click()
    expect(page).to_have_url(f"{filled}/workflows/wf_ledger")
    page.get_by_role("link", name="Runs", exact=True).last.click()
    expect(page).to_have_url(f"{filled}/?workflowId=wf_ledger&since=7d")


def test_the_page_of_a_workflow(page: Page, filled: str) -> None:
    opened(page, f"{filled}/workflows/wf_triage?time=any")
    expect(tile(page, "Runs")).to_contain_text("17")
    expect(tile(page, "Success")).to_contain_text("100 %")
    expect(tile(page, "Spend")).to_contain_text("$0.0190 per run")
    expect(tile(page, "Tokens")).to_contain_text("54.1k")
    expect(table(page, "Slowest steps").first).to_contain_text("2.00 s")
    expect(table(page, "Models").locator("td").first).to_have_text(f"${0.019 * 17:.4f}")
    expect(page.get_by_role("heading", name="Failures by error")).to_have_count(0)
    page.get_by_text("As a table").first.click()
    days = table(page, "Runs by day, last 92 days")
    first = int(days.first.locator("td").first.inner_text())
    days.first.get_by_role("link").click()
    expect(page.locator("table.runs tbody tr")).to_have_count(first)


def test_failures_are_grouped_by_error_and_lead_to_their_newest_run(page: Page, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    failed = {"id": "book", "name": "Book", "type": "xero", "status": "failed", "durationMs": 1200}
    documents = []
    for number in range(9):
        code, steps = ("LIMIT", [failed]) if number % 3 else ("CARD\nDECLINED", [])
        error = {"code": code, "message": f"message {number}"}
        begun = now - timedelta(hours=number, minutes=1)
        documents.append(run(f"run_{number}", begun, status="failed", steps=steps, error=error))
    fill(tmp_path, documents)
    with server(tmp_path) as (url, _):
        opened(page, f"{url}/workflows/wf_invoices")
        rows = table(page, "Failures by error")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("LIMIT")
        expect(rows.first).to_contain_text("message 1")
        expect(rows.first).to_contain_text("Book")
        expect(rows.first.locator("td").nth(1)).to_have_text("6")
        expect(rows.nth(1)).to_contain_text("message 0")
        expect(table(page, "Failing steps").first).to_contain_text("100 %")
        rows.nth(1).get_by_role("link", name="3", exact=True).click()
        expect(page.locator("table.runs tbody tr")).to_have_count(3)
        page.go_back()
        rows.first.get_by_role("link", name=re.compile("ago")).click()
        expect(page).to_have_url(f"{url}/runs/run_1")


def test_the_time_is_in_the_address(page: Page, filled: str) -> None:
    """The browser's buttons walk through the times, and a shared address shows the same."""
    opened(page, f"{filled}/workflows")
    choice = page.get_by_role("combobox", name="Time")
    expect(choice).to_have_value("7d")
    choice.select_option("24h")
    expect(page).to_have_url(f"{filled}/workflows?since=24h")
    choice.select_option("")
    expect(page).to_have_url(f"{filled}/workflows?time=any")
    expect(page.locator("#coverage")).to_have_text("All runs until now")
    page.go_back()
    expect(choice).to_have_value("24h")
    opened(page, f"{filled}/workflows?since=90m")
    expect(choice).to_have_value("90m")
    choice.select_option("range")
    page.get_by_role("textbox", name="From").fill("2020-01-01T00:00")
    page.get_by_role("textbox", name="To").fill("2020-02-01T00:00")
    page.keyboard.press("Tab")
    expect(page.get_by_role("heading", name="No runs in this time")).to_be_visible()
    page.get_by_role("button", name="Show any time").click()
    expect(tile(page, "Runs")).to_contain_text("130")


def test_a_time_zone_of_half_hours(browser: Browser, filled: str) -> None:
    """A day that does not begin with an hour of UTC begins with the hour before, as the page says."""
    with watched(browser, timezone_id="Asia/Kolkata") as (_, page, _watch):
        page.goto(f"{filled}/workflows")
        page.get_by_role("combobox", name="Time").select_option("today")
        expect(page.locator("#coverage")).to_have_text(re.compile(r"from \d+ \w+, 23:30:00 until now"))


def test_any_id_has_a_page(page: Page, tmp_path: Path) -> None:
    """Names are text, whatever they hold, and lead to their own page."""
    now = datetime.now(UTC)
    fill(
        tmp_path,
        [
            run(
                f"run_{number}",
                now - timedelta(minutes=number),
                workflowId=text,
                status="failed",
                error={"code": text, "message": text},
                steps=[agent("a", now, name=text, type=text, status="failed")],
            )
            for number, text in enumerate(HOSTILE)
        ],
    )
    with server(tmp_path) as (url, _):
        opened(page, f"{url}/workflows")
        rows = table(page, "Workflows")
        expect(rows).to_have_count(len(HOSTILE))
        links = [str(link.get_attribute("href")) for link in rows.locator("th a").all()]
        assert {link.split("?")[0].removeprefix("/workflows/") for link in links} == {
            quote(text, safe="!~*'()") for text in HOSTILE
        }
        for link in links:
            opened(page, url + link)
            expect(tile(page, "Runs")).to_contain_text("1")
            expect(page.locator("main script, main iframe, main [onload]")).to_have_count(0)
            expect(table(page, "Failures by error")).to_have_count(1)


def test_runs_without_a_workflow(page: Page, tmp_path: Path) -> None:
    fill(tmp_path, [run("run_1", datetime.now(UTC), workflowId=...), run("run_2", datetime.now(UTC), workflowId="..")])
    with server(tmp_path) as (url, _):
        opened(page, f"{url}/workflows")
        expect(table(page, "Workflows")).to_have_count(2)
        expect(table(page, "Workflows").locator("th a")).to_have_count(0)
        expect(page.get_by_text("No workflow", exact=True)).to_be_visible()


@pytest.mark.parametrize("kind", ["jaeger", "store without index"])
def test_backends_without_statistics(page: Page, watch: Watch, tmp_path: Path, kind: str) -> None:
    """The page says kindly why there are none, and leads to the list."""
    watch.allow("status of 400")
    reader = JaegerReader(remote_config("jaeger+http://127.0.0.1:1", {}))
    with SqliteStore(tmp_path, index=False) as store:
        store.put(Run.from_json(json.dumps(run("r", datetime.now(UTC)))), observed_at=1)
        with serving(create_app(reader if kind == "jaeger" else store)) as client:
            for path in ("workflows", "workflows/wf_invoices"):
                page.goto(f"{str(client.base_url).rstrip('/')}/{path}")
                expect(page.get_by_role("heading", name="There are no statistics here")).to_be_visible()
                link = page.get_by_role("link", name="List of runs").get_attribute("href")
                assert link is not None
                assert ("workflowId" in link) == (path != "workflows")
    reader.close()


@pytest.mark.parametrize("path", ["workflows", "workflows/wf_triage?time=any"])
def test_a_phone_shows_the_page_without_scrolling_sideways(browser: Browser, filled: str, path: str) -> None:
    with watched(browser, viewport={"width": 360, "height": 740}) as (_, page, _watch):
        opened(page, f"{filled}/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
