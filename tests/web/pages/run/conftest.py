"""A server with the sample runs and with runs of chosen shape and size, and the run page opened on one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

from runspan import Run
from runspan.backends.sqlite import SqliteStore
from support.cli import SAMPLES, server
from web.pages.chromium import watched
from web.pages.kit import drawn
from web.pages.run.documents import document, exact_run, hostile_run, large_run, long_run, loop_run, retried_run, step

LINKS = ("--jaeger-url", "http://127.0.0.1:16686", "--grafana-url", "http://127.0.0.1:3000")

LONG_NAME = "Post the journal entry of the subsidiary in Auckland for 2026-0"

Opening = Callable[..., Page]


def texts() -> Iterator[bytes]:
    """All documents of the shared server."""
    for path in sorted(SAMPLES.glob("*.json")):
        yield path.read_bytes()
    made: list[dict[str, Any]] = [
        long_run("run_500", 500),
        long_run("run_5000", 5000),
        loop_run("run_loop", 2500, bad=1234),
        large_run("run_large"),
        hostile_run("run_hostile"),
        retried_run("run_retried"),
        document("run_two", [step("first", 0, 1000), step("second", 1000, 3000)]),
        document("run_names", [step(f"post-{n}", n * 10, n * 10 + 9 - n, name=LONG_NAME + str(n)) for n in (1, 2)]),
        document(
            "run_orphan",
            [step("call", 0, 9, type="sub-workflow", output={"runId": "run_gone"})],
            parentRunId="run_gone_too",
        ),
        document("run/with spaces & slashes?", [step("a/b c#d", 0, 1)]),
    ]
    yield from (json.dumps(one, ensure_ascii=False).encode() for one in made)
    yield exact_run("run_exact")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that no test may change."""
    data = tmp_path_factory.mktemp("runs")
    with SqliteStore(data) as store:
        for text in texts():
            store.put(Run.from_json(text), observed_at=time.time_ns())
    with server(data, *LINKS) as (url, _):
        yield url


@pytest.fixture
def opened(page: Page, runs: str) -> Opening:
    """Opens the page of a run and waits until it has drawn: ``opened("run_1", "step=fetch")``."""

    def open_run(run_id: str, fragment: str = "", base: str = runs) -> Page:
        page.goto("about:blank")
        page.goto(f"{base}/runs/{quote(run_id, safe='')}" + (f"#{fragment}" if fragment else ""))
        return drawn(page)

    return open_run


@pytest.fixture(scope="module")
def module(browser: Browser, runs: str) -> Iterator[Callable[..., Any]]:
    """Calls a function with a module of the page: ``module("json.js", "(m, x) => m.skipValue(x, 0)", "[1]")``."""
    with watched(browser) as (_, page, _watch):
        page.goto(f"{runs}/compare")

        def call(name: str, function: str, argument: Any = None) -> Any:
            place = f"document.documentElement.dataset.static + '/run/{name}'"
            return page.evaluate(f"async (given) => ({function})(await import({place}), given)", argument)

        yield call
