"""Ten things that people want of runs, each in at most four actions: over the embedded store, Tempo and Jaeger.

An action is a click, a choice in a list, or a text typed and confirmed. docs/browse.md has the table.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from runspan import Run, encode
from runspan.model.span import run_ids
from runspan.model.timestamps import SECOND
from runspan.otlp.protobuf_writer import Resource, request_bytes, scoped_bytes
from support.cli import process, server
from support.servers.jaeger import Jaeger
from support.servers.tempo import Tempo
from support.web import PROTOBUF
from web.pages.chromium import watched
from web.pages.kit import agent, iso, run, unfinished

MOST_ACTIONS: Final = 4
DOCS: Final = Path(__file__).parents[3] / "docs/browse.md"
TODAY: Final = datetime.now(UTC).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
YESTERDAY: Final = TODAY - timedelta(hours=12)
OUTPUT: Final = '{"invoice": "in_1", "amount": 12.10, "big": 1180591620717411303424}'
"""The exact text of a step's output, which a browser's numbers would change."""


def charge(begun: datetime, **members: Any) -> dict[str, Any]:
    """The step that charges a customer."""
    times = {"startedAt": iso(begun), "completedAt": iso(begun + timedelta(seconds=3)), "durationMs": 3000}
    step = {"id": "charge", "name": "Charge the card", "type": "stripe", "status": "completed", **times}
    return step | members


def documents() -> list[dict[str, Any]]:
    """The runs of two days, and one that fell silent."""
    earlier = YESTERDAY - timedelta(hours=24)
    error = {"code": "CARD_DECLINED", "message": "Stripe: the card was declined", "step": "charge"}
    attempts = [
        {
            "attempt": number,
            "status": "failed",
            "startedAt": iso(YESTERDAY + timedelta(seconds=number)),
            "completedAt": iso(YESTERDAY + timedelta(seconds=number, milliseconds=500)),
            "error": error,
        }
        for number in (1, 2)
    ]
    failed = charge(YESTERDAY, status="failed", error=error, attempt=2, attempts=attempts)
    now = datetime.now(UTC)
    return [
        run("billing_good", earlier, workflowId="wf_billing", steps=[charge(earlier, output={"of": "good"})]),
        run("billing_bad", YESTERDAY, workflowId="wf_billing", status="failed", error=error, steps=[failed]),
        run("billing_exact", earlier, workflowId="wf_exact", steps=[charge(earlier, output="EXACT")]),
        run("support", now, workflowId="wf_support", steps=[agent("answer", now, cost=0.25)]),
        run("order", earlier, workflowId="wf_orders", steps=[charge(earlier, input={"customer": "cus_4711"})]),
        unfinished("going_on", now - timedelta(seconds=20), workflowId="wf_long"),
        unfinished("silent", now - timedelta(hours=3), workflowId="wf_long"),
    ]


def texts() -> Iterator[tuple[Run, int]]:
    """The runs, and when each was last observed, in nanoseconds since 1970."""
    for document in documents():
        text = json.dumps(document).replace('"EXACT"', OUTPUT)
        age = 2 * 3600 * SECOND if document["id"] == "silent" else 0
        yield Run.from_json(text), time.time_ns() - age


@dataclass
class Place:
    """A server with the runs of this test."""

    kind: str
    url: str
    key: str


@contextmanager
def embedded(folder: Path) -> Iterator[Place]:
    data = folder / "data"
    key = process("keys", "create", "--data", data, "--name", "all").stdout.decode().split()[-1]
    with server(data, "--jaeger-url", "http://127.0.0.1:16686", "--writes-per-minute", 0) as (url, _):
        send(f"{url}/v1/traces", {"x-api-key": key})
        yield Place("embedded", url, key)


@contextmanager
def remote(folder: Path, kind: str, backend: Jaeger | Tempo) -> Iterator[Place]:
    send(f"{backend.otlp}/v1/traces", {})
    key = process("keys", "create", "--data", folder, "--name", "all").stdout.decode().split()[-1]
    links = ["--jaeger-url", "http://127.0.0.1:16686"]
    with server(folder, "--backend", f"{kind}+{backend.url}", *links) as (url, _):
        yield Place(kind, url, key)


def send(url: str, headers: dict[str, str]) -> None:
    parts = [scoped_bytes(span) for one, seen in texts() for span in encode(one, observed_at=seen)]
    sent = httpx.post(url, content=request_bytes(Resource(), parts), headers={**PROTOBUF, **headers}, trust_env=False)
    assert sent.is_success, sent.text


@pytest.fixture(scope="module", params=["embedded", "tempo", "jaeger"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tasks")
    if request.param == "embedded":
        opened = embedded(folder)
    else:
        name = {"tempo": "tempo", "jaeger": "jaeger_memory"}[request.param]
        opened = remote(folder, request.param, request.getfixturevalue(name))
    with opened as found:
        yield found


class Person:
    """Uses a page, and counts what that takes."""

    def __init__(self, page: Page, place: Place) -> None:
        self.page = page
        self.place = place
        self.actions = 0

    def start(self, path: str) -> None:
        self.page.goto(self.place.url + path)

    def click(self, target: Locator) -> None:
        self.actions += 1
        target.click()

    def choose(self, label: str, value: str) -> None:
        self.actions += 1
        self.page.get_by_role("combobox", name=label).select_option(value)

    def type(self, target: Locator, text: str) -> None:
        self.actions += 1
        target.fill(text)
        target.press("Enter")

    def row(self, run_id: str) -> Locator:
        return self.page.locator(f'[data-run="{run_id}"] .row-link')

    def step(self, step_id: str = "charge") -> Locator:
        return self.page.locator(f'.node[data-key="{step_id}"]')

    @property
    def panel(self) -> Locator:
        return self.page.locator(".detail")


def failed_step(person: Person) -> None:
    person.start("/")
    person.choose("Status", "failed")
    person.choose("Time", "yesterday")
    person.click(person.row("billing_bad"))
    expect(person.page.locator("#run")).to_contain_text("Charge the card")
    expect(person.page.locator("#run")).to_contain_text("the card was declined")


def spend(person: Person) -> None:
    person.start("/")
    person.click(person.page.get_by_role("link", name="Workflows"))
    person.choose("Time", "today")
    expect(person.page.get_by_role("row", name=re.compile(r"wf_support.*\$0\.25"))).to_be_visible()


def last_success(person: Person) -> None:
    person.start("/runs/billing_bad")
    person.click(person.page.get_by_role("link", name="Compare with last success"))
    expect(person.page).to_have_url(re.compile(r"/compare\?a=billing_good&b=billing_bad"))
    expect(person.page.get_by_role("heading", name=re.compile("differ"))).to_be_visible()


def copied_output(person: Person) -> None:
    person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    person.start("/runs/billing_exact")
    person.click(person.step())
    expect(person.panel.get_by_role("tab", name="Output")).to_have_attribute("aria-selected", "true")
    person.click(person.page.locator(".payload-bar .copy"))
    expect(person.page.locator(".payload-bar .copy")).to_have_attribute("data-copied", "yes")
    assert person.page.evaluate("navigator.clipboard.readText()") == OUTPUT


def of_a_customer(person: Person) -> None:
    person.start("/")
    person.type(person.page.get_by_role("searchbox", name="Text in runs, run id or trace id"), "cus_4711")
    expect(person.page.locator("table.runs mark")).to_have_text("cus_4711")
    person.click(person.row("order"))
    expect(person.page).to_have_url(re.compile("/runs/order"))


def through_a_login(person: Person) -> None:
    person.page.context.clear_cookies()
    person.start("/runs/billing_bad#step=charge")
    person.type(person.page.get_by_label("API key"), person.place.key)
    expect(person.panel).to_contain_text("Charge the card")
    expect(person.page).to_have_url(re.compile("/runs/billing_bad#step=charge"))


def download(person: Person) -> None:
    person.start("/runs/billing_exact")
    with person.page.expect_download() as saved:
        person.click(person.page.get_by_role("button", name=re.compile("JSON")))
    assert saved.value.path().read_bytes() in [one.text for one, _ in texts()]


def to_jaeger(person: Person) -> None:
    person.start("/runs/billing_bad")
    person.click(person.step())
    link = person.panel.get_by_role("link", name="Jaeger")
    trace_id = run_ids("billing_bad").trace_id.hex()
    expect(link).to_have_attribute("href", re.compile(rf"/trace/{trace_id}\?uiFind=[0-9a-f]{{16}}"))
    person.actions += 1  # a click on the link, which leads out of these pages


def retries(person: Person) -> None:
    person.start("/runs/billing_bad")
    person.click(person.step())
    attempts = person.panel.locator(".attempt-list li")
    expect(attempts).to_have_count(2)
    expect(attempts.first).to_contain_text("CARD_DECLINED")


def running_and_stuck(person: Person) -> None:
    person.start("/")
    person.choose("Status", "pending,running,suspended")
    expect(person.row("going_on")).to_be_visible()
    person.choose("Status", "stuck:15m")
    expect(person.row("going_on")).to_be_hidden()
    person.click(person.row("silent"))
    expect(person.page.locator("#run")).to_contain_text("Last seen 2 hours ago")


TASKS: Final[dict[str, Callable[[Person], None]]] = {
    "The failed step of yesterday's billing run, and why": failed_step,
    "Spend today by workflow": spend,
    "The last success against this failure": last_success,
    "The exact output of a step, copied": copied_output,
    "The run of a customer": of_a_customer,
    "A link to a step, through a login": through_a_login,
    "Download a run": download,
    "From a step to its span in Jaeger": to_jaeger,
    "The retries of a step": retries,
    "What is running, and what is stuck": running_and_stuck,
}
EMBEDDED_ONLY: Final = {spend}
"""Tempo and Jaeger cannot count runs exactly; their pages say so."""


@pytest.fixture(scope="module")
def table() -> dict[str, int]:
    """The tasks of docs/browse.md, and how many actions each takes."""
    rows = re.findall(r"^\| ([^|]+) \| (\d) \| [\d.]+ \|", DOCS.read_text(), re.MULTILINE)
    return {task: int(actions) for task, actions in rows}


@pytest.mark.parametrize("name", TASKS)
def test_task(
    browser: Browser, place: Place, table: dict[str, int], name: str, record_property: Callable[[str, object], None]
) -> None:
    """It takes as many actions as the docs say, and at most four."""
    task = TASKS[name]
    if place.kind != "embedded" and task in EMBEDDED_ONLY:
        pytest.skip("only the embedded store answers it")
    with watched(browser) as (_, page, watch):
        if task is of_a_customer:
            watch.allow("status of 404")  # it might be the id of a run
        if task is through_a_login:
            watch.allow("status of 401")  # requests under way when the session ends
        log_in(page, place)
        person = Person(page, place)
        begun = time.monotonic()
        task(person)
        record_property("seconds", round(time.monotonic() - begun, 1))
        assert person.actions <= MOST_ACTIONS
        assert person.actions == table[name]


def log_in(page: Page, place: Place) -> None:
    page.goto(f"{place.url}/login")
    page.get_by_label("API key").fill(place.key)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("table.runs")).to_be_visible()
