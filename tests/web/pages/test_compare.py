"""The compare page in Chromium: differences of the runs, of each step, and within payloads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from support.cli import server
from web.pages.chromium import Watch
from web.pages.kit import agent, fill, iso, run

BEGUN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def step(step_id: str, output: Any, ms: int = 100, **members: Any) -> dict[str, Any]:
    begun = BEGUN + timedelta(seconds=1)
    return {
        "id": step_id,
        "name": step_id.title(),
        "type": "action",
        "status": "completed",
        "startedAt": iso(begun),
        "completedAt": iso(begun + timedelta(milliseconds=ms)),
        "durationMs": ms,
        "output": output,
    } | members


GOOD = run(
    "run_good",
    BEGUN,
    output={"paid": True},
    steps=[
        step("fetch", {"rows": [1, 2, 3], "note": "same"}),
        step("each", {"n": 1}),
        step("each", {"n": 2}),
        agent("think", BEGUN),
        step("mail", {"to": ["a@x.example"]}),
    ],
)
BAD = run(
    "run_bad",
    BEGUN + timedelta(hours=1),
    seconds=9.0,
    status="failed",
    error={"code": "E", "message": "no"},
    steps=[
        step("fetch", {"rows": [1, 5, 2, 3], "note": "same"}),
        step("each", {"n": 1}),
        step("each", {"n": 7}, 4000, status="failed", error={"message": "no"}),
        step("rollback", {"done": True}),
        agent("think", BEGUN, tokens=(2500, 340), cost=0.0155),
    ],
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("compare")
    fill(data, [GOOD, BAD])
    exact = b'{"id":"%s","workflowId":"wf_exact","status":"completed","steps":[{"id":"s","output":%s}]}'
    with SqliteStore(data) as store:
        for name, output in (
            (b"x1", b'{"a":12.10,"big":1180591620717411303424}'),
            (b"x2", b'{"a":12.1,"big":1180591620717411303425}'),
        ):
            store.put(Run.from_json(exact % (name, output)), observed_at=1)
        store.put(Run.from_json(exact % (b"x3", b'{ "a": 12.10,\n"big":1180591620717411303424 }')), observed_at=1)
        many = {"id": "many", "steps": [{"id": "s", "status": "completed", "output": number} for number in range(3000)]}
        other = {
            "id": "other",
            "steps": [{"id": "s", "status": "completed", "output": number // 2} for number in range(3001)],
        }
        for document in (many, other):
            store.put(Run.from_json(json.dumps(document).encode()), observed_at=1)
    with server(data) as (address, _):
        yield address


def pair(page: Page, step_id: str) -> Locator:
    return page.locator("table.pairs > tbody > tr:not(.detail)").filter(has=page.locator(".step-id", has_text=step_id))


def test_two_runs_are_compared(page: Page, url: str) -> None:
    """Status, duration, tokens and cost of the runs; steps by id and execution, with those that only one has."""
    page.goto(f"{url}/compare?a=run_good&b=run_bad")
    figures = page.locator("table.figures")
    expect(figures.locator("tr", has_text="Status")).to_contain_text("CompletedFaileddiffers")
    expect(figures.locator("tr", has_text="Duration")).to_contain_text("+5.50 s (\u00d72.6)")
    expect(figures.locator("tr", has_text="Tokens")).to_contain_text("+1,250")
    expect(figures.locator("tr", has_text="Cost")).to_contain_text("+$0.0060")
    expect(page.get_by_role("heading", name="5 of 6 steps differ.")).to_be_visible()
    expect(page.locator("table.pairs > tbody > tr:not(.detail)")).to_have_count(5)
    expect(pair(page, "fetch")).to_contain_text("output")
    expect(pair(page, "each #2")).to_contain_text("status")
    expect(pair(page, "each #2")).to_contain_text("+3.90 s (\u00d740)")
    expect(pair(page, "rollback")).to_contain_text("only in B")
    expect(pair(page, "mail")).to_contain_text("only in A")
    page.get_by_label("Only differences").uncheck()
    expect(page.locator("table.pairs > tbody > tr:not(.detail)")).to_have_count(6)
    expect(pair(page, "each #1")).to_contain_text("none")
    order = [row.inner_text().split()[0] for row in page.locator("table.pairs .step-id").all()]
    assert order == ["fetch", "each", "each", "rollback", "think", "mail"]


def test_a_payload_shows_where_it_differs(page: Page, url: str) -> None:
    """One inserted item is one change, with its path; equal values are not shown."""
    page.goto(f"{url}/compare?a=run_good&b=run_bad")
    pair(page, "fetch").get_by_role("button", name="Show").click()
    changes = page.locator("tr.detail:visible table.changes tbody tr")
    expect(changes).to_have_count(1)
    expect(changes.first).to_have_text("rows[1]absent5")
    pair(page, "fetch").get_by_role("button", name="Hide").click()
    expect(page.locator("tr.detail:visible")).to_have_count(0)


def test_numbers_are_compared_as_they_are_written(page: Page, url: str) -> None:
    """12.10 is not 12.1, and integers beyond a double keep their last digit; white space is no difference."""
    page.goto(f"{url}/compare?a=x1&b=x2")
    pair(page, "s").get_by_role("button", name="Show").click()
    changes = page.locator("table.changes tbody tr")
    expect(changes).to_have_count(2)
    expect(changes.nth(0)).to_have_text("a12.1012.1")
    expect(changes.nth(1)).to_have_text("big11805916207174113034241180591620717411303425")
    page.goto(f"{url}/compare?a=x1&b=x3")
    pair(page, "s").get_by_role("button", name="Show").click()
    expect(page.locator("tr.detail:visible")).to_contain_text("only the white space")


def test_a_run_is_chosen_from_the_same_workflow_or_by_id(page: Page, watch: Watch, url: str) -> None:
    """With one run the page suggests others of its workflow; ids can be entered, sides swapped, and Back works."""
    watch.allow("status of 404")
    page.goto(f"{url}/compare?a=run_good")
    picker = page.get_by_role("region", name="Run B")
    expect(picker.locator(".suggestion")).to_have_count(1)
    expect(picker.locator(".suggestion")).to_contain_text(re.compile("Failedwf_invoices2 Mar.*, 10:00:00run_bad9.00 s"))
    picker.get_by_role("button", name="run_bad").click()
    expect(page).to_have_url(f"{url}/compare?a=run_good&b=run_bad")
    expect(page.get_by_role("heading", name="5 of 6 steps differ.")).to_be_visible()
    page.get_by_role("button", name="Swap A and B").click()
    expect(page).to_have_url(f"{url}/compare?a=run_bad&b=run_good")
    expect(pair(page, "rollback")).to_contain_text("only in A")
    page.go_back()
    expect(pair(page, "rollback")).to_contain_text("only in B")
    picker.get_by_text("Choose another run").click()
    picker.get_by_role("searchbox", name="Id of run B").fill("run_none")
    picker.get_by_role("button", name="Choose").click()
    expect(picker.get_by_role("alert")).to_contain_text("No such run")
    expect(page.locator("table.pairs")).to_have_count(0)


def test_the_same_run_on_both_sides_is_noted(page: Page, url: str) -> None:
    """Nothing differs, and the page says why."""
    page.goto(f"{url}/compare?a=run_good&b=run_good")
    expect(page.locator(".compare-tools")).to_contain_text("A and B are the same run")
    expect(page.get_by_role("heading", name="All 5 steps have the same status and payloads")).to_be_visible()


def test_thousands_of_steps_are_shown_in_parts(page: Page, url: str) -> None:
    """3,000 looped steps compare at once, and come a hundred at a time."""
    page.goto(f"{url}/compare?a=many&b=other")
    expect(page.get_by_role("heading", name="3,000 of 3,001 steps differ.")).to_be_visible()
    rows = page.locator("table.pairs > tbody > tr:not(.detail)")
    expect(rows).to_have_count(100)
    page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(200)
    expect(page.locator(".steps-footer")).to_contain_text("200 of 3,000")


def test_any_run_can_be_chosen(page: Page, filled: str) -> None:
    """Older runs are listed on demand, also those before a time, and those of all workflows."""
    page.goto(f"{filled}/compare?a=run_001")
    picker = page.get_by_role("region", name="Run B")
    runs = picker.locator(".suggestion")
    expect(runs).to_have_count(19)  # of a page of 20 that has the other side too
    expect(picker.get_by_role("status")).to_have_text("Newest runs of wf_invoices")
    expect(picker.locator(".suggestion", has_text="run_130")).to_have_count(0)
    for count in (39, 59, 79):
        picker.get_by_role("button", name="Older runs").click()
        expect(runs).to_have_count(count)
    picker.get_by_label("Any workflow").check()
    expect(runs.filter(has_text="wf_ledger").first).to_be_visible()
    expect(runs).to_have_count(19)
    before = datetime.now(UTC) - timedelta(hours=50)
    picker.get_by_label("Started before").fill(before.strftime("%Y-%m-%dT%H:%M"))
    expect(picker.get_by_role("status")).to_contain_text("Runs that started before")
    expect(runs.first).to_contain_text("run_100")
    runs.filter(has_text="run_105").click()
    expect(page).to_have_url(f"{filled}/compare?a=run_001&b=run_105")
    picker.get_by_text("Choose another run").click()
    picker.get_by_label("Started before").fill("2001-01-01T00:00")
    expect(picker.get_by_role("status")).to_contain_text("There is no other run of wf_invoices that started")
