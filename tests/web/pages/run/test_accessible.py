"""The run page for everybody: axe-core finds nothing serious, names are there, contrast holds in both schemes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from web.pages.chromium import violations, violations_in_all_colours, watched

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
    page.emulate_media(reduced_motion="reduce")
    opened(run_id, fragment)
    expect(page.locator(".node, .timeline-row").first).to_be_visible()
    if run_id == "run_loop":
        page.locator(".node-count").first.click()
        expect(page.locator(".cell").first).to_be_visible()
    assert violations_in_all_colours(page) == []
    page.emulate_media(color_scheme="dark", forced_colors="none")
    page.get_by_role("button", name="Text", exact=True).click()
    page.get_by_role("searchbox", name="Search in this payload").fill('"')
    expect(page.locator("mark.current")).to_be_visible()
    assert violations(page) == []


def test_axe_finds_nothing_serious_in_the_sheet(browser: Browser, runs: str) -> None:
    """Nor on a phone, with the panel as a sheet over the view."""
    with watched(browser, viewport={"width": 360, "height": 740}, reduced_motion="reduce") as (_, page, _watch):
        page.goto(f"{runs}/runs/run_c4w81nqz0ty6#step=create-invoice")
        expect(page.locator(".detail .tree")).to_be_visible()
        assert violations_in_all_colours(page) == []


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


def test_forced_colours_show_what_is_selected(opened: Opening, page: Page) -> None:
    """The selected tab has a border that the others lack, the pressed button and the found step another background."""
    page.emulate_media(forced_colors="active")
    opened("run_c4w81nqz0ty6", "step=create-invoice")
    borders = page.get_by_role("tab").evaluate_all(
        "tabs => tabs.map((tab) => [tab.ariaSelected, getComputedStyle(tab).borderBottomColor])"
    )
    chosen = {colour for is_selected, colour in borders if is_selected == "true"}
    assert len(chosen) == 1
    assert chosen.isdisjoint({colour for is_selected, colour in borders if is_selected == "false"})
    background = "one => getComputedStyle(one).backgroundColor"
    tree, text = (page.get_by_role("button", name=name, exact=True) for name in ("Tree", "Text"))
    assert tree.evaluate(background) != text.evaluate(background)
    page.get_by_role("combobox", name="Find a step").fill("e")
    options = page.get_by_role("option")
    assert options.first.evaluate(background) != options.nth(1).evaluate(background)
    strip = "one => getComputedStyle(one, '::before').backgroundColor"
    colours = {page.locator(f".node.status-{status}").first.evaluate(strip) for status in ("completed", "failed")}
    assert len(colours) == 2


def test_every_control_is_large_enough(opened: Opening, page: Page) -> None:
    """At least 24 pixels high and wide, or apart from others as WCAG 2.5.8 allows a link in a text."""
    opened("run_2lmc0x7e9gqu", "step=send-letter&execution=2")
    page.locator(".node-count").first.click()
    expect(page.locator(".cell").first).to_be_visible()
    small = page.evaluate("""() => [...document.querySelectorAll("button, summary, select, input, [role=treeitem]")]
      .filter((one) => one.checkVisibility() && !one.closest(".canvas-content"))
      .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
      .filter(([, box]) => box.width < 24 || box.height < 24).map(([html]) => html)""")
    assert small == []


def test_the_whole_run_is_printed(opened: Opening, page: Page) -> None:
    """All steps with input, output and error, also those that are out of sight; of large payloads the beginning."""
    opened("run_500")
    document = page.locator(".print-only")
    expect(document).to_be_hidden()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(document).to_be_visible()
    expect(page.locator(".run-body")).to_be_hidden()
    sections = document.locator("section")
    expect(sections).to_have_count(501)
    expect(sections.nth(97)).to_contain_text("97. Step number 96step-96 · Failed · action · started")
    expect(sections.nth(97)).to_contain_text("E_ROW: row 96 is refused")
    expect(sections.nth(97)).to_contain_text('{"number": 96, "text": "xxx')
    expect(sections.last).to_contain_text("500. Step number 499")
    expect(document).not_to_contain_text("left out")
    assert page.pdf().count(b"/Type /Page\n") > 20
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(sections).to_have_count(0)
    page.emulate_media(media="screen")
    opened("run_large")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(document).to_contain_text("Payloads that are cut or left out here: 1.")
    assert len(document.text_content() or "") < 25_000
