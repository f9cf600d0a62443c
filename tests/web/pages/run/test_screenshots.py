"""The screenshots of the run page in the documentation, and checks that nothing in them is clipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from web.pages.chromium import watched
from web.pages.kit import drawn

FOLDER = Path(__file__).parents[4] / "docs" / "screenshots"
SIZE = {"width": 1280, "height": 800}
SEEN = datetime(2026, 11, 5, 18, 22, 43, 100_000, tzinfo=UTC)

PICTURES = {
    "failed-run": ("run_c4w81nqz0ty6", "step=create-invoice", "light"),
    "agent-run": ("run_q0d6z2gy8hn4", "step=judge", "light"),
    "running-run": ("run_s6c1p8f4e0vy", "step=draft-intro", "dark"),
    "timeline": ("run_5y3g7n1d9wqs", "view=timeline&step=fetch-balance&execution=5", "light"),
}
"""Which sample run is shown, what is open, and the colour scheme."""

CLIPPED = """() => {
  const words = "h1, h2, .stat-value, .stat-note, .button, .tab, .view-tab, .facts dd, .node-name, .badge-text";
  const isClipped = (one) => one.offsetParent && one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1;
  return [...document.querySelectorAll(words)].filter(isClipped).map((one) => one.textContent);
}"""


@pytest.fixture(params=PICTURES)
def picture(request: pytest.FixtureRequest, browser: Browser, runs: str) -> Iterator[tuple[str, Page]]:
    """The name of a picture and the page on it, at the moment at which its run was seen."""
    run_id, fragment, scheme = PICTURES[request.param]
    with watched(browser, viewport=SIZE, color_scheme=scheme, reduced_motion="reduce") as (_, page, _watch):
        page.clock.install(time=SEEN)
        page.goto(f"{runs}/runs/{run_id}#{fragment}")
        drawn(page)
        expect(page.locator(".detail.of-step")).to_be_visible()
        page.clock.run_for(1000)
        expect(page.get_by_role("link", name="Jaeger").first).to_be_visible()
        if page.locator(".timeline-toggle").count():
            page.locator(".timeline-toggle").first.click()
            page.mouse.move(0, 0)
        page.clock.run_for(1000)
        yield request.param, page


def test_pictures_are_whole(picture: tuple[str, Page]) -> None:
    """No word is clipped and nothing scrolls sideways; with RUNSPAN_SCREENSHOTS=1 the picture is written anew."""
    name, page = picture
    expect(page.locator(".node, .timeline-row").first).to_be_visible()
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate("document.documentElement.scrollWidth") == SIZE["width"]
    if os.environ.get("RUNSPAN_SCREENSHOTS") == "1":
        FOLDER.mkdir(exist_ok=True)
        page.screenshot(path=FOLDER / f"{name}.png")
    assert (FOLDER / f"{name}.png").stat().st_size < 200_000
