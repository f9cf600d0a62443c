"""axe-core on every page, in light, dark and forced colours, wide and narrow: nothing against WCAG 2.2 AA."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from support.cli import process, server
from web.pages.chromium import Watch, violations, violations_in_all_colours, watched

PAGES = {
    "/": "table.runs tbody tr",
    "/?status=failed": "table.runs tbody tr",
    "/?q=does+not+balance&sort=duration": "table.runs tbody .run-match mark",
    "/?q=in+no+run&status=failed": "#list .state",
    "/?workflowId=wf_nothing": "#list .state",
    "/?since=yesterday": "#list .state-error",
    "/runs/run_000": "#run .node",
    "/runs/run_005": "#run .node",
    "/runs/none": "#run [role=alert]",
    "/workflows": ".tiles",
    "/workflows?since=1h&to=2020-01-01": "#stats [role=alert]",
    "/workflows/wf_triage": ".tiles",
    "/workflows/wf_ledger?time=any": ".tiles",
    "/workflows/none": "#stats .state",
    "/compare": ".suggestion",
    "/compare?a=run_000&b=run_005": "table.pairs tbody tr",
    "/nothing": ".state-error",
}


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(page: Page, watch: Watch, filled: str, path: str) -> None:
    """Names, roles, order and contrast hold in both colour schemes."""
    watch.allow("status of 40")
    page.emulate_media(reduced_motion="reduce")
    page.goto(filled + path)
    expect(page.locator(PAGES[path]).first).to_be_visible()
    expect(page.locator("table.runs tbody tr").first.locator(".skeleton")).to_have_count(0)
    assert violations_in_all_colours(page) == []


def test_axe_finds_nothing_serious_when_all_is_open(page: Page, filled: str) -> None:
    """Nor with the help, the chart's table, selected runs and expanded differences on the screen."""
    page.emulate_media(reduced_motion="reduce")
    page.goto(filled)
    page.locator("table.runs tbody tr input").nth(1).check()
    page.locator("table.runs tbody tr input").nth(2).check()
    page.get_by_text("As a table").click()
    assert violations(page) == []
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Compare 2 runs").click()
    page.get_by_role("button", name="Show").first.click()
    page.locator("details.payload summary").first.click()
    assert violations(page) == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/?q=balance&sort=cost",
        "/compare?a=run_000",
        "/compare?a=run_000&b=run_005",
        "/runs/run_000",
        "/workflows",
        "/workflows/wf_ledger",
    ],
)
def test_axe_finds_nothing_serious_on_a_narrow_screen(browser: Browser, filled: str, path: str) -> None:
    """Nor at 360 pixels, where lists become cards."""
    with watched(browser, viewport={"width": 360, "height": 740}, reduced_motion="reduce") as (_, page, _watch):
        page.goto(filled + path)
        expect(page.locator(PAGES.get(path, "main")).first).to_be_visible()
        assert violations_in_all_colours(page) == []


def test_axe_finds_nothing_serious_at_the_login(page: Page, watch: Watch, tmp_path: Path) -> None:
    """Nor at the login, before and after a wrong key."""
    watch.allow("status of 401")
    process("keys", "create", "--data", tmp_path, "--name", "ana")
    with server(tmp_path) as (url, _):
        page.goto(url)
        assert violations(page) == []
        page.get_by_label("API key").fill("wfk_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        for size in ({"width": 1280, "height": 800}, {"width": 360, "height": 740}):
            page.set_viewport_size(size)
            assert violations_in_all_colours(page) == []
