"""Where Chromium is, how it is started, and a page whose errors fail the test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request

from support.servers.finding import USED, missing

NAMED: Final = "runs.test"
"""A name of this machine for the browser, which takes it for any other host's."""
ARGUMENTS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {NAMED} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SCHEMES: Final[tuple[tuple[Literal["light", "dark"], Literal["none", "active"]], ...]] = (
    ("light", "none"),
    ("dark", "none"),
    ("light", "active"),
)
"""Colour schemes, and whether the colours are forced."""
NAMES: Final = (
    "chromium-headless-shell",  # the same engine without a window, whose pages open at a quarter of the cost
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)


def find_chromium() -> str:
    """The program that ``RUNSPAN_TEST_CHROMIUM`` names, else the first on PATH; the test is skipped without one."""
    named = os.environ.get("RUNSPAN_TEST_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        missing("chromium", f"RUNSPAN_TEST_CHROMIUM={named} is no program" if named else "no program of it on PATH")
    USED.add(f"the program {found}")
    return found


_STOPPED: Final = r"net::ERR_(CONNECTION_(REFUSED|RESET)|EMPTY_RESPONSE)"
"""What a page gets for its next refresh when the test has stopped the server already."""


class Watch:
    """What a page complained of. ``allow`` names what a test provokes, by a pattern."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._allowed = [_STOPPED]

    def allow(self, pattern: str) -> None:
        self._allowed.append(pattern)

    def follow(self, page: Page) -> None:
        page.on("console", lambda message: message.type in ("error", "warning") and self._add(message.text))
        page.on("pageerror", lambda error: self._add(f"uncaught: {error}"))
        page.on("crash", lambda _: self._add("the page crashed"))
        page.on("request", self._on_request)
        page.on("dialog", self._on_dialog)

    def check(self) -> None:
        """Fails when the page complained of anything that was not allowed."""
        left = [text for text in self.complaints if not any(re.search(pattern, text) for pattern in self._allowed)]
        assert not left, f"the page complained: {left}"

    def _on_request(self, request: Request) -> None:
        if not re.match(r"(http://127\.0\.0\.1:|data:|blob:)", request.url):
            self._add(f"asked for {request.url}")

    def _add(self, text: str) -> None:
        self.complaints.append(text)

    def _on_dialog(self, dialog: Any) -> None:
        self._add(f"a dialog opened: {dialog.message}")
        dialog.dismiss()


@contextmanager
def watched(browser: Browser, **options: Any) -> Iterator[tuple[BrowserContext, Page, Request, Watch]]:
    """A page in a context of its own, without cookies; at the end it must have complained of nothing.

    No request may leave the machine: the browser finds no other host, and asking for one is complained of.
    """
    settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", "timezone_id": "UTC"}
    context = browser.new_context(**settings | options)
    context.set_default_timeout(15_000)
    watch = Watch()
    context.on("page", watch.follow)
    page = context.new_page()
    try:
        yield context, page, watch
        watch.check()
    finally:
        context.close()


_WCAG: Final = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


def violations(page: Page) -> list[str]:
    """What axe-core finds on a page: all that is against WCAG 2.2 AA, and what else is serious or critical."""
    found = Axe().run(page, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes'][:5]]}"
        for each in found
        if each["impact"] in ("serious", "critical") or not set(_WCAG).isdisjoint(each["tags"])
    ]


def violations_in_all_colours(page: Page) -> list[str]:
    """The same in light, dark and forced colours."""
    found = []
    for scheme, forced in SCHEMES:
        page.emulate_media(color_scheme=scheme, forced_colors=forced, reduced_motion="reduce")
        found += [f"{scheme}, forced colours {forced}: {each}" for each in violations(page)]
    return found
