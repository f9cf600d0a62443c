"""The pictures of docs/browse.md, of the pages as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from runspan import Run
from runspan.testing import generate
from support.cli import process, server
from web.pages.chromium import watched
from web.pages.kit import fill
from web.pages.shots import FOLDER, shot

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 25, 11, 0, tzinfo=UTC)
BROWSER: dict[str, Any] = {"reduced_motion": "reduce", "timezone_id": "UTC"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a week of generated runs that ends at NOW."""
    data = tmp_path_factory.mktemp("week")
    begin = NOW - timedelta(days=6.8)
    texts = generate(400, seed=12, unfinished=True, start=begin, span_days=6.79)
    fill(data, (Run.from_json(text).to_dict() for text in texts))
    with server(data) as (address, _):
        yield address


def ready(page: Page, url: str, rows: int = 10) -> None:
    """The panel with everything on the screen loaded, at NOW."""
    page.clock.set_fixed_time(NOW)
    page.goto(url)
    expect(page.locator("table.runs tbody tr").first).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Runs over time"))).to_be_visible()
    page.wait_for_load_state("networkidle")
    for row in page.locator("table.runs tbody tr").all()[:rows]:
        expect(row.locator(".skeleton")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_panel(browser: Browser, url: str, scheme: str) -> None:
    """The runs panel on a wide screen, in both colour schemes."""
    with watched(browser, color_scheme=scheme, viewport={"width": 1280, "height": 860}, **BROWSER) as (_, page, _watch):
        ready(page, url)
        shot(page, f"panel-{scheme}")


def test_the_search(browser: Browser, url: str) -> None:
    """Runs that contain the name of a customer."""
    with watched(browser, viewport={"width": 1280, "height": 780}, **BROWSER) as (_, page, _watch):
        ready(page, f"{url}/?q=harbor&status=completed,cancelled", 5)
        shot(page, "panel-search")


@pytest.mark.parametrize(("name", "path"), [("workflows", ""), ("workflow", "/wf_support_triage")])
def test_workflows(browser: Browser, url: str, name: str, path: str) -> None:
    """The pages of all workflows and of one, on a wide screen."""
    with watched(browser, viewport={"width": 1280, "height": 860}, **BROWSER) as (_, page, _watch):
        page.clock.set_fixed_time(NOW)
        page.goto(f"{url}/workflows{path}?from=2026-11-18T11:00:00Z&to=2026-11-25T12:00:00Z")
        expect(page.locator(".tiles")).to_be_visible()
        shot(page, name)


def test_the_panel_on_a_phone(browser: Browser, url: str) -> None:
    """The runs panel at 360 pixels."""
    size = {"width": 360, "height": 760}
    with watched(browser, viewport=size, device_scale_factor=2, **BROWSER) as (_, page, _watch):
        ready(page, url, 2)
        shot(page, "panel-narrow")


def test_the_comparison(browser: Browser, url: str) -> None:
    """A good and a failed run of one workflow side by side, with a difference unfolded."""
    with watched(browser, viewport={"width": 1280, "height": 1120}, **BROWSER) as (context, page, _watch):
        listed = context.request.get(f"{url}/api/v1/runs?workflowId=wf_bill_capture&limit=200").json()["data"]
        by_status = {run["status"]: run["id"] for run in reversed(listed)}
        page.clock.set_fixed_time(NOW)
        page.goto(f"{url}/compare?a={by_status['completed']}&b={by_status['failed']}")
        page.locator("tr.different", has_text="Extract fields").get_by_role("button", name="Show").click()
        expect(page.locator("table.changes:visible").first).to_be_visible()
        shot(page, "compare")


def test_the_login(browser: Browser, tmp_path: Path) -> None:
    """The login of a server that has keys."""
    process("keys", "create", "--data", tmp_path, "--name", "ana")
    with (
        server(tmp_path) as (address, _),
        watched(browser, viewport={"width": 900, "height": 560}, **BROWSER) as (_, page, _watch),
    ):
        page.goto(address)
        expect(page.get_by_label("API key")).to_be_focused()
        shot(page, "login")


def test_every_picture_is_shown() -> None:
    """docs/ and the README show each picture that is kept."""
    text = "".join(path.read_text() for path in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])
    kept = {path.name for path in FOLDER.glob("*.png")}
    assert kept
    assert {name for name in kept if name not in text} == set()
