"""The run page for everybody: axe-core finds nothing serious, names are there, contrast holds in both schemes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from web.pages.chromium import violations, watched

Opening = Callable[..., Page]


@pytest.mark.parametrize(
    ("run_id", "fragment"),
    [
        ("run_c4w81nqz0ty6", "step=create-invoice"),
        ("run_s6c1p8f4e0vy", ""),
        ("run_2lmc0x7e9gqu", "view=timeline&step=send-letter&execution=2"),
        ("run_3w8n5y2t0apl", "view=timeline&step=upsert-page"),
        ("run_k1r8e4zc7dpm", "step=provision-billing"),
        ("run_exact", "step=exact&tab=output"),
        ("run_hostile", "step=constructor"),
        ("run_loop", "step=fetch"),
    ],
)
def test_axe_finds_nothing_serious(opened: Opening, page: Page, run_id: str, fragment: str) -> None:
    """On the canvas and the timeline, in both colour schemes, with a step open as a tree and as text."""
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    opened(run_id, fragment)
    expect(page.locator(".node, .timeline-row").first).to_be_visible()
    if run_id == "run_loop":
        page.locator(".node-count").first.click()
        expect(page.locator(".cell").first).to_be_visible()
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []
    page.get_by_role("button", name="Text", exact=True).click()
    page.get_by_role("searchbox", name="Search in this payload").fill('"')
    expect(page.locator("mark.current")).to_be_visible()
    assert violations(page) == []


def test_axe_finds_nothing_serious_in_the_sheet(browser: Browser, runs: str) -> None:
    """Nor on a phone, with the panel as a sheet over the view."""
    with watched(browser, viewport={"width": 360, "height": 740}, reduced_motion="reduce") as (_, page, _watch):
        page.goto(f"{runs}/runs/run_c4w81nqz0ty6#step=create-invoice")
        expect(page.locator(".detail .tree")).to_be_visible()
        assert violations(page) == []


def test_steps_have_names_for_screen_readers(opened: Opening) -> None:
    """The name of a step has its title, status, type and duration; that of a loop counts its executions by status."""
    page = opened("run_2lmc0x7e9gqu")
    expect(page.get_by_role("button", name="Mark account, completed, action, 410 ms")).to_be_visible()
    expect(page.get_by_role("button", name="Send letter, 4 rounds, 4 completed")).to_be_visible()
    page.keyboard.press("j")
    expect(page.locator("#announcer")).to_have_text("For each stage, completed")


def test_statuses_are_distinct_without_colour(opened: Opening) -> None:
    """Each status on the canvas has an icon with its own shape."""
    page = opened("run_c4w81nqz0ty6")
    marks = page.evaluate("""() => {
      const statusOf = (node) => [...node.classList].find((name) => name.startsWith("status-"));
      const markOf = (node) => node.querySelector(".mark").getAttribute("d");
      return Object.fromEntries([...document.querySelectorAll(".node")].map((node) => [statusOf(node), markOf(node)]));
    }""")
    assert len(marks) == 3
    assert len(set(marks.values())) == 3


def test_nothing_moves_for_those_who_ask(opened: Opening, page: Page) -> None:
    """With reduced motion no animation runs."""
    page.emulate_media(reduced_motion="reduce")
    opened("run_s6c1p8f4e0vy", "step=draft-intro")
    expect(page.locator(".status-running").first).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
