"""The runs panel in Chromium: what it shows, finds, pages through and keeps up to date."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from runspan.contracts import Page as RunPage
from runspan.contracts import RunQuery
from runspan.model.span import run_ids
from runspan.web.app import create_app
from support.cli import server
from support.servers.process import free_ports
from support.web import serving
from web.pages.chromium import Watch, watched
from web.pages.kit import agent, fill, push, run, unfinished

ROWS = "table.runs tbody tr"


def ids(page: Page) -> list[str]:
    """The ids in the list, from the top."""
    found: list[str] = page.locator(ROWS).evaluate_all("(rows) => rows.map((row) => row.dataset.run)")
    return found


def row(page: Page, run_id: str) -> Locator:
    """The row of a run."""
    return page.locator(f'{ROWS}[data-run="{run_id}"]')


def choice(page: Page, name: str) -> Locator:
    """The filter of this name."""
    return page.get_by_role("combobox", name=name)


def opened(page: Page, url: str) -> Page:
    page.goto(url)
    expect(page.locator(ROWS).first).to_be_visible()
    return page


def test_rows_show_what_the_api_and_the_documents_say(page: Page, filled: str) -> None:
    """Newest first, with workflow, status, trigger, start and duration, and with tokens and cost of the documents."""
    opened(page, filled)
    assert ids(page) == [f"run_{number:03}" for number in range(50)]
    agents = row(page, "run_000")
    expect(agents.locator(".cell-status")).to_have_text("Completed")
    expect(agents.locator(".cell-workflow")).to_contain_text("wf_triage")
    expect(agents.locator(".cell-workflow")).to_contain_text("webhook")
    expect(agents.locator(".cell-started")).to_contain_text(re.compile(r"\d+ m ago"))
    expect(agents.locator(".cell-duration")).to_have_text("3.50 s")
    expect(agents.locator(".cell-tokens")).to_have_text("3,180")
    expect(agents.locator(".cell-cost")).to_have_text("$0.0190")
    expect(row(page, "run_001").locator(".cell-tokens")).to_have_text("\u2013")
    expect(row(page, "run_005").locator(".cell-run")).to_contain_text("Xero: line 5 does not balance")
    started = httpx.get(f"{filled}/api/v1/runs/run_000", trust_env=False).json()["data"]["startedAt"]
    title = agents.locator("time").get_attribute("title")
    assert title is not None
    assert "UTC" in title
    assert started in title


def test_totals_are_loaded_for_rows_in_view(page: Page, filled: str) -> None:
    """The panel loads the totals of a few runs at a time, and those far below only after scrolling there."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/pages/totals" in request.url else None)
    opened(page, filled)
    expect(row(page, "run_000").locator(".cell-cost")).to_have_text("$0.0190")
    assert not any("run_049" in url for url in asked)
    row(page, "run_049").scroll_into_view_if_needed()
    expect(row(page, "run_049").locator(".cell-cost")).to_have_text("$0.0190")
    assert all(url.count("run=") <= 10 for url in asked)


def test_filters_are_the_apis_parameters_in_the_url(page: Page, filled: str) -> None:
    """A choice changes the URL, the URL alone brings the list back, and the browser's buttons walk through them."""
    opened(page, filled)
    choice(page, "Status").select_option("failed")
    expect(page).to_have_url(re.compile(r"\?status=failed$"))
    expect(page.locator(ROWS)).to_have_count(13)
    choice(page, "Time").select_option("24h")
    expect(page.locator(ROWS)).to_have_count(5)
    page.get_by_role("combobox", name="Workflow").fill("wf_ledger")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?workflowId=wf_ledger&status=failed&since=24h$"))
    expect(page.locator(ROWS)).to_have_count(5)
    found = ids(page)
    query = httpx.URL(page.url).params
    listed = httpx.get(f"{filled}/api/v1/runs", params=query, trust_env=False).json()["data"]
    assert [each["id"] for each in listed] == found

    page.reload()
    expect(page.locator(ROWS)).to_have_count(5)
    assert ids(page) == found
    expect(page.get_by_role("combobox", name="Workflow")).to_have_value("wf_ledger")
    expect(choice(page, "Status")).to_have_value("failed")

    page.go_back()
    page.go_back()
    expect(page.locator(ROWS)).to_have_count(13)
    expect(choice(page, "Time")).to_have_value("")
    page.go_forward()
    expect(page.locator(ROWS)).to_have_count(5)
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url(f"{filled}/")
    expect(page.locator(ROWS)).to_have_count(50)


def test_a_shared_url_may_ask_for_what_the_form_does_not_offer(page: Page, filled: str) -> None:
    """since=90m and limit=3 come from a URL, stay in it, and the form shows them."""
    opened(page, f"{filled}/?since=90m&limit=2")
    assert ids(page) == ["run_000", "run_001"]
    expect(choice(page, "Time")).to_have_value("90m")
    choice(page, "Status").select_option("completed")
    expect(page).to_have_url(re.compile("limit=2"))
    expect(page).to_have_url(re.compile("since=90m"))


def test_runs_of_a_day_or_of_a_range(page: Page, watch: Watch, tmp_path: Path) -> None:
    """Days are those of the browser. A range has fields, which a URL fills too, and is by start or by end."""
    zone = datetime.now().astimezone().tzinfo  # the browser runs in that of the machine
    today = datetime.now(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = (today - timedelta(hours=12)).replace(hour=0)
    begun = {
        "run_today": today,
        "run_late": today - timedelta(seconds=1),
        "run_early": yesterday,
        "run_before": yesterday - timedelta(seconds=1),
    }
    fill(tmp_path, [run(run_id, at.astimezone(UTC)) for run_id, at in begun.items()])
    with server(tmp_path) as (url, _):
        opened(page, url)
        choice(page, "Time").select_option("Yesterday")
        expect(page.locator(ROWS)).to_have_count(2)
        assert ids(page) == ["run_late", "run_early"]
        assert set(httpx.URL(page.url).params) == {"from", "to"}
        page.reload()
        expect(choice(page, "Time")).to_have_value("yesterday")
        choice(page, "Time").select_option("Today")
        expect(page.locator(ROWS)).to_have_count(1)
        choice(page, "Time").select_option("range")
        expect(page.get_by_label("From", exact=True)).to_have_value(f"{today:%Y-%m-%dT%H:%M}")
        page.get_by_label("From", exact=True).fill(f"{yesterday:%Y-%m-%dT%H:%M}")
        page.get_by_label("To", exact=True).fill(f"{yesterday + timedelta(hours=1):%Y-%m-%dT%H:%M}")
        page.keyboard.press("Enter")
        expect(page.locator(ROWS)).to_have_count(1)
        assert ids(page) == ["run_early"]
        choice(page, "Of the").select_option("End")
        expect(page).to_have_url(re.compile("endedFrom=.*endedTo="))
        expect(page.locator(ROWS)).to_have_count(2)
        assert ids(page) == ["run_early", "run_before"]
        choice(page, "Time").select_option("Any time")
        expect(page).to_have_url(f"{url}/")
        watch.allow("status of 400")
        page.goto(f"{url}/?from=2026-01-02&to=2026-01-01")
        expect(page.get_by_role("alert")).to_contain_text("A range ends after it begins")


def test_several_statuses_are_a_choice(page: Page, filled: str) -> None:
    """Failed and timed out runs are one list, as the API has it."""
    opened(page, filled)
    choice(page, "Status").select_option("Failed or timed out")
    expect(page).to_have_url(re.compile(r"\?status=failed%2Ctimed_out$"))
    expect(page.locator(ROWS)).to_have_count(13)
    page.goto(f"{filled}/?status=running,failed")
    expect(choice(page, "Status").locator("option:checked")).to_have_text("Running or failed")


def test_the_chart_shows_where_runs_are_and_chooses_a_range(page: Page, tmp_path: Path) -> None:
    """A run of long ago does not squeeze the others. A drag, or a row of the table, filters by the start."""
    now = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
    documents = [run(f"run_{hours:02}", now - timedelta(hours=hours)) for hours in range(1, 25)]
    fill(tmp_path, [*documents, run("run_old", now - timedelta(days=300))])
    with server(tmp_path) as (url, _):
        opened(page, url)
        chart = page.locator(".histogram-chart")
        expect(page.locator("#histogram")).to_contain_text("1 older run is left of the chart")
        bars = chart.locator("g:has(.bar-part)")
        assert bars.count() > 12
        first, last = (bars.nth(index).bounding_box() for index in (0, 2))
        assert first is not None
        assert last is not None
        page.mouse.move(first["x"] + 2, first["y"] + 10)
        page.mouse.down()
        page.mouse.move(last["x"] + last["width"] / 2, last["y"] + 20, steps=4)
        expect(chart.locator(".brush")).to_be_visible()
        page.mouse.up()
        expect(page).to_have_url(re.compile(r"\?from=.*&to="))
        expect(choice(page, "Time")).to_have_value("range")
        query = httpx.URL(page.url).params
        listed = httpx.get(f"{url}/api/v1/runs", params=query, trust_env=False).json()["data"]
        assert 1 <= len(listed) < 12
        expect(page.locator(ROWS)).to_have_count(len(listed))
        assert "run_24" in ids(page)
        page.get_by_text("As a table").click()
        page.locator(".counts tbody button").last.click()
        expect(page.locator(ROWS)).to_have_count(1)


def test_stuck_runs_are_a_choice(page: Page, tmp_path: Path) -> None:
    """Unfinished runs without recent data are listed by the API's stuckAfter."""
    now = datetime.now(UTC)
    with SqliteStore(tmp_path) as store:
        for run_id, age in (("run_stuck", 20 * 60), ("run_live", 5 * 60)):
            document = unfinished(run_id, now - timedelta(hours=1))
            store.put(Run.from_dict(document), observed_at=time.time_ns() - age * 1_000_000_000)
    with server(tmp_path) as (url, _):
        opened(page, url)
        choice(page, "Status").select_option("Stuck for 15m")
        expect(page).to_have_url(f"{url}/?stuckAfter=15m")
        expect(page.locator(ROWS)).to_have_count(1)
        assert ids(page) == ["run_stuck"]
        page.goto(f"{url}/?stuckAfter=3s")
        expect(page.locator(ROWS)).to_have_count(2)
        expect(choice(page, "Status").locator("option:checked")).to_have_text("Stuck for 3s")
        choice(page, "Status").select_option("failed")
        expect(page).to_have_url(f"{url}/?status=failed")


def test_a_run_of_days_that_ended_now_is_listed_by_its_end(page: Page, tmp_path: Path) -> None:
    """The list by the time of the end has it, that by the start has not; the form shows and keeps the filter."""
    now = datetime.now(UTC)
    with SqliteStore(tmp_path) as store:
        for run_id, started, ended in (("run_days", 72, 0.1), ("run_old", 72, 71), ("run_new", 0.2, 0.1)):
            start, end = ((now - timedelta(hours=hours)).isoformat() for hours in (started, ended))
            document = {"id": run_id, "workflowId": "wf", "status": "failed", "startedAt": start, "completedAt": end}
            store.put(Run.from_dict(document), observed_at=time.time_ns())
    with server(tmp_path) as (url, _):
        opened(page, f"{url}/?status=failed&since=24h")
        assert ids(page) == ["run_new"]
        choice(page, "Of the").select_option("End")
        expect(page).to_have_url(f"{url}/?status=failed&endedFrom=24h")
        choice(page, "Time").select_option("Last hour")
        expect(page).to_have_url(f"{url}/?status=failed&endedFrom=1h")
        expect(page.locator(ROWS)).to_have_count(2)
        assert ids(page) == ["run_new", "run_days"]
        page.goto(f"{url}/?endedFrom=90m")
        expect(choice(page, "Time").locator("option:checked")).to_have_text("Last 90m")
        expect(choice(page, "Of the")).to_have_value("end")
        choice(page, "Status").select_option("failed")
        expect(page).to_have_url(f"{url}/?status=failed&endedFrom=90m")
        row(page, "run_days").get_by_text("wf").click()
        expect(page).to_have_url(re.compile(r"workflowId=wf&.*endedFrom=90m"))
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator(ROWS)).to_have_count(3)


def test_a_workflow_in_the_list_filters_by_it(page: Page, filled: str) -> None:
    """A click on a workflow's name shows only its runs, with the other filters kept."""
    opened(page, f"{filled}/?since=7d")
    row(page, "run_005").get_by_text("wf_ledger").click()
    expect(page).to_have_url(re.compile(r"workflowId=wf_ledger&since=7d"))
    expect(page.locator(ROWS)).to_have_count(13)


def test_pages_go_to_older_runs_and_back(page: Page, filled: str) -> None:
    """Keyset pages hold every run once; Newer returns to the page before, also after a reload."""
    opened(page, filled)
    first = ids(page)
    expect(page.get_by_role("button", name="Newer")).to_be_disabled()
    page.get_by_role("button", name="Older").click()
    expect(row(page, "run_050")).to_be_visible()
    second = ids(page)
    page.get_by_role("button", name="Older").click()
    expect(row(page, "run_100")).to_be_visible()
    third = ids(page)
    assert first + second + third == [f"run_{number:03}" for number in range(130)]
    expect(page.get_by_role("button", name="Older")).to_be_disabled()
    page.reload()
    expect(row(page, "run_100")).to_be_visible()
    page.get_by_role("button", name="Newer").click()
    expect(row(page, "run_050")).to_be_visible()
    assert ids(page) == second
    page.get_by_role("button", name="Newest").click()
    expect(row(page, "run_000")).to_be_visible()
    expect(page).to_have_url(f"{filled}/")


def test_a_run_is_found_by_its_id_or_its_trace_id(page: Page, watch: Watch, filled: str) -> None:
    """The field opens the page of any id as it stands there, and of a trace id the run's."""
    watch.allow("status of 404")
    opened(page, filled)
    page.keyboard.press("/")
    page.keyboard.type("run_077")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{filled}/runs/run_077")
    for text, path in ((run_ids("run_042", "").trace_id.hex(), "runs/run_042"), ("a/b?c#d", "?q=a%2Fb%3Fc%23d")):
        page.goto(f"{filled}/compare")
        field = page.get_by_role("searchbox", name="Text in runs, run id or trace id")
        field.fill(text)
        field.press("Enter")
        expect(page).to_have_url(f"{filled}/{path}")


def test_runs_with_a_text_are_found_at_their_step(page: Page, watch: Watch, tmp_path: Path) -> None:
    """A text that is no id lists the runs that contain it, each with a link to the step, and what is around it."""
    watch.allow("status of 404")
    now = datetime.now(UTC)
    step = {"id": "charge", "name": "Charge the card", "type": "stripe", "status": "failed"}
    documents = [
        run(
            f"run_{number}",
            now - timedelta(minutes=number),
            steps=[step, step | {"input": {"customer": f"cus_47{number}"}}],
        )
        for number in (11, 12)
    ]
    fill(tmp_path, [*documents, run("run_other", now)])
    with server(tmp_path) as (url, _):
        page.goto(f"{url}/runs/run_other")
        page.keyboard.press("/")
        page.keyboard.type("CUS_47")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{url}/?q=CUS_47")
        expect(page.locator(ROWS)).to_have_count(2)
        found = row(page, "run_12").locator(".run-match")
        expect(found).to_have_text('charge (2) · input "customer": "cus_4712"')
        expect(found.locator("mark")).to_have_text("cus_47")
        expect(page.locator("#search-note")).to_contain_text(
            "CUS_47” in ids, names and types of steps, errors and payloads"
        )
        expect(page.locator("#histogram")).to_contain_text("2 runs")
        found.get_by_role("link").click()
        expect(page).to_have_url(f"{url}/runs/run_12#step=charge&execution=2&tab=input")
        expect(page.locator(".detail")).to_contain_text("cus_4712")
        page.go_back()
        expect(page.get_by_role("searchbox", name="Text in runs")).to_have_value("CUS_47")
        choice(page, "Status").select_option("failed")
        expect(page).to_have_url(f"{url}/?q=CUS_47&status=failed")
        expect(page.get_by_role("heading", name="No run with these filters contains this text")).to_be_visible()
        expect(page.locator("#list")).to_contain_text("Searched: ids, names and types of steps")
        page.get_by_role("button", name="Search all runs").click()
        expect(page.locator(ROWS)).to_have_count(2)
        page.locator("#search-note").get_by_role("button", name="Clear the search").click()
        expect(page).to_have_url(f"{url}/")
        expect(page.locator(ROWS)).to_have_count(3)
        watch.allow("status of 400")
        page.get_by_role("searchbox", name="Text in runs").fill("47")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Search for 3 to 200 characters")


def test_rare_filters_are_behind_a_button(page: Page, tmp_path: Path) -> None:
    """They are parameters of the API in the URL, which opens them, and says how many there are."""
    now = datetime.now(UTC)
    documents = [
        run("run_1", now, seconds=5, triggerType="cron", steps=[agent("triage", now, cost=0.5)]),
        run(
            "run_2", now - timedelta(hours=1), seconds=90, status="failed", error={"code": "DECLINED", "message": "no"}
        ),
        run("run_3", now - timedelta(hours=2), seconds=400, steps=[agent("triage", now, cost=2)]),
    ]
    fill(tmp_path, documents)
    with server(tmp_path) as (url, _):
        opened(page, url)
        expect(page.get_by_label("Trigger")).to_be_hidden()
        page.get_by_role("button", name="More filters").click()
        choice(page, "Sort by").select_option("Longest duration")
        expect(page).to_have_url(f"{url}/?sort=duration")
        expect(page.locator(f"{ROWS} >> nth=0")).to_have_attribute("data-run", "run_3")
        assert ids(page) == ["run_3", "run_2", "run_1"]
        for label, text, name, expected in (
            ("Trigger", "cron", "triggerType", ["run_1"]),
            ("Error code", "DECLINED", "errorCode", ["run_2"]),
            ("Step type", "agent", "stepType", ["run_3", "run_1"]),
            ("Model", "claude-sonnet-4-6", "model", ["run_3", "run_1"]),
            ("Took at least", "1m", "minDuration", ["run_3", "run_2"]),
        ):
            page.goto(f"{url}/?sort=duration")
            page.get_by_label(label, exact=True).fill(text)
            page.keyboard.press("Enter")
            expect(page).to_have_url(f"{url}/?{name}={text}&sort=duration")
            expect(page.locator(ROWS)).to_have_count(len(expected))
            assert ids(page) == expected
            expect(page.get_by_role("button", name="More filters · 2")).to_have_attribute("aria-expanded", "true")
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator(ROWS)).to_have_count(3)


def test_a_filter_that_the_server_refuses_shows_the_reason(page: Page, watch: Watch, tmp_path: Path) -> None:
    """A server without an index offers no search, and says why it does not answer one."""
    fill(tmp_path, [run("run_1", datetime.now(UTC))])
    watch.allow("status of 4")
    with server(tmp_path, "--no-search") as (url, _):
        opened(page, url)
        field = page.get_by_role("searchbox", name="Run id or trace id")
        expect(field).to_have_attribute("placeholder", "Open a run or trace id")
        for query in ("q=cus_4711", "sort=cost", "triggerType=cron"):
            page.goto(f"{url}/?{query}")
            expect(page.get_by_role("alert")).to_contain_text("keeps no index")


def test_the_keyboard_reaches_everything(page: Page, filled: str) -> None:
    """j and k move, x selects, c compares, Enter opens, ? shows the shortcuts, and the skip link comes first."""
    opened(page, filled)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    expect(row(page, "run_002").locator(".row-link")).to_be_focused()
    page.keyboard.press("x")
    page.keyboard.press("k")
    expect(row(page, "run_001").locator(".row-link")).to_be_focused()
    page.keyboard.press("x")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Compare the two selected runs")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    expect(page).to_have_url(f"{filled}/compare?a=run_002&b=run_001")
    page.go_back()
    expect(row(page, "run_001").locator(".row-link")).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{filled}/runs/run_000")


def test_going_back_from_a_run_restores_the_focus(page: Page, filled: str) -> None:
    """Back from a run, its row is visible and has the focus, so that the next one is a key away."""
    opened(page, f"{filled}/?status=completed")
    row(page, "run_040").locator(".row-link").click()
    expect(page).to_have_url(f"{filled}/runs/run_040")
    expect(page.locator("#run h1")).to_be_visible()
    page.go_back()
    expect(row(page, "run_040").locator(".row-link")).to_be_focused()
    expect(row(page, "run_040")).to_be_in_viewport()
    page.keyboard.press("j")
    expect(row(page, "run_041").locator(".row-link")).to_be_focused()


def test_the_chart_counts_what_the_list_has(page: Page, filled: str) -> None:
    """Its counts are those of all runs of the filter, its table adds up to them, and a status in it filters."""
    opened(page, filled)
    histogram = page.get_by_role("region", name="Runs over time")
    expect(histogram.get_by_role("heading")).to_have_text("130 runs")
    expect(histogram.get_by_role("button", name="Failed 13")).to_be_visible()
    expect(histogram.get_by_role("button", name="Suspended 1")).to_be_visible()
    expect(histogram.get_by_role("img", name=re.compile("Runs over time"))).to_be_visible()
    histogram.get_by_text("As a table").click()
    failed = histogram.locator("thead th").all_inner_texts().index("Failed")
    cells = [int(each.locator("th, td").nth(failed).inner_text()) for each in histogram.locator("tbody tr").all()]
    assert sum(cells) == 13
    histogram.get_by_role("button", name="Failed 13").click()
    expect(page).to_have_url(f"{filled}/?status=failed")
    expect(histogram.get_by_role("heading")).to_have_text("13 runs")


def test_a_running_run_is_followed_to_its_end(page: Page, tmp_path: Path) -> None:
    """The row changes by itself, keeps the focus, and its time counts on until the run ends."""
    now = datetime.now(UTC)
    fill(tmp_path, [unfinished("run_live", now - timedelta(seconds=70)), run("run_done", now - timedelta(hours=1))])
    with server(tmp_path) as (url, _):
        opened(page, url)
        live = row(page, "run_live")
        expect(live.locator(".cell-status")).to_have_text("Running")
        expect(live.locator(".cell-duration")).to_have_text(re.compile(r"1 m \d\d s"))
        expect(page.locator("#live-text")).to_have_text("Live · 1 unfinished")
        live.locator(".row-link").focus()
        push(url, run("run_live", now - timedelta(seconds=70), seconds=71.2, status="failed", error={"message": "no"}))
        expect(live.locator(".cell-status")).to_have_text("Failed")
        expect(live.locator(".cell-duration")).to_have_text("1 m 11 s")
        expect(live.locator(".row-link")).to_be_focused()
        expect(page.locator("#live-text")).to_have_text("Up to date")
        expect(page.get_by_role("button", name="Failed 1")).to_be_visible()


def test_the_panel_polls_only_while_visible_and_not_paused(page: Page, tmp_path: Path) -> None:
    """While a run is unfinished the panel polls every few seconds; paused or hidden it sends no requests."""
    fill(tmp_path, [unfinished("run_live", datetime.now(UTC))])
    with server(tmp_path) as (url, _):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url) if "/api/v1/runs" in request.url else None)
        page.clock.install()
        opened(page, url)
        expect(page.locator("#live-text")).to_have_text("Live · 1 unfinished")
        with page.expect_response(re.compile("/api/v1/runs")):
            page.clock.run_for(3_500)
        expect(page.locator("#live-text")).to_have_text("Live · 1 unfinished")
        page.get_by_role("button", name="Pause").click()
        before = len(asked)
        page.clock.run_for(120_000)
        assert len(asked) == before
        with page.expect_response(re.compile("/api/v1/runs")):
            page.get_by_role("button", name="Resume").click()
        expect(page.locator("#live-text")).to_have_text("Live · 1 unfinished")
        see(page, hidden=True)
        before = len(asked)
        page.clock.run_for(120_000)
        assert len(asked) == before
        with page.expect_response(re.compile("/api/v1/runs")):
            see(page, hidden=False)


def see(page: Page, *, hidden: bool) -> None:
    """Make the page hidden or visible; a headless browser shows all of its tabs."""
    script = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    page.evaluate(script + " document.dispatchEvent(new Event('visibilitychange')); }", hidden)


def test_the_list_does_not_need_the_chart(page: Page, watch: Watch, filled: str) -> None:
    """Its script comes later: until then, and if it cannot be loaded, the list is there and is refreshed."""
    watch.allow("Failed to load resource")
    page.route("**/histogram.js", lambda route: route.abort())
    opened(page, filled)
    expect(page.locator("#histogram")).to_have_text("No chart: its script was not loaded. Load the page again.")
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#live-text")).to_contain_text("Live")
    assert len(ids(page)) > 0


def test_the_panel_recovers_when_the_server_returns(page: Page, watch: Watch, tmp_path: Path) -> None:
    """The list stays, a notice says what to do, the panel tries again by itself and recovers."""
    watch.allow("Failed to load resource")
    fill(tmp_path, [unfinished("run_live", datetime.now(UTC))])
    (port,) = free_ports(1)
    with server(tmp_path, "--port", port) as (url, running):
        opened(page, url)
        running.end()
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("The server does not respond")
        expect(alert).to_contain_text("runspan serve")
        expect(page.locator("#live-text")).to_have_text(re.compile("Trying again in"))
        assert ids(page) == ["run_live"]
    with server(tmp_path, "--port", port):
        expect(alert).to_have_count(0, timeout=30_000)
        expect(page.locator("#live-text")).to_have_text("Live · 1 unfinished")


def test_an_error_says_what_to_do(page: Page, watch: Watch, filled: str) -> None:
    """An invalid cursor or filter is reported, with buttons that resolve it."""
    watch.allow("status of 400")
    page.goto(f"{filled}/?cursor=nonsense&status=failed")
    expect(page.get_by_role("alert")).to_contain_text("cursor")
    page.get_by_role("button", name="Newest runs").click()
    expect(page).to_have_url(f"{filled}/?status=failed")
    expect(page.locator(ROWS)).to_have_count(13)
    page.goto(f"{filled}/?since=yesterday")
    expect(page.get_by_role("alert")).to_contain_text("since")
    page.get_by_role("alert").get_by_role("button", name="Clear filters").click()
    expect(page.locator(ROWS)).to_have_count(50)


def test_an_empty_list_says_what_to_do(page: Page, tmp_path: Path, filled: str) -> None:
    """Without runs: how to send some. With filters that nothing meets: how to get rid of them."""
    with server(tmp_path) as (url, _):
        page.goto(url)
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        expect(page.locator("#list")).to_contain_text(f"runspan export runs.ndjson --endpoint {url}")
    page.goto(f"{filled}/?workflowId=wf_nothing")
    expect(page.get_by_role("heading", name="No run matches these filters")).to_be_visible()
    page.locator("#list").get_by_role("button", name="Clear filters").click()
    expect(page.locator(ROWS)).to_have_count(50)


class HalfBlind(SqliteStore):
    """A store that could not look at everything, as a remote backend at times cannot."""

    def search(self, query: RunQuery) -> RunPage:
        found = super().search(query)
        return RunPage(
            found.items, found.cursor, ("the search stopped after 1000 traces; <b>older</b> ones may be missing",)
        )


def test_incomplete_results_are_reported(page: Page, tmp_path: Path) -> None:
    """What the backend could not search is shown above the list, as text."""
    fill(tmp_path, [run("run_1", datetime.now(UTC))])
    with HalfBlind(tmp_path) as store, serving(create_app(store)) as client:
        opened(page, str(client.base_url))
        notice = page.locator("#notices")
        expect(notice).to_contain_text("The results are incomplete.")
        expect(notice).to_contain_text("stopped after 1000 traces; <b>older</b> ones")
        expect(notice).to_contain_text("Narrow the time")


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens_need_no_sideways_scrolling(browser: Browser, filled: str, width: int) -> None:
    """At 360 and 768 pixels everything is there, and nothing is wider than the screen."""
    with watched(browser, viewport={"width": width, "height": 740}) as (_, page, _watch):
        opened(page, filled)
        expect(row(page, "run_005").locator(".cell-run")).to_be_visible()
        expect(row(page, "run_000").locator(".cell-cost")).to_have_text("$0.0190")
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_theme_follows_the_system_until_the_user_chooses(page: Page, filled: str) -> None:
    """Dark and light follow the system; a choice holds on every page and after a reload."""
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    opened(page, filled)
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.keyboard.press("t")
    page.keyboard.press("t")
    assert page.evaluate(background) == dark
    page.goto(f"{filled}/compare")
    assert page.evaluate(background) == dark
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


def test_the_pages_can_be_switched_off(tmp_path: Path) -> None:
    """--no-pages leaves the API alone: no page, no asset, no private data."""
    with server(tmp_path, "--no-pages") as (url, running):
        for path in ("/", "/compare", "/runs/run_1", "/login", "/pages/spread", "/pages/totals?run=a"):
            assert httpx.get(url + path, trust_env=False).status_code == 404
        assert httpx.get(f"{url}/api/v1/runs", trust_env=False).status_code == 200
        running.end()
        assert not any("pages:" in line for line in running.lines)


def test_serve_says_where_to_look(tmp_path: Path) -> None:
    """The URL of the page is the first thing that `runspan serve` offers."""
    with server(tmp_path) as (url, running):
        running.wait_for(rf"pages: +{re.escape(url)}/")
