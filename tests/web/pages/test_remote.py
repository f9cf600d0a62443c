"""The pages over a real Jaeger: the same panel, pages, comparison and links, with nothing stored here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from runspan.model.span import run_ids
from support.cli import server
from support.servers.jaeger import Jaeger
from support.web import PROTOBUF, otlp
from web.pages.chromium import Watch
from web.pages.kit import agent, run, unfinished

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def url(jaeger_memory: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a Jaeger that has a dozen runs of a workflow of this test alone."""
    begun = [NOW - timedelta(minutes=7 * number + 1) for number in range(12)]
    documents = [run(f"remote_{number:02}", moment, workflowId="wf_remote") for number, moment in enumerate(begun)]
    documents[2] |= {"status": "failed", "error": {"code": "E", "message": "Xero said no"}}
    documents[4]["steps"].append(agent("think", begun[4]))
    documents.append(unfinished("remote_live", NOW, workflowId="wf_remote"))
    sent = httpx.post(f"{jaeger_memory.otlp}/v1/traces", content=otlp(*documents), headers=PROTOBUF, trust_env=False)
    assert sent.is_success
    backend = f"jaeger+{jaeger_memory.url}"
    with server(tmp_path_factory.mktemp("keys"), "--backend", backend, "--jaeger-url", jaeger_memory.url) as (
        address,
        _,
    ):
        yield address


def test_the_whole_flow_over_jaeger(page: Page, url: str, jaeger_memory: Jaeger) -> None:
    """Open, filter, page, open a run, compare, and follow a run to its end, as over the embedded store."""
    rows = page.locator("table.runs tbody tr")
    page.goto(f"{url}/?workflowId=wf_remote&since=24h&limit=5")
    expect(page.locator(".panel-subtitle")).to_have_text(f"From Jaeger at {jaeger_memory.url}")
    expect(rows).to_have_count(5)
    expect(rows.first).to_have_attribute("data-run", "remote_live")
    expect(page.get_by_role("button", name="Failed 1")).to_be_visible()
    expect(page.get_by_role("heading", name="13 runs")).to_be_visible()
    page.get_by_role("button", name="Older").click()
    thinking = page.locator('[data-run="remote_04"]')
    expect(thinking.locator(".cell-tokens")).to_have_text("1,590")
    expect(thinking.locator(".cell-cost")).to_have_text("$0.0095")
    page.get_by_role("button", name="Newer").click()
    expect(rows.first).to_have_attribute("data-run", "remote_live")

    document = run("remote_live", NOW, workflowId="wf_remote", seconds=12)
    httpx.post(f"{jaeger_memory.otlp}/v1/traces", content=otlp(document), headers=PROTOBUF, trust_env=False)
    expect(rows.first.locator(".cell-status")).to_have_text("Completed")
    expect(rows.first.locator(".cell-duration")).to_have_text("12.0 s")

    page.get_by_role("combobox", name="Status").select_option("failed")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("Xero said no")
    rows.first.locator(".row-link").click()
    expect(page).to_have_url(f"{url}/runs/remote_02")
    expect(page.locator("#run h1")).to_be_visible()
    trace = run_ids("remote_02", "").trace_id.hex()
    expect(page.locator(f'a[href="{jaeger_memory.url}/trace/{trace}"]').first).to_be_visible()

    page.goto(f"{url}/compare?a=remote_02&b=remote_04")
    expect(page.get_by_role("heading", name="2 of 3 steps differ.")).to_be_visible()


def test_an_empty_panel_over_a_backend_says_where_runs_go(page: Page, url: str) -> None:
    """This server takes no runs: the panel names the backend's own receiver, not itself."""
    page.goto(f"{url}/?workflowId=wf_none&since=1h")
    expect(page.get_by_role("heading", name="No run matches these filters")).to_be_visible()


def test_a_backend_that_does_not_answer_is_told(page: Page, watch: Watch, tmp_path: Path) -> None:
    """The panel says that the backend is away, names it, and tries again by itself."""
    watch.allow("status of 50")
    with server(tmp_path, "--backend", "jaeger+http://127.0.0.1:9") as (address, _):
        page.goto(address)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("The backend does not respond")
        expect(alert).to_contain_text("127.0.0.1:9")
        expect(page.locator("#live-text")).to_contain_text("Trying again in")
