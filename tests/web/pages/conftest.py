"""Fixtures of the page tests: a watched page, and a server with runs in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import click
import pytest
from playwright.sync_api import Browser, Page, expect

from support.cli import server
from web.pages.chromium import Watch, watched
from web.pages.kit import agent, fill, run, unfinished

expect.set_options(timeout=15_000)


@pytest.fixture
def tab(browser: Browser) -> Iterator[tuple[Page, Watch]]:
    """A fresh page and what it complains of; it must complain of nothing that the test does not allow."""
    with watched(browser) as (_, page, watch):
        yield page, watch


@pytest.fixture
def page(tab: tuple[Page, Watch]) -> Page:
    """A fresh page, which must not complain."""
    return tab[0]


@pytest.fixture
def watch(tab: tuple[Page, Watch]) -> Watch:
    """What ``page`` complains of."""
    return tab[1]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a figure past the capture."""

    def say(text: str) -> None:
        with capsys.disabled():
            click.echo(f"\n{text}")

    return say


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with 130 runs of the last 65 hours, half an hour apart, which no test may change.

    ``run_000`` is the newest. Every tenth failed, of another workflow; every seventh has an agent; ``run_003`` waits.
    """
    data = tmp_path_factory.mktemp("filled")
    now = datetime.now(UTC)
    fill(data, (numbered(number, now - timedelta(minutes=30 * number + 5)) for number in range(130)))
    with server(data) as (url, _):
        yield url


def numbered(number: int, begun: datetime) -> dict[str, object]:
    run_id = f"run_{number:03}"
    if number == 3:
        return unfinished(run_id, begun, "suspended", workflowId="wf_approval")
    if number % 10 == 5:
        error = {"code": "INTEGRATION_ERROR", "message": f"Xero: line {number} does not balance", "step": "book"}
        return run(run_id, begun, status="failed", workflowId="wf_ledger", error=error)
    if number % 7 == 0:
        return run(run_id, begun, workflowId="wf_triage", steps=[agent("triage", begun), agent("reply", begun)])
    return run(run_id, begun)
