"""The run page over a real Jaeger: the documents are rebuilt from traces, and nothing is stored here."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from runspan import Run, encode
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import SAMPLES, server
from support.servers.jaeger import Jaeger
from support.web import PROTOBUF
from web.pages.run.documents import EXACT_OUTPUT, document, exact_run, step


def send(jaeger: Jaeger, *runs: Run) -> None:
    body = request_bytes(Resource(), [scoped_bytes(span) for run in runs for span in encode(run)])
    assert httpx.post(f"{jaeger.otlp}/v1/traces", content=body, headers=PROTOBUF, trust_env=False).is_success


def test_a_run_is_read_from_jaeger(page: Page, jaeger_memory: Jaeger, tmp_path: Path) -> None:
    """A failed run is looked into, a running one followed to its end, an exact payload is exact, all over Jaeger."""
    failed = Run.from_json((SAMPLES / "invoice-sync-quickbooks-failed.json").read_bytes())
    exact = Run.from_json(exact_run("over_jaeger_exact"))
    live = Run.from_dict(document("over_jaeger_live", [step("wait", 0)], status="running"))
    send(jaeger_memory, failed, exact, live)
    backend = f"jaeger+{jaeger_memory.url}"
    with server(tmp_path, "--backend", backend, "--jaeger-url", jaeger_memory.url) as (url, _):
        page.goto(f"{url}/runs/{failed.id}")
        page.get_by_role("button", name="Show step").click()
        expect(page.locator(".detail .callout")).to_contain_text("Customer not found")
        span = next(span for span in encode(failed) if span.attributes().get("runspan.step.status") == "failed")
        link = f"{jaeger_memory.url}/trace/{span.trace_id.hex()}?uiFind={span.span_id.hex()}%20-runspan"
        expect(page.locator(".detail").get_by_role("link", name="Jaeger")).to_have_attribute("href", link)

        page.goto(f"{url}/runs/over_jaeger_exact#step=exact&tab=output")
        page.get_by_role("button", name="Text", exact=True).click()
        expect(page.locator(".text-view-row").first).to_be_visible()
        shown = page.evaluate("[...document.querySelectorAll('.text-view-row')].map((row) => row.textContent).join('')")
        assert shown == EXACT_OUTPUT.replace("\n", "")

        page.goto(f"{url}/runs/over_jaeger_live")
        expect(page.locator(".live")).to_be_visible()
        send(jaeger_memory, Run.from_dict(document("over_jaeger_live", [step("wait", 0, 900)])))
        expect(page.locator(".run-title .badge")).to_have_text("Completed", timeout=30_000)
        expect(page.locator(".live")).to_have_count(0)
