"""A run that goes on: the page follows it to its end, and says what is missing and what went wrong meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from runspan import Run, encode
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import server
from web.pages.chromium import Watch
from web.pages.kit import drawn, iso, push
from web.pages.run.documents import document, step

POLL = 21_000
"""Milliseconds after which the page has asked again, however long nothing changed."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of these tests alone: each has a run of its own there."""
    with server(tmp_path_factory.mktemp("live")) as (address, _):
        yield address


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    """The id of the run of this test alone."""
    return str(request.node.name)


def asked(page: Page) -> list[str]:
    """The API requests for runs that the page sends from now on."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/api/v1/runs/" in request.url else None)
    return requests


def opened(page: Page, url: str, run_id: str) -> None:
    """Opens a run's page under a clock that only the test moves."""
    page.clock.install()
    page.goto(f"{url}/runs/{run_id}")
    page.clock.run_for(500)
    drawn(page)


def answered(page: Page) -> int:
    """Lets the page ask for the run once more; the seconds until it asked. Returns once it has the answer."""
    requests = asked(page)
    seconds = 0
    with page.expect_response("**/api/v1/runs/*") as response:
        while not requests:
            assert seconds < 30, "the page does not ask"
            page.clock.run_for(1000)
            seconds += 1
    response.value.finished()
    return seconds


def shown(page: Page) -> None:
    """Lets the page draw."""
    page.clock.run_for(100)


def test_a_run_is_followed_to_its_end(page: Page, url: str, run_id: str) -> None:
    """New steps and the result appear by themselves; selection and payload stay; after the end nothing is asked."""
    begin = [step("fetch", 0, 100), step("book", 110, input={"n": 1})]
    push(url, document(run_id, begin, status="running"))
    opened(page, url, run_id)
    expect(page.locator(".live")).to_be_visible()
    page.locator('.node[data-key="book"] .node-body').click()
    shown(page)
    expect(page.locator(".detail .badge")).to_have_text("Running")
    push(url, document(run_id, [*begin, step("tell", status="pending")], status="running"))
    answered(page)
    expect(page.locator(".stat-steps .stat-value")).to_have_text("3")
    expect(page.locator(".detail h2")).to_have_text("Book")
    expect(page.locator(".detail .tree")).to_contain_text("n: 1")
    ended = [step("fetch", 0, 100), step("book", 110, 400, input={"n": 1}, output={"ok": True}), step("tell", 410, 500)]
    push(url, document(run_id, ended))
    answered(page)
    expect(page.locator(".run-title .badge")).to_have_text("Completed")
    expect(page.locator(".live")).to_have_count(0)
    expect(page.locator(".detail .facts .badge")).to_have_text("Completed")
    expect(page.locator(".detail .facts")).to_contain_text("290 ms")
    expect(page.get_by_role("tab", name="Input")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#announcer")).to_have_text("The run is now completed")
    requests = asked(page)
    page.clock.run_for(10 * POLL)
    assert requests == []


def test_zoom_and_scroll_stay(page: Page, url: str, run_id: str) -> None:
    """What a reader moved is where they left it when the run changes."""
    steps = [step(f"s{number}", number * 10, number * 10 + 9) for number in range(60)]
    push(url, document(run_id, [*steps, step("now", 700)], status="running"))
    opened(page, url, run_id)
    page.locator(".canvas-area").hover()
    page.mouse.wheel(0, 900)
    shown(page)
    world = page.locator(".canvas-content")
    before = world.get_attribute("style")
    push(url, document(run_id, [*steps, step("now", 700, 750), step("next", 760)], status="running"))
    answered(page)
    expect(page.locator(".stat-steps .stat-value")).to_have_text("62")
    shown(page)
    assert world.get_attribute("style") == before


def test_the_clock_runs(page: Page, url: str, run_id: str) -> None:
    """The duration of what goes on grows without asking."""
    push(url, document(run_id, [step("wait", 0)], status="running"))
    opened(page, url, run_id)
    value = page.locator(".stat", has_text="Duration").locator(".stat-value")
    first = value.text_content()
    page.clock.fast_forward(3 * 24 * 3600 * 1000)
    page.clock.run_for(1500)
    expect(value).not_to_have_text(first or "")


def test_a_hidden_page_sends_no_requests(page: Page, url: str, run_id: str) -> None:
    """A hidden page does not poll; when it is shown again, it polls at once."""
    push(url, document(run_id, [step("wait", 0)], status="running"))
    opened(page, url, run_id)
    answered(page)
    turn = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(turn, True)
    requests = asked(page)
    page.clock.run_for(10 * POLL)
    assert requests == []
    with page.expect_response("**/api/v1/runs/*"):
        page.evaluate(turn, False)


def test_an_unchanged_run_is_polled_less_and_less(page: Page, url: str, run_id: str) -> None:
    """The delay is two seconds at first and twenty at most."""
    push(url, document(run_id, [step("wait", 0)], status="running"))
    opened(page, url, run_id)
    waits = [answered(page) for _ in range(12)]
    assert waits[0] <= 3
    assert 15 <= waits[-1] <= 21


def test_errors_are_shown_until_they_pass(page: Page, url: str, run_id: str, watch: Watch) -> None:
    """While the server is away the page keeps what it shows, says so, goes on asking, and is quiet when it is back."""
    watch.allow("Failed to load resource")
    push(url, document(run_id, [step("wait", 0)], status="running"))
    opened(page, url, run_id)
    page.route(f"**/api/v1/runs/{run_id}", lambda route: route.abort())
    with page.expect_event("requestfailed"):
        page.clock.run_for(POLL)
    expect(page.locator(".run-notices")).to_contain_text("The server does not respond")
    expect(page.locator(".node")).to_have_count(1)
    page.unroute(f"**/api/v1/runs/{run_id}")
    answered(page)
    expect(page.locator(".run-notices")).not_to_contain_text("The server does not respond")


def test_a_run_without_steps_waits_for_them(page: Page, url: str, run_id: str) -> None:
    """A pending run says that its steps are to come, and shows them when they do."""
    push(url, document(run_id, [], status="pending"))
    opened(page, url, run_id)
    expect(page.locator(".views .state")).to_contain_text("No steps yet")
    push(url, document(run_id, [step("first", 0)], status="running"))
    answered(page)
    shown(page)
    expect(page.locator(".node")).to_have_count(1)
    expect(page.locator(".views .state")).to_be_hidden()


def test_an_incomplete_revision_is_noted(page: Page, url: str, run_id: str) -> None:
    """When spans of a newer revision are missing, the older one is shown, with what is missing of the newer."""
    first = Run.from_dict(document(run_id, [step("a", 0, 1)]))
    *_, root = encode(Run.from_dict(document(run_id, [step("a", 0, 1), step("b", 2, 3)], durationMs=3)))
    for spans in (encode(first), [root]):
        body = request_bytes(Resource(), [scoped_bytes(span) for span in spans])
        headers = {"Content-Type": "application/x-protobuf"}
        assert httpx.post(f"{url}/v1/traces", content=body, headers=headers, trust_env=False).is_success
    opened(page, url, run_id)
    expect(page.locator(".run-notices")).to_contain_text("A newer revision is not complete yet")
    expect(page.locator(".run-notices")).to_contain_text("step spans")
    expect(page.locator(".stat-steps .stat-value")).to_have_text("1")
    assert json.loads(httpx.get(f"{url}/api/v1/runs/{run_id}", trust_env=False).content)["data"]["steps"]


def test_a_silent_run_is_not_live(page: Page, url: str, run_id: str) -> None:
    """A run that was not observed for days is probably dead; once it is heard of again, it is live."""
    started = datetime.now(UTC)
    push(url, document(run_id, [step("wait", 0)], status="running", startedAt=iso(started)))
    page.clock.install(time=started + timedelta(days=22, hours=3))
    page.goto(f"{url}/runs/{run_id}")
    page.clock.run_for(500)
    drawn(page)
    live = page.locator(".run-title .live")
    expect(live).to_have_text("Last seen 22 days ago, probably dead")
    page.route(f"**/api/v1/runs/{run_id}", lambda route: fulfil(route, datetime.now(UTC) + timedelta(days=23)))
    answered(page)
    expect(live).to_have_text("Live")


def fulfil(route: Route, observed: datetime) -> None:
    """Answers as the server does, for a run that was observed then."""
    answer = route.fetch()
    route.fulfill(response=answer, headers={**answer.headers, "x-runspan-observed-at": observed.isoformat()})


def test_open_steps_come_first(page: Page, url: str, run_id: str) -> None:
    """The header lists what is open, the longest first, and the side panel all of it; the times grow."""
    steps = [
        step("done", 0, 900),
        step("late", 500),
        step("first", 100),
        step("second", 200),
        step("soon", status="pending"),
    ]
    push(url, document(run_id, steps, status="running"))
    opened(page, url, run_id)
    expect(page.locator(".run-header .slow .slow-name")).to_have_text(["First", "Second", "Late"])
    in_panel = page.locator(".detail").get_by_role("listitem")
    expect(in_panel).to_have_count(3)
    before = in_panel.first.locator(".slow-ms").text_content()
    page.clock.fast_forward(5 * 3600 * 1000)
    page.clock.run_for(1500)
    expect(in_panel.first.locator(".slow-ms")).not_to_have_text(before or "")


def test_a_suspended_run_says_what_it_waits_for(page: Page, url: str, run_id: str) -> None:
    """The step, its type and since when, with a way to it. A run without such a step says that too."""
    steps = [step("charge", 0, 10), step("other", 20), step("approval", 30, type="approval", name="Approve the refund")]
    push(url, document(run_id, steps, status="suspended", completedAt=None))
    opened(page, url, run_id)
    notice = page.locator(".notice.waiting")
    expect(notice).to_have_text(
        re.compile(r"Waiting for Approve the refund \(approval\), since 2 Mar.*, 09:00:00 \(.* d .* h\)")
    )
    notice.get_by_role("button", name="Show step").click()
    shown(page)
    expect(page.locator(".detail h2")).to_have_text("Approve the refund")
    push(url, document(run_id, [step("charge", 0, 10)], status="suspended", completedAt=None))
    answered(page)
    expect(notice).to_have_text("The run is waiting, and none of its steps says for what.")
