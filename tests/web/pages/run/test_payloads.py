"""Payloads in the panel: exact to the character, searchable, harmless, and no burden at 10 MB."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from web.pages.run.documents import ATTACK, EXACT_OUTPUT

Opening = Callable[..., Page]

LONG_TASKS = """() => {
  window.longest = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
  }).observe({ type: "longtask", buffered: true });
}"""

NOTHING = "nothing yet"
COPIED = """async (before) => {
  for (const begun = performance.now(); ; await new Promise(requestAnimationFrame)) {
    const text = await navigator.clipboard.readText();
    if (text !== before || performance.now() - begun > 15_000) return text;
  }
}"""
"""What the clipboard holds once it holds something else than before."""


def tree(page: Page) -> Locator:
    return page.locator(".tree")


def copied(page: Page, button: Locator) -> str:
    """What a click on a button puts on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(f"navigator.clipboard.writeText('{NOTHING}')")
    button.click()
    expect(button).to_have_attribute("data-copied", "yes")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_the_tree_shows_values_by_their_own_text(opened: Opening) -> None:
    """Nothing is rounded, merged, reordered or unescaped."""
    page = opened("run_exact", "step=exact&tab=output")
    rows = tree(page).locator(".tree-row")
    for text in ["12.10", "1e400", "1180591620717411303424", "-0.0", '"\\u0000 \\/ \\u00e9 \\ud800"', '"é 😀 日本"']:
        expect(rows.filter(has_text=text).first).to_be_visible()
    expect(rows.filter(has_text="same")).to_have_count(2)
    expect(rows.filter(has_text='"": null')).to_have_count(1)


def test_copy_is_exact(opened: Opening) -> None:
    """The copied payload is the stored text, white space and escapes included; so is the copy of one value."""
    page = opened("run_exact", "step=exact&tab=output")
    assert copied(page, page.locator(".payload-bar .copy")) == EXACT_OUTPUT
    row = tree(page).locator(".tree-row", has_text="power")
    row.hover()
    assert copied(page, row.locator(".tree-copy")) == "1180591620717411303424"


def test_copy_works_without_tls(opened: Opening) -> None:
    """Where browsers hide the clipboard because a page has no TLS, the copy is exact all the same."""
    page = opened("run_exact", "step=exact&tab=output")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("Object.defineProperty(Navigator.prototype, 'clipboard', { value: undefined })")
    button = page.locator(".payload-bar .copy")
    button.click()
    expect(button).to_have_attribute("data-copied", "yes")
    reader = page.context.new_page()
    reader.goto(page.url)
    assert reader.evaluate("navigator.clipboard.readText()") == EXACT_OUTPUT


def test_the_text_is_shown_as_stored(opened: Opening) -> None:
    """As text, the payload stands as it is, and a selection over its rows copies no line ends of the view's own."""
    page = opened("run_exact", "step=exact&tab=output")
    page.get_by_role("button", name="Text", exact=True).click()
    rows = page.locator(".text-view-row")
    expect(rows.first).to_contain_text('"price":12.10')
    shown = page.evaluate("[...document.querySelectorAll('.text-view-row')].map((row) => row.textContent).join('')")
    assert shown == EXACT_OUTPUT.replace("\n", "")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("""() => {
      const rows = document.querySelectorAll(".text-view-row");
      document.getSelection().setBaseAndExtent(rows[0].firstChild, 2, rows[rows.length - 1].lastChild, 3);
    }""")
    page.evaluate(f"navigator.clipboard.writeText('{NOTHING}')")
    page.keyboard.press("Control+c")
    text = page.evaluate(COPIED, NOTHING)
    assert "\n" in text
    assert text in EXACT_OUTPUT
    assert EXACT_OUTPUT.startswith('{ "' + text[1:30])


def test_search_goes_from_match_to_match(opened: Opening) -> None:
    """In the tree and in the text: counted, highlighted, in sight, whatever the case; none is said too."""
    page = opened("run_t9a2j6x1ve0g", "step=triage&tab=output")
    field = page.get_by_role("searchbox", name="Search in this payload")
    field.fill("TOKENS")
    result = page.locator(".search-result")
    expect(result).to_have_text("1 of 3")
    expect(page.locator(".match-row")).to_contain_text("promptTokens")
    field.press("Enter")
    expect(page.locator(".match-row")).to_contain_text("completionTokens")
    field.press("Shift+Enter")
    field.press("Shift+Enter")
    expect(result).to_have_text("3 of 3")
    page.get_by_role("button", name="Text", exact=True).click()
    expect(page.locator("mark.match")).to_have_count(3)
    expect(page.locator("mark.current")).to_have_count(1)
    field.fill("no such thing")
    expect(result).to_have_text("none")
    expect(page.locator("mark.match")).to_have_count(0)
    field.press("Escape")
    expect(field).to_have_value("")
    expect(page.locator(".detail h2")).to_have_text("Triage the ticket")


def test_search_opens_the_way_to_a_match(opened: Opening) -> None:
    """A match far down a closed list is opened and shown; white space counts."""
    page = opened("run_loop")
    page.get_by_role("tab", name="Document").click()
    page.get_by_role("searchbox", name="Search in this payload").fill('"row":2345')
    expect(page.locator(".search-result")).to_have_text("none")
    page.get_by_role("searchbox", name="Search in this payload").fill('"row": 2345')
    expect(page.locator(".search-result")).to_have_text("1 of 1")
    expect(page.locator(".match-row")).to_be_in_viewport()
    expect(page.locator(".match-row")).to_contain_text("2345")


def test_the_tree_goes_by_keyboard(opened: Opening) -> None:
    """Arrows go up and down, right opens, left shuts and goes to the parent."""
    page = opened("run_t9a2j6x1ve0g", "step=triage&tab=output")
    rows = tree(page).locator(".tree-row:visible")
    before = rows.count()
    tree(page).locator(".tree-row").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(rows).to_have_count(before - 4)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(tree(page).locator(".tree-row", has_text="category")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(tree(page).locator(".tree-row", has_text="result").first).to_be_focused()


def test_long_lists_come_in_pieces(opened: Opening) -> None:
    """Of 100,000 items a hundred are read at a time."""
    page = opened("run_large", "step=load&tab=output")
    row = tree(page).locator(".tree-row", has_text="list")
    expect(row).to_contain_text("MB")
    row.click()
    more = page.get_by_role("button", name="100 shown. Show 100 more")
    more.click()
    expect(page.get_by_role("button", name="200 shown. Show 100 more")).to_be_visible()


def test_ten_megabytes_do_not_freeze_the_page(opened: Opening, page: Page, report: Callable[[str], None]) -> None:
    """A string of 10 MB is opened, read as text, searched to its end and copied, and no task of the page takes long."""
    page.add_init_script(f"({LONG_TASKS})()")
    opened("run_large", "step=load&tab=output")
    tree(page).get_by_role("button", name="Read as text").first.click()
    expect(page.locator(".text-view.inset .text-view-row").first).to_have_text("The quick brown fox.")
    page.get_by_role("button", name="Text", exact=True).click()
    view = page.locator(".payload-area .text-view")
    expect(view.locator(".text-view-row").first).to_contain_text("The quick brown")
    assert view.locator(".text-view-row").count() < 100
    page.get_by_role("searchbox", name="Search in this payload").fill("needle in")
    expect(page.locator(".search-result")).to_have_text("1 of 1")
    expect(page.locator("mark.current")).to_be_in_viewport()
    text = copied(page, page.locator(".payload-bar .copy"))
    assert len(text) > 13_000_000
    assert text.endswith('"the needle in the haystack"}')
    longest = page.evaluate("window.longest")
    report(f"10 MB payload: longest task {longest:.0f} ms")
    assert longest < 2500


def test_a_text_of_ten_megabytes_scrolls_to_its_end(opened: Opening) -> None:
    """The last row of half a million is reached by scrolling and by the End key."""
    page = opened("run_large", "step=load&tab=output")
    page.get_by_role("button", name="Text", exact=True).click()
    view = page.locator(".text-view")
    expect(view.locator(".text-view-row").first).to_be_visible()
    expect(view).to_have_attribute("aria-busy", "false", timeout=60_000)
    view.focus()
    page.keyboard.press("End")
    expect(view.locator(".text-view-row", has_text="haystack")).to_be_visible()


def test_nothing_in_a_document_is_executed(opened: Opening, page: Page) -> None:
    """Markup, handlers and javascript: addresses in every member are text, in both views, the panel and the search."""
    opened("run_hostile")
    expect(page.locator(".stat-steps .stat-value")).to_have_text("6")
    expect(page.locator(".run-header h1")).to_have_text(ATTACK)
    for place in range(6):
        page.keyboard.press("j")
        expect(page.locator(".detail.of-step")).to_be_visible()
        for tab in page.locator(".tab").all():
            tab.click()
            for mode in ("Text", "Tree"):
                page.get_by_role("button", name=mode, exact=True).click()
        if place == 0:
            page.get_by_role("searchbox", name="Search in this payload").fill("<script>")
            expect(page.locator(".search-result")).to_contain_text("of")
    page.keyboard.press("v")
    expect(page.locator(".timeline-row")).to_have_count(6)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("({}).polluted") is None
    assert page.locator("main script, main img, main svg[onload], [onerror], [onclick]").count() == 0
    addresses = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.href)")
    assert all(address.startswith(("http:", "blob:")) for address in addresses)


def test_direction_marks_are_shown_and_turn_nothing(opened: Opening) -> None:
    """A right-to-left override in a name is spelled out; in a payload it is marked, and its text stays the text."""
    page = opened("run_hostile", "step=constructor")
    expect(page.locator(".detail h2")).to_contain_text("\\u202egnp.exe")
    page = opened("run_hostile", "step=%22%3E%3Cscript%3Ewindow.hacked%3D6%3C%2Fscript%3E&tab=output")
    page.get_by_role("button", name="Text", exact=True).click()
    marks = page.locator(".text-view .invisible-character")
    expect(marks).to_have_count(3)
    expect(marks.first).to_have_attribute("data-code", "U+202E")
    assert marks.first.text_content() == "\u202e"
    assert marks.first.evaluate("mark => getComputedStyle(mark).unicodeBidi") == "isolate"
