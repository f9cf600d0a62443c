"""The pictures of docs/traces.md: runs in the real Jaeger UI, whose folder ``RUNSPAN_TEST_JAEGER_UI`` names.

The folder is Jaeger UI's own build, ``packages/jaeger-ui/build`` of its repository. ``RUNSPAN_SCREENSHOTS`` writes the
pictures, and without it they only have to exist.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, expect

from runspan import Run, encode
from runspan.codec.copies import copy_for_caller
from runspan.model.span import SERVER, UNSET, Link, Span, run_ids
from runspan.model.timestamps import SECOND, canonical_text, parse_ns
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from runspan.web.config import WebConfig
from runspan.web.links import trace_links
from support.servers.finding import missing, require
from support.servers.jaeger import BADGER, IMAGE, MEMORY, Jaeger, start_jaeger

FOLDER: Final = Path(__file__).parents[2] / "docs" / "screenshots" / "jaeger"
START: Final = parse_ns("2026-11-25T10:00:00.000Z") or 0
Members = dict[str, Any]


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger with runs on disk that serves the real pages."""
    yield from served(tmp_path_factory.mktemp("badger"), BADGER)


@pytest.fixture(scope="module")
def jaeger_in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger that holds larger spans than Badger does, which takes none of ten megabytes."""
    yield from served(tmp_path_factory.mktemp("memory"), MEMORY)


def served(directory: Path, storage: str) -> Iterator[Jaeger]:
    """Yield a Jaeger with the pages that ``RUNSPAN_TEST_JAEGER_UI`` names."""
    folder = os.environ.get("RUNSPAN_TEST_JAEGER_UI")
    if not folder:
        missing("jaeger-ui", "RUNSPAN_TEST_JAEGER_UI names no folder")
    place = require("jaeger", IMAGE)
    if place.program is None:
        pytest.skip("only a program serves another folder of pages")
    server = start_jaeger(place, directory, storage, ui=folder)
    yield server
    server.stop()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in UTC."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def at(seconds: float) -> str:
    """Return the time so many seconds after the start of the runs."""
    return canonical_text(START + int(seconds * 1000) * 1_000_000) or ""


def step(name: str, start: float | None = None, end: float | None = None, **members: Any) -> Members:
    """Return a step with these times in seconds; an action unless ``members`` say otherwise."""
    made: Members = {"id": name.lower().replace(" ", "_"), "name": name, "type": "action", "status": "completed"}
    if start is not None:
        made["startedAt"] = at(start)
    if start is not None and end is not None:
        made |= {"completedAt": at(end), "durationMs": int((end - start) * 1000)}
    return made | members


def run_of(run_id: str, workflow: str, *steps: Members, end: float | None = None, **members: Any) -> Run:
    """Return a run that ends after so many seconds, or is running."""
    document: Members = {"id": run_id, "workflowId": workflow, "status": "running", "triggerType": "schedule"}
    document["startedAt"] = at(0)
    if end is not None:
        document |= {"status": "completed", "completedAt": at(end), "durationMs": int(end * 1000)}
    return Run.from_dict({**document, **members, "steps": list(steps)})


def post(server: Jaeger, spans: list[Span]) -> None:
    """Send spans."""
    import httpx

    body = request_bytes(Resource(), map(scoped_bytes, spans))
    headers = {"content-type": "application/x-protobuf"}
    httpx.post(f"{server.otlp}/v1/traces", content=body, headers=headers, trust_env=False).raise_for_status()


def send(server: Jaeger, run: Run, observed: float | None = None) -> None:
    """Send a run as it was observed so many seconds after its start."""
    post(server, encode(run, observed_at=None if observed is None else START + int(observed * SECOND)))


def open_trace(page: Page, server: Jaeger, run: Run, name: str) -> None:
    """Open the trace of a run and wait for its spans."""
    page.goto(f"{server.url}/trace/{run_ids(run.id, '').trace_id.hex()}")
    expect(page.get_by_text(name).first).to_be_visible()
    expect(page.locator(".span-row").first).to_be_visible()


def shot(page: Page, name: str) -> None:
    """Take ``docs/screenshots/jaeger/NAME.png``; without ``RUNSPAN_SCREENSHOTS`` it only has to exist."""
    file = FOLDER / f"{name}.png"
    picture = page.screenshot(animations="disabled", caret="hide")
    if os.environ.get("RUNSPAN_SCREENSHOTS"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
    assert file.exists(), f"RUNSPAN_SCREENSHOTS=1 makes {file.name}"


LOAD = step("Load invoices", 0.4, 9, output={"invoices": 42})
CHECK = step("Check limits", 9.1, 12, output={"withinLimits": True})
ESCALATE = step("Escalate to manager", status="skipped", type="condition")
CHARGE = step("Charge cards", 12.2, status="running", type="stripe", input={"invoices": 42})
CHARGED = step("Charge cards", 12.2, 96, type="stripe", input={"invoices": 42}, output={"charged": 41, "declined": 1})
NOTIFY = step("Notify finance", 96.2, 97.5, type="slack")


def test_a_running_run(jaeger: Jaeger, page: Page) -> None:
    """The search lists it by its workflow, the trace shows what is done and what is open; and after the end the run
    span is above all, with the points of the time before in one subtree."""
    run = run_of("run_7421", "wf_dunning")
    stages = [
        (run_of(run.id, run.workflow_id or ""), 0.3),
        (run_of(run.id, run.workflow_id or "", LOAD), 9.5),
        (run_of(run.id, run.workflow_id or "", LOAD, CHECK, ESCALATE), 12.1),
        *[(run_of(run.id, run.workflow_id or "", LOAD, CHECK, ESCALATE, CHARGE), seen) for seen in (20, 50, 80)],
    ]
    for stage, seen in stages:
        send(jaeger, stage, seen)
    for number in range(3):
        send(jaeger, run_of(f"done_{number}", "wf_payroll", step("Pay", 1, 3), end=4 + number))
    window = f"start={(START - 60 * SECOND) // 1000}&end={(START + 300 * SECOND) // 1000}"
    search = f"{jaeger.url}/search?service=runspan&{window}&limit=20&lookback=custom"
    page.goto(search)
    page.get_by_text("List", exact=True).click()
    expect(page.get_by_text("run wf_dunning (live)").first).to_be_visible()
    page.mouse.move(0, 0)
    shot(page, "search")
    open_trace(page, jaeger, run, "run wf_dunning (live)")
    expect(page.get_by_text("Charge cards (started)")).to_be_visible()
    shot(page, "running")
    send(jaeger, run_of(run.id, "wf_dunning", LOAD, CHECK, ESCALATE, CHARGED, NOTIFY, end=98))
    page.goto(search)
    expect(
        page.get_by_text("run wf_dunning", exact=True).or_(page.get_by_text("runspan: run wf_dunning"))
    ).to_be_visible()
    expect(page.get_by_text("(live)")).to_have_count(0)
    open_trace(page, jaeger, run, "run wf_dunning")
    expect(page.locator(".span-row")).to_have_count(14)
    shot(page, "ended")


def test_loops_and_skipped_steps(jaeger: Jaeger, page: Page) -> None:
    """Rounds are below their loop, loops nest, and skipped steps lie where they would have run."""
    steps = [step("Read customers", 0.1, 2), step("Each region", 2, 30, type="loop")]
    for region in (0, 1):
        first = 2.5 + 13 * region
        steps.append(step("Each customer", first, first + 12, type="loop"))
        for customer in range(3):
            begun = first + 0.5 + 3.5 * customer
            steps += [step("Score", begun, begun + 2, type="agent"), step("Send mail", begun + 2.1, begun + 3)]
    steps += [
        step("Report errors", status="skipped", type="condition"),
        step("Archive", 30.5, 34),
        step("Notify on call", status="skipped", type="slack"),
    ]
    run = run_of("run_loops", "wf_reminders", *steps, end=34.5)
    send(jaeger, run)
    open_trace(page, jaeger, run, "run wf_reminders")
    shot(page, "loops")


def test_an_agent(jaeger: Jaeger, page: Page) -> None:
    """An agent step has its model, tokens and cost, and the run their totals."""
    usage = {"promptTokens": 3120, "completionTokens": 245, "model": "gpt-4o", "estimatedCostUsd": 0.0103}
    agent = step("Triage ticket", 1, 9, type="agent", input={"ticket": 981}, output={"text": "Refund", "usage": usage})
    failed = step(
        "Refund",
        9.2,
        11,
        type="http",
        status="failed",
        error={"code": "GATEWAY_TIMEOUT", "message": "no response in 2 s"},
    )
    error = {"code": "GATEWAY_TIMEOUT", "message": "no response in 2 s"}
    run = run_of("run_agent", "wf_support", step("Load", 0.1, 1), agent, failed, end=11.2, status="failed", error=error)
    send(jaeger, run)
    open_trace(page, jaeger, run, "run wf_support")
    page.get_by_text("invoke_agent Triage ticket").first.click()
    shot(page, "agent")


def test_an_output_of_ten_megabytes(jaeger_in_memory: Jaeger, page: Page) -> None:
    """Its attributes open at once: a preview and a size. The text itself is in events, which stay closed."""
    rows = [{"id": number, "text": "invoice line " * 8} for number in range(85_000)]
    run = run_of("run_large", "wf_export", step("Export rows", 0.2, 8, output=rows), end=8.5)
    assert len(run.text) > 10_000_000
    send(jaeger_in_memory, run)
    open_trace(page, jaeger_in_memory, run, "run wf_export")
    begun = page.evaluate("performance.now()")
    page.get_by_text("Export rows").first.click()
    page.get_by_text(re.compile("Attributes|Tags")).first.click()
    expect(page.get_by_text("runspan.step.output.preview").first).to_be_visible()
    shot(page, "large-output")
    assert page.evaluate("performance.now()") - begun < 10_000


def test_a_run_of_a_sub_workflow(jaeger: Jaeger, page: Page) -> None:
    """The step links to the run that it started."""
    child = run_of("run_child", "wf_billing", step("Bill", 2, 5), end=5.2)
    parent = step("Provision billing", 1, 6, type="sub-workflow", output={"runId": "run_child", "status": "completed"})
    run = run_of("run_parent", "wf_onboarding", step("Create account", 0.1, 1), parent, end=6.4)
    send(jaeger, child)
    send(jaeger, run)
    open_trace(page, jaeger, run, "run wf_onboarding")
    page.get_by_text("Provision billing").first.click()
    page.get_by_text("References").first.click()
    shot(page, "sub-workflow")


def test_two_runs_in_the_trace_of_their_caller(jaeger: Jaeger, page: Page) -> None:
    """Both are below the request, and a copy leads to the run itself."""
    caller = Link(bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7"))
    request = Span(
        trace_id=caller.trace_id,
        span_id=caller.span_id,
        parent_id=b"",
        name="POST /orders",
        kind=SERVER,
        start=START - SECOND,
        end=START + 40 * SECOND,
        status=UNSET,
        message="",
        shared=(),
        own=[("http.request.method", "POST")],
        scope="web",
    )
    post(jaeger, [request])
    invoice = run_of("run_order", "wf_invoice", step("Create invoice", 0.2, 9), step("Send mail", 9.2, 12), end=12.2)
    error = {"code": "DECLINED", "message": "card declined"}
    charge = step("Charge card", 14, 37, type="stripe", status="failed", error=error)
    payment = run_of("run_pay", "wf_payment", charge, end=37.5, status="failed", error=error)
    for run in (invoice, payment):
        spans = encode(run)
        post(jaeger, spans)
        post(jaeger, [copy for span in spans if (copy := copy_for_caller(span, caller)) is not None])
    page.goto(f"{jaeger.url}/trace/{caller.trace_id.hex()}")
    expect(page.locator(".span-row")).to_have_count(6)
    page.get_by_text("run wf_payment (copy)").first.click()
    page.get_by_text("References").first.click()
    own = run_ids(payment.id, "").trace_id.hex()
    expect(page.locator(f'a[href*="{own}"]').first).to_be_attached()
    shot(page, "caller")


def test_the_link_of_a_step_leads_to_it(page: Page, jaeger_in_memory: Jaeger) -> None:
    """Also in a long trace: its span is in sight, and the one that is marked."""
    steps = [step(f"Step {number}", number, number + 0.5) for number in range(300)]
    run = run_of("run_linked", "wf_long", *steps, end=300)
    send(jaeger_in_memory, run)
    *spans, root = encode(run)
    links = trace_links(WebConfig(jaeger_url=jaeger_in_memory.url), root.trace_id, spans[250].span_id)
    page.goto(links["jaeger"])
    marked = page.locator(".span-row.is-matching-filter")
    expect(marked).to_have_count(1)
    expect(marked).to_contain_text("Step 250")
    expect(marked).to_be_in_viewport()
