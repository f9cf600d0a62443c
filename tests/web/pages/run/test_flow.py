"""The run page as people use it: look, click, go on by keyboard, share the address."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from runspan import Run, encode
from support.cli import SAMPLES, server
from web.pages.chromium import Watch, watched
from web.pages.kit import drawn, fill, run

Opening = Callable[..., Page]

FAILED = "run_c4w81nqz0ty6"
PARENT, CHILD = "run_k1r8e4zc7dpm", "run_w5n0q9ab2tjx"
AGENT = "run_t9a2j6x1ve0g"
LOOP = "run_2lmc0x7e9gqu"


def node(page: Page, key: str) -> Locator:
    """A node of the canvas."""
    return page.locator(f'.node[data-key="{key}"]')


def at(fragment: str) -> re.Pattern[str]:
    """Any address that ends with this fragment."""
    return re.compile(f"[^#]{re.escape(fragment)}$")


def panel(page: Page) -> Locator:
    """The side panel."""
    return page.locator(".detail")


def test_samples_open(page: Page, runs: str) -> None:
    """Every fourth sample run is shown without a complaint, with as many steps as it has."""
    for path in sorted(SAMPLES.glob("*.json"))[::4]:
        parsed = json.loads(path.read_text())
        page.goto("about:blank")
        page.goto(f"{runs}/runs/{parsed['id']}")
        expect(page.locator(".stat-steps .stat-value")).to_have_text(str(len(parsed["steps"])))
        if parsed["steps"]:
            expect(page.locator(".node").first).to_be_visible()
        else:
            expect(page.locator(".views .state")).to_be_visible()


def test_the_header_summarises_the_run(opened: Opening) -> None:
    """The header has workflow, status, duration, trigger, tokens, cost and the slowest steps."""
    page = opened(AGENT)
    header = page.locator(".run-header")
    expect(header.locator("h1")).to_have_text("wf_support_triage")
    expect(header.locator(".run-title .badge")).to_have_text("Completed")
    expect(header.locator(".stat", has_text="Duration")).to_contain_text("11.4 s")
    expect(header.locator(".stat", has_text="Tokens")).to_contain_text("1,590")
    expect(header.locator(".stat", has_text="Cost")).to_contain_text("claude-sonnet-4-6")
    expect(header.locator(".slow").first).to_contain_text("Reply with the draft")
    expect(page).to_have_title(re.compile("wf_support_triage, completed"))
    header.locator(".slow").first.click()
    expect(panel(page).locator("h2")).to_have_text("Reply with the draft")


def test_the_first_failure_is_up_front(opened: Opening) -> None:
    """The notice has its step and message, and leads to the step, whose error is shown first."""
    page = opened(FAILED)
    notice = page.locator(".failure")
    expect(notice).to_contain_text("Create invoice failed")
    expect(notice).to_contain_text("Customer not found")
    notice.get_by_role("button", name="Show step").click()
    expect(panel(page).locator("h2")).to_have_text("Create invoice")
    expect(page.get_by_role("tab", name="Error")).to_have_attribute("aria-selected", "true")
    expect(panel(page).locator(".tree")).to_contain_text("INTEGRATION_ERROR")
    expect(node(page, "create-invoice")).to_have_class(re.compile("selected"))


def test_a_tolerated_failure_is_no_alarm(opened: Opening) -> None:
    """A failed step of a completed run is not shown as an error of the run."""
    notice = opened("run_c8x4l0i6v9sj").locator(".failure")
    expect(notice).to_contain_text("failed, but the run continued")
    expect(notice).not_to_have_class(re.compile("error"))


def test_a_click_shows_the_step(opened: Opening) -> None:
    """Input, output, timing, status, tokens and cost of a step, and the address leads back to it."""
    page = opened(AGENT)
    node(page, "triage").locator(".node-body").click()
    facts = panel(page).locator(".facts")
    for text in ("Completed", "5.37 s", "claude-sonnet-4-6", "1,590", "$0.0089", "47 % of the run"):
        expect(facts).to_contain_text(text)
    expect(panel(page).locator(".tree")).to_contain_text('"billing"')
    page.get_by_role("tab", name="Input").click()
    expect(panel(page).locator(".tree")).to_contain_text("Classify the ticket")
    expect(page).to_have_url(at("#step=triage&tab=input"))
    page.get_by_role("button", name="Close (Esc)").click()
    expect(panel(page).locator("h2")).to_have_text("Run")
    expect(page).not_to_have_url(re.compile("#"))


def test_an_address_is_shared(opened: Opening) -> None:
    """The address holds view, step, execution and payload: another browser shows the same."""
    page = opened(LOOP, "view=timeline&step=send-letter&execution=3&tab=input")
    expect(page.get_by_role("tab", name="Timeline")).to_have_attribute("aria-selected", "true")
    expect(panel(page).get_by_label("Round", exact=True)).to_have_value("5")
    expect(panel(page).locator(".tree")).to_contain_text('"final"')
    page.evaluate("location.hash = '#step=mark-account'")
    expect(panel(page).locator("h2")).to_have_text("Mark account")
    expect(page.get_by_role("tab", name="Canvas")).to_have_attribute("aria-selected", "true")
    page.go_back()
    expect(panel(page).locator("h2")).to_have_text("Send letter, round 3 of 4")


def test_back_closes_a_step_before_it_leaves_the_run(opened: Opening, runs: str) -> None:
    """Also after other steps were chosen meanwhile. A step that was closed is not passed again on the way back."""
    page = opened(AGENT)
    node(page, "is-urgent").click()
    expect(page).to_have_url(re.compile("step=is-urgent"))
    page.keyboard.press("j")
    expect(page).not_to_have_url(re.compile("step=is-urgent"))
    page.go_back()
    expect(panel(page).locator("h2")).to_have_text("Run")
    expect(page).to_have_url(f"{runs}/runs/{AGENT}")
    page.goto(f"{runs}/")
    page.goto(f"{runs}/runs/{AGENT}")
    node(page, "is-urgent").click()
    page.get_by_role("tab", name="Timeline").click()
    page.keyboard.press("Escape")
    expect(page).to_have_url(f"{runs}/runs/{AGENT}#view=timeline")
    page.go_back()
    expect(page).to_have_url(f"{runs}/")


def test_an_address_of_a_step_that_is_not_there_says_so(opened: Opening) -> None:
    """Until another step is chosen."""
    page = opened(AGENT, "step=nowhere")
    note = page.get_by_text("This link leads to a step that is not in this run: nowhere")
    expect(note).to_be_visible()
    node(page, "is-urgent").click()
    expect(note).to_have_count(0)


def test_both_views_share_the_selection(opened: Opening) -> None:
    """A step chosen in the timeline is chosen on the canvas."""
    page = opened(AGENT, "view=timeline")
    page.get_by_role("treeitem", name="Urgent?").click()
    page.get_by_role("tab", name="Canvas").click()
    expect(node(page, "is-urgent")).to_have_class(re.compile("selected"))
    expect(panel(page).locator("h2")).to_have_text("Urgent?")


def test_a_loop_is_folded_and_opens(opened: Opening) -> None:
    """Four executions are one node; opened, each is a cell of its own, and the panel goes from one to the next."""
    page = opened(LOOP)
    letter = node(page, "send-letter")
    expect(letter.locator(".node-count")).to_contain_text("\u00d74")
    letter.locator(".node-count").click()
    expect(letter.locator(".cell")).to_have_count(4)
    letter.locator(".cell").nth(2).click()
    expect(panel(page).get_by_label("Round", exact=True)).to_have_value("5")
    expect(letter.locator(".cell").nth(2)).to_have_attribute("aria-current", "true")
    panel(page).get_by_role("button", name="Next round").click()
    expect(letter.locator(".cell").nth(3)).to_have_attribute("aria-current", "true")
    expect(page).to_have_url(at("#step=send-letter&execution=4"))


def test_a_long_loop_turns_to_the_execution_that_failed(opened: Opening) -> None:
    """Of 2,500 executions the node shows the worst status and opens the one that has it; cells come in pages."""
    page = opened("run_loop")
    fetch = node(page, "fetch")
    expect(fetch).to_have_class(re.compile("status-failed"))
    fetch.locator(".node-body").click()
    expect(panel(page).locator(".executions")).to_contain_text("of 2,500")
    expect(page).to_have_url(at("#step=fetch&execution=1235"))
    fetch.locator(".node-count").click()
    expect(fetch.locator(".cells-pager")).to_contain_text("1,217\u20131,280 of 2,500")
    expect(fetch.locator(".cell.status-failed")).to_have_count(1)
    fetch.get_by_role("button", name="Later rounds").click()
    expect(fetch.locator(".cells-pager")).to_contain_text("1,281\u20131,344 of 2,500")


def test_a_sub_workflow_leads_to_its_run(opened: Opening) -> None:
    """The node and the panel of a sub-workflow step lead to the child's page."""
    page = opened(PARENT)
    expect(node(page, "provision-billing").locator("a")).to_have_attribute("href", f"/runs/{CHILD}")
    node(page, "provision-billing").locator(".node-body").click()
    panel(page).get_by_role("link", name="Open the child run").click()
    expect(page.locator(".run-id")).to_have_text(CHILD)
    page.locator(".run-meta").get_by_role("link", name=PARENT).click()
    expect(page.locator(".run-id")).to_have_text(PARENT)


def test_a_sub_workflow_unfolds_in_the_timeline(opened: Opening) -> None:
    """Into the steps of its run, at their times and as far as it goes; a step of it leads to its page."""
    page = opened(PARENT, "view=timeline")
    row = page.get_by_role("treeitem", name="Provision billing")
    expect(row).to_have_attribute("aria-expanded", "false")
    before = page.locator(".timeline-row").count()
    row.locator(".timeline-toggle").click()
    steps = page.locator(".timeline-row.of-child")
    child = json.loads((SAMPLES / "provision-billing-child.json").read_text())
    expect(steps).to_have_count(len(child["steps"]))
    expect(steps.first).to_have_attribute("aria-level", "2")
    begins = [bar.bounding_box() for bar in (row.locator(".bar-box"), steps.first.locator(".bar-box"))]
    assert begins[0]
    assert begins[1]
    assert begins[0]["x"] - 1 <= begins[1]["x"] < begins[0]["x"] + begins[0]["width"]
    steps.last.focus()
    page.keyboard.press("ArrowLeft")
    expect(row).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".timeline-row")).to_have_count(before)
    page.keyboard.press("ArrowRight")
    steps.first.locator(".timeline-name").click()
    expect(page.locator(".run-id")).to_have_text(CHILD)
    expect(panel(page).locator("h2")).to_have_text(child["steps"][0]["name"])
    page.go_back()
    expect(page.locator(".run-id")).to_have_text(PARENT)


def test_a_sub_workflow_that_is_not_there_says_so(opened: Opening, watch: Watch) -> None:
    """In place of its steps."""
    watch.allow("status of 404")
    page = opened("run_orphan", "view=timeline")
    page.get_by_role("treeitem", name="Call").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".timeline-row.note")).to_contain_text("No such run")
    expect(page.locator(".run-meta").get_by_role("link", name="run_gone_too")).to_have_attribute(
        "href", "/runs/run_gone_too"
    )


def test_attempts_are_shown(opened: Opening) -> None:
    """A step of several attempts says so on the canvas, in its bar and in the panel."""
    page = opened("run_3w8n5y2t0apl", "step=upsert-page")
    expect(node(page, "upsert-page").locator(".node-attempt")).to_have_text("↻ 5/5")
    expect(panel(page).locator(".facts")).to_contain_text("5 of 5")
    page.get_by_role("tab", name="Timeline").click()
    row = page.get_by_role("treeitem", name="Upsert contacts")
    expect(row.locator(".dot")).to_have_count(5)
    expect(row.locator(".bar-text")).to_contain_text("attempt 5 of 5")


def test_listed_attempts_are_shown_at_their_times(opened: Opening) -> None:
    """Where the document lists the attempts, each has its part of the bar and its line in the panel, with its error."""
    page = opened("run_retried", "view=timeline&step=call")
    parts = page.locator(".bar-attempt")
    expect(parts).to_have_count(3)
    assert parts.nth(1).evaluate("part => [part.style.left, part.style.width]") == ["33.3333%", "22.2222%"]
    expect(page.locator(".bar-attempt.status-failed")).to_have_count(2)
    lines = panel(page).locator(".attempt-list li")
    expect(lines).to_have_count(3)
    expect(lines.first).to_contain_text("TIMEOUT: no answer in 2 s")


def test_links_lead_to_the_trace(opened: Opening) -> None:
    """The header links to the trace in Jaeger and Grafana, and the side panel to the selected step in it."""
    page = opened(FAILED, "step=create-invoice")
    *steps, root = encode(Run.from_json((SAMPLES / "invoice-sync-quickbooks-failed.json").read_bytes()))
    ids = [span.attributes().get("runspan.step.id") for span in steps]
    index = ids.index("create-invoice")
    base = f"http://127.0.0.1:16686/trace/{root.trace_id.hex()}"
    for place, span in ((page.locator(".run-links"), None), (panel(page), steps[index])):
        jaeger, grafana = (place.get_by_role("link", name=name) for name in ("Jaeger", "Grafana"))
        expect(jaeger).to_have_attribute(
            "href", base if span is None else f"{base}?uiFind={span.span_id.hex()}%20-runspan"
        )
        expect(jaeger).to_have_attribute("rel", re.compile("noopener"))
        expect(grafana).to_have_attribute("href", re.compile(root.trace_id.hex()))
        if span is not None:
            expect(grafana).to_have_attribute("href", re.compile(span.span_id.hex()))
    page.keyboard.press("k")
    previous = f"{base}?uiFind={steps[index - 1].span_id.hex()}%20-runspan"
    expect(panel(page).get_by_role("link", name="Jaeger")).to_have_attribute("href", previous)
    expect(page.get_by_role("link", name="REST")).to_have_attribute("href", f"/api/v1/runs/{FAILED}")
    expect(page.locator(".run-links").get_by_role("link", name="Compare")).to_have_attribute(
        "href", f"/compare?a={FAILED}"
    )


def test_the_document_is_saved_exactly(opened: Opening, runs: str) -> None:
    """The file is the document's own bytes."""
    page = opened("run_exact")
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    body = httpx.get(f"{runs}/api/v1/runs/run_exact", trust_env=False).content
    assert download.value.suggested_filename == "run_exact.json"
    assert download.value.path().read_bytes() == body.removeprefix(b'{"success":true,"data":')[:-1]


def test_the_canvas_goes_by_keyboard(opened: Opening) -> None:
    """Arrows go from step to step, Enter opens, Escape closes and leaves the focus where it was."""
    page = opened("run_f1k6v0j9b3om")
    node(page, "first-of-month").locator(".node-body").focus()
    for key, wanted in [
        ("ArrowDown", "close-uk"),
        ("ArrowLeft", "close-us"),
        ("ArrowRight", "close-uk"),
        ("ArrowRight", "close-nz"),
        ("ArrowDown", "consolidate"),
        ("End", "mail-board"),
        ("Home", "first-of-month"),
        ("ArrowUp", "first-of-month"),
    ]:
        page.keyboard.press(key)
        expect(node(page, wanted).locator(".node-body")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(panel(page).locator("h2")).to_have_text("Close UK in Xero")
    page.keyboard.press("Escape")
    expect(panel(page).locator("h2")).to_have_text("Run")
    expect(node(page, "close-uk").locator(".node-body")).to_be_focused()


def test_the_timeline_goes_by_keyboard(opened: Opening) -> None:
    """Arrows go over the rows, right and left open and shut a loop, Enter opens a step."""
    page = opened(LOOP, "view=timeline")
    rows = page.locator(".timeline-row")
    expect(rows).to_have_count(4)
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("treeitem", name="Send letter")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(rows).to_have_count(8)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(panel(page).get_by_label("Round", exact=True)).to_have_value("3")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(rows).to_have_count(4)


def test_shortcuts_work_everywhere(opened: Opening) -> None:
    """j and k go through the steps, e to the first failure, v to the other view; ? lists them."""
    page = opened(FAILED)
    title = panel(page).locator("h2")
    page.keyboard.press("j")
    expect(title).to_have_text("Deal closed")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(title).to_have_text("Deal closed")
    page.keyboard.press("e")
    expect(title).to_have_text("Create invoice")
    page.keyboard.press("v")
    expect(page.get_by_role("tab", name="Timeline")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(title).to_have_text("Run")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Go to the first failure")


def test_a_step_is_found_among_thousands(opened: Opening) -> None:
    """By name, id, status or type, with the keyboard alone. The browser's own search keeps its keys."""
    page = opened("run_5000")
    page.keyboard.press("s")
    field = page.get_by_role("combobox", name="Find a step")
    expect(field).to_be_focused()
    page.keyboard.type("number 4321")
    expect(page.get_by_role("option")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(panel(page).locator("h2")).to_have_text("Step number 4321")
    expect(node(page, "step-4321")).to_have_class(re.compile("selected"))
    field.fill("failed ACTION")
    expect(page.locator(".finder-count")).to_have_text("1 of 50")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("option", selected=True)).to_contain_text("Step number 196")
    page.keyboard.press("Enter")
    expect(panel(page).locator("h2")).to_have_text("Step number 196")
    page.get_by_role("button", name="Next match").click()
    expect(panel(page).locator("h2")).to_have_text("Step number 296")
    field.press("Shift+Enter")
    expect(panel(page).locator("h2")).to_have_text("Step number 196")
    field.fill("no such step")
    expect(page.get_by_role("listbox")).to_have_text("No step matches.")
    page.keyboard.press("Escape")
    expect(field).to_have_value("")
    expect(panel(page).locator("h2")).to_have_text("Step number 196")


def test_a_round_of_a_loop_is_named(opened: Opening) -> None:
    """In the banner of a failure and in the title of the step; the slowest steps sum the rounds of each."""
    page = opened("run_loop")
    expect(page.locator(".failure")).to_contain_text("Fetch row, round 1,235 of 2,500, failed")
    page.locator(".failure").get_by_role("button", name="Show step").click()
    expect(panel(page).locator("h2")).to_have_text("Fetch row, round 1,235 of 2,500")
    expect(page.locator(".slow").first).to_contain_text("Fetch row\u00d72,5001 m 40 s")


def test_the_end_of_a_long_name_is_shown(opened: Opening) -> None:
    """Its middle is left out, on the canvas, in the timeline and in lists; the whole is there under the pointer."""
    page = opened("run_names")
    name = "Post the journal entry of the subsidiary in Auckland for 2026-0"
    for month in "12":
        tail = page.locator(f'.node[data-key="post-{month}"] .cut-tail')
        expect(tail).to_have_text(f"r 2026-0{month}")
        box, outer = tail.bounding_box(), page.locator(f'.node[data-key="post-{month}"]').bounding_box()
        assert box
        assert outer
        assert box["x"] + box["width"] <= outer["x"] + outer["width"]
        expect(page.locator(f'.node[data-key="post-{month}"] .node-name')).to_have_text(name + month)
    page.locator(".slow").first.focus()
    page.keyboard.press("Tab")
    expect(page.locator(".tooltip-name").filter(visible=True)).to_have_text(name + "2")


def test_the_canvas_moves_and_zooms(opened: Opening) -> None:
    """Wheel moves, wheel with Ctrl zooms, a drag moves and opens nothing, and a click on what is too small opens it."""
    page = opened("run_500")
    world = page.locator(".canvas-content")
    area = page.locator(".canvas-area")
    before = world.evaluate("world => getComputedStyle(world).transform")
    area.hover(position={"x": 200, "y": 200})
    page.mouse.wheel(0, 600)
    expect(world).not_to_have_css("transform", before)
    expect(node(page, "step-0")).to_have_count(1)
    expect(page.locator(".node", has_text="Step number 21")).to_be_visible()
    level = page.get_by_title("Full size")
    page.keyboard.down("Control")
    for _ in range(12):
        page.mouse.wheel(0, 120)
    page.keyboard.up("Control")
    expect(level).to_have_text("2 %")
    expect(page.locator(".node")).to_have_count(1)
    page.mouse.down()
    page.mouse.move(340, 400, steps=4)
    page.mouse.up()
    expect(panel(page).locator("h2")).to_have_text("Run")
    page.get_by_role("button", name="Show the entire run").click()
    box = area.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(panel(page).locator("h2")).to_contain_text("Step number")


def test_the_minimap_scrolls_a_long_run(opened: Opening) -> None:
    """A click near the end of the minimap shows the end."""
    page = opened("run_5000")
    minimap = page.locator(".minimap")
    expect(minimap).to_be_visible()
    box = minimap.bounding_box()
    assert box
    page.mouse.click(box["x"] + 6, box["y"] + box["height"] - 1)
    expect(page.locator(".node", has_text="Step number 4999")).to_be_visible()


def test_time_is_zoomed(opened: Opening) -> None:
    """Zooming in shows a shorter time in finer ticks; showing everything goes back."""
    page = opened("run_5y3g7n1d9wqs", "view=timeline")
    ticks = page.locator(".tick")
    expect(ticks.nth(1)).to_have_text("5 s")
    for _ in range(6):
        page.locator(".timeline").get_by_role("button", name="Zoom in").click()
    expect(page.locator(".tick", has_text="11.5 s")).to_be_visible()
    page.keyboard.press("f")
    expect(ticks.nth(1)).to_have_text("5 s")


def test_a_bar_of_a_loop_leads_to_that_execution(opened: Opening) -> None:
    """A click into a folded row opens the execution under the pointer."""
    page = opened(LOOP, "view=timeline")
    track = page.get_by_role("treeitem", name="Pause").locator(".timeline-track")
    expect(track).to_be_visible()
    width = track.evaluate("track => track.clientWidth")
    track.click(position={"x": width * 0.9, "y": 16})
    expect(panel(page).locator(".executions")).to_contain_text("of 4")
    expect(page).to_have_url(re.compile(r"step=pause&execution=4$"))


@pytest.mark.parametrize("run_id", ["run/with spaces & slashes?"])
def test_ids_of_any_letters(opened: Opening, run_id: str) -> None:
    """Ids of runs and steps may have slashes, spaces and marks."""
    page = opened(run_id)
    expect(page.locator(".run-id")).to_have_text(run_id)
    node(page, "a/b c#d").locator(".node-body").click()
    expect(page).to_have_url(at("#step=a%2Fb+c%23d"))
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(panel(page).locator("h2")).to_have_text("A/b c#d")


def test_what_cannot_be_shown_says_what_to_do(page: Page, runs: str, watch: Watch) -> None:
    """An unknown run and an unreachable server are reported, and the page can try again."""
    watch.allow("Failed to load resource")
    page.goto(f"{runs}/runs/run_nobody_knows")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("No such run")
    expect(alert).to_contain_text("Check the id")
    page.route("**/api/v1/runs/*", lambda route: route.abort())
    page.goto(f"{runs}/runs/run_two")
    expect(alert).to_contain_text("The server does not respond")
    page.unroute("**/api/v1/runs/*")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator(".run-id")).to_have_text("run_two")


def test_a_response_without_a_run_is_reported(page: Page, runs: str) -> None:
    """The page of a proxy is reported as unreadable, with a link to the response."""
    page.route("**/api/v1/runs/*", lambda route: route.fulfill(status=200, body="<html>please log in</html>"))
    page.goto(f"{runs}/runs/run_two")
    expect(page.get_by_role("alert")).to_contain_text("The response cannot be read")


def test_narrow_screens_have_a_sheet(browser: Browser, runs: str) -> None:
    """On a phone the panel rises over the view when a step is opened; the run's payloads have a button of their own."""
    with watched(browser, viewport={"width": 390, "height": 844}, has_touch=True) as (_, page, _watch):
        page.goto(f"{runs}/runs/{FAILED}")
        expect(drawn(page).locator(".detail")).to_be_hidden()
        page.get_by_role("button", name="Input and output").tap()
        expect(panel(page).locator("h2")).to_have_text("Run")
        panel(page).get_by_role("button", name="Close (Esc)").tap()
        expect(panel(page)).to_be_hidden()
        node(page, "create-invoice").locator(".node-body").tap()
        expect(panel(page).locator("h2")).to_have_text("Create invoice")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        panel(page).get_by_role("button", name="Close (Esc)").tap()
        expect(panel(page)).to_be_hidden()


def test_the_runs_of_the_workflow_are_around_a_run(page: Page, tmp_path: Path) -> None:
    """The older and the newer one, and the last that completed before it, however long ago."""
    now = datetime.now(UTC)
    made = {"run_a": (90, "completed"), "run_b": (50, "failed"), "run_c": (3, "failed"), "run_d": (0.5, "completed")}
    fill(tmp_path, [run(run_id, now - timedelta(days=days), status=status) for run_id, (days, status) in made.items()])
    fill(tmp_path, [run("run_other", now - timedelta(days=2), workflowId="wf_other")])
    with server(tmp_path) as (url, _):
        page.goto(f"{url}/runs/run_c")
        page.get_by_role("link", name="Older run").click()
        expect(page).to_have_url(f"{url}/runs/run_b")
        page.get_by_role("link", name="Newer run").click()
        expect(page).to_have_url(f"{url}/runs/run_c")
        page.get_by_role("link", name="Newer run").click()
        expect(page).to_have_url(f"{url}/runs/run_d")
        expect(page.get_by_role("link", name="Older run")).to_be_visible()
        expect(page.get_by_role("link", name="Newer run")).to_have_count(0)
        page.goto(f"{url}/runs/run_c")
        page.get_by_role("link", name="Compare with last success").click()
        expect(page).to_have_url(f"{url}/compare?a=run_a&b=run_c")
        page.goto(f"{url}/runs/run_other")
        expect(page.get_by_role("link", name="Compare", exact=True).last).to_be_visible()


def test_shortcuts_of_one_character_can_be_switched_off(opened: Opening) -> None:
    """Speech input may press them by mistake. The other keys go on working, and the choice is kept."""
    page = opened(AGENT)
    page.keyboard.press("?")
    page.get_by_label("Shortcuts of a single character").uncheck()
    page.keyboard.press("Escape")
    for _ in range(2):
        page.keyboard.press("v")
        page.keyboard.press("?")
        expect(page.get_by_role("tab", name="Canvas")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("dialog")).to_have_count(0)
        node(page, "is-urgent").click()
        page.keyboard.press("Escape")
        expect(panel(page).locator("h2")).to_have_text("Run")
        page.reload()
        drawn(page)
    page.get_by_role("button", name="Keyboard shortcuts").click()
    page.get_by_label("Shortcuts of a single character").check()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("v")
    expect(page.get_by_role("tab", name="Timeline")).to_have_attribute("aria-selected", "true")
