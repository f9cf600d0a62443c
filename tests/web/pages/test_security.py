"""What a hostile run, URL or site can do to the pages: nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

import httpx
import pytest
from playwright.sync_api import Page, expect

from runspan.web.pages.views import POLICY
from support.cli import server
from web.pages.chromium import Watch
from web.pages.kit import drawn, fill, run, unfinished

SCRIPT = "<script>alert('pwned')</script>"
IMAGE = "<img src=x onerror=alert(1)>"
QUOTED = "\"'><svg onload=alert(2)>"
TEMPLATE = "{{ 7*7 }}${7*7}{% raw %}"
BIDI = "run_\u202etxt.exe\u2066abc\u200b"
HOSTILE = [
    SCRIPT,
    IMAGE,
    QUOTED,
    TEMPLATE,
    BIDI,
    "javascript:alert(3)",
    "a/../../b",
    "%2e%2e",
    "\x00\x1b[31m",
    "é/漢 字?#&+",
    "\u05e9\u05dc\u05d5\u05dd",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("hostile")
    now = datetime.now(UTC)
    documents = []
    for number, text in enumerate(HOSTILE):
        error = {"code": text, "message": text, "step": text}
        steps = [{"id": text, "name": text, "type": text, "status": text, "output": {text: text}, "error": error}]
        members = {"workflowId": text, "triggerType": text, "output": {text: [text]}, "steps": steps, "error": error}
        begun = now - timedelta(minutes=number)
        documents.append(run(text, begun, status="failed", **members))
        documents.append(run(f"odd_{number}", begun, status=text, **members))
        documents.append(unfinished(f"own_{number}", begun, startedAt=text, **{**members, "error": text}))
    fill(data, documents)
    with server(data) as (address, _):
        yield address


def test_nothing_in_a_list_executes(page: Page, url: str) -> None:
    """Ids, workflows, statuses, triggers, errors and times are shown as text, whatever they hold."""
    page.goto(url)
    expect(page.locator("table.runs tbody tr")).to_have_count(3 * len(HOSTILE))
    expect(page.locator("#list script, #list img, #list iframe")).to_have_count(0)
    expect(page.get_by_text(SCRIPT, exact=True).first).to_be_visible()
    expect(page.get_by_text("run_\\u202etxt.exe\\u2066abc\\u200b").first).to_be_visible()
    for image in page.locator("#list svg").all():
        assert image.get_attribute("onload") is None


@pytest.mark.parametrize("text", [SCRIPT, IMAGE, QUOTED, TEMPLATE])
def test_nothing_in_a_match_executes(page: Page, url: str, text: str) -> None:
    """What was searched for, where it is and what is around it are text; the link leads to the step."""
    page.goto(f"{url}/?q={quote(text, safe='')}")
    marks = page.locator("table.runs tbody .run-match mark")
    expect(marks).to_have_count(3)
    expect(page.locator("#search-note")).to_contain_text(text)
    expect(page.get_by_role("search").get_by_role("searchbox")).to_have_value(text)
    assert set(marks.all_text_contents()) == {text}
    expect(page.locator("main script, main img, main iframe, main .run-match svg")).to_have_count(0)
    page.locator("tr[data-run^=odd_] .match-place").click()
    expect(drawn(page).locator(".detail")).to_contain_text(text)
    expect(page.locator("main script, main img, main iframe")).to_have_count(0)


def test_every_id_leads_to_its_own_page(page: Page, url: str) -> None:
    """A row's link opens that run, whatever its id is made of, and nothing of it executes there."""
    page.goto(url)
    expect(page.locator("table.runs tbody tr")).to_have_count(3 * len(HOSTILE))
    links = {
        row.get_attribute("data-run"): row.locator(".row-link").get_attribute("href")
        for row in page.locator("table.runs tbody tr").all()
    }
    for text in HOSTILE:
        answer = page.goto(url + str(links[text]))
        assert answer is not None
        assert answer.ok
        assert unquote(page.locator("#run").get_attribute("data-run-id") or "") == text
        expect(drawn(page).locator("#run h1")).to_be_visible()
        expect(page.locator("main script, main iframe")).to_have_count(0)


def test_nothing_in_a_comparison_executes(page: Page, url: str) -> None:
    """Names and values that differ are text too."""
    for text in (SCRIPT, IMAGE, QUOTED, BIDI):
        page.goto(f"{url}/compare?a={quote(text, safe='')}&b={quote(QUOTED, safe='')}")
        expect(page.locator(".compare-summary")).to_be_visible()
        for more in page.locator("details.payload > summary").all():
            more.click()
        expect(page.locator("#result script, #result img, #result iframe")).to_have_count(0)


def test_nothing_in_a_url_executes(page: Page, watch: Watch, url: str) -> None:
    """Parameters that no list was made from are refused or shown as text."""
    watch.allow("status of 40")
    for query in (
        f"status={SCRIPT}",
        f"since={IMAGE}",
        f"cursor={QUOTED}",
        f"workflowId={SCRIPT}x",
        f"limit={IMAGE}",
        f"q={QUOTED}x",
        f"sort={IMAGE}",
    ):
        page.goto(f"{url}/?{query}")
        expect(page.locator("#list .state")).to_be_visible()
        expect(page.locator("main script, main img")).to_have_count(0)
    page.goto(f"{url}/compare?a={SCRIPT}x&b={IMAGE}x")
    expect(page.get_by_role("alert").first).to_be_visible()
    page.goto(f"{url}/{SCRIPT}")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()


def test_text_cannot_become_markup_even_by_mistake(page: Page, watch: Watch, url: str) -> None:
    """The browser itself refuses inline scripts, foreign sources and strings as markup."""
    watch.allow("Content Security Policy|Trusted|asked for https://evil.example")
    page.goto(url)
    refused = page.evaluate(
        """async () => {
          const tried = {};
          const attempt = (name, action) => { try { action(); tried[name] = false; } catch { tried[name] = true; } };
          attempt("markup", () => { document.body.innerHTML = "<b>x</b>"; });
          attempt("worker", () => { new Worker("data:text/javascript,1"); });
          const inline = document.createElement("script");
          attempt("inline", () => { inline.textContent = "window.pwned = 1"; document.body.append(inline); });
          await fetch("https://evil.example/").then(() => { tried.fetch = false; }, () => { tried.fetch = true; });
          tried.ran = window.pwned === undefined;
          return tried;
        }"""
    )
    assert refused == dict.fromkeys(("markup", "worker", "inline", "fetch", "ran"), True)


def test_no_other_site_can_frame_or_read_the_pages(url: str) -> None:
    """Every page has the whole policy, forbids frames, and is kept by no cache; there is no CORS."""
    for path in ("/", "/runs/x", "/compare", "/runbooks", "/nothing"):
        answer = httpx.get(
            url + path, headers={"Accept": "text/html", "Origin": "https://evil.example"}, trust_env=False
        )
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert "unsafe" not in POLICY
    assert not re.search(r"https?:|\*", POLICY)


def test_the_markup_needs_no_exception_from_the_policy(url: str) -> None:
    """No page has inline scripts, styles or handlers."""
    for path in ("/", "/runs/x", "/compare", "/runbooks", "/nothing"):
        text = httpx.get(url + path, headers={"Accept": "text/html"}, trust_env=False).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son[a-z]+=|\sstyle=|javascript:", text)


@pytest.mark.parametrize("query", ["", "run=", "&".join(f"run={number}" for number in range(51)), "run=none"])
def test_private_data_is_bounded(url: str, query: str) -> None:
    """Totals are for 1 to 50 runs; runs that are not there are left out."""
    answer = httpx.get(f"{url}/pages/totals?{query}", trust_env=False)
    if query == "run=none":
        assert answer.json() == {"success": True, "data": {}, "meta": {"left": []}}
    elif query == "run=":
        assert answer.json()["data"] == {}
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "VALIDATION_ERROR"


def test_paths_out_of_the_static_files_lead_nowhere(url: str) -> None:
    """Only files of the list are served, under the version of now."""
    page = httpx.get(url, trust_env=False).text
    base = re.search(r'data-static="([^"]+)"', page)
    assert base is not None
    for path in (
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/assets.py",
        "",
        "nothing.js",
        "panel",
        "panel/",
        "/base.css",
    ):
        assert httpx.get(f"{url}{base[1]}/{path}", trust_env=False).status_code == 404
    assert httpx.get(f"{url}/static/0000000000000000/base.css", trust_env=False).status_code == 404
