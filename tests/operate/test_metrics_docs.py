"""``docs/metrics.md`` held to the code: every attribute of spans, every metric, and nothing that is not there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from conformance.harness import running
from operate.boards import ROOT, filled_in, targets
from operate.fresh import unfinished, whole
from operate.promql import names
from runspan import Run, encode
from runspan.backends.sqlite import SqliteStore
from runspan.codec.fields import KEYS, ROLE, RUN_TABLE, STEP_TABLE, TEXT_KEY, TEXT_PIECE, FieldKind
from runspan.contracts import RunQuery
from runspan.model.span import Span
from runspan.telemetry import INSTRUMENTS
from runspan.testing import generate
from runspan.web.metrics import Metrics
from runspan.web.shared_state import connect_shared_state
from runspan.web.usage import UsageStore
from runspan.web.windows import SharedWindows
from support import corpus
from support.cli import SAMPLES
from support.servers.postgres import Postgres

PAGE = (ROOT / "docs" / "metrics.md").read_text()
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "otel-collector.yaml").read_text())
ROW = re.compile(r"^\| (?!---)(?P<cells>.+) \|$", re.MULTILINE)
TYPES = {str: "string", int: "integer", float: "double"}
HOUR = 3_600_000_000_000
COMMON = {"job", "deployment_environment_name"}


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading: what its first cell names, and the other cells."""
    text = PAGE.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [re.split(r" *\| *", found["cells"]) for found in ROW.finditer(text)][1:]
    assert rows, heading
    return {cells[0].strip("`"): cells[1:] for cells in rows}


SPANS = table("## Span attributes")
ROLES = set(SPANS)
ATTRIBUTES = (
    table("### To find spans by")
    | table("### Tokens and cost")
    | table("### The conventions' names")
    | table("### The document itself")
)
COUNTED = table("## What the Collector counts")
OWN = table("## Metrics of the Collector itself")
SERVER = table("## Metrics of runspan itself")
STATE = table("### The shared state")
BESIDES = table("## Other metrics in alerts")


def documents() -> Iterator[bytes]:
    now = time.time_ns()
    yield from (file.read_bytes() for file in SAMPLES.glob("*.json"))
    yield from generate(300, unfinished=True)
    yield whole(now)
    yield unfinished(now, "running", "run_long")
    yield from corpus.cases().values()
    yield b'{"id":"run_child","status":"completed","parentRunId":"run_above"}'


@pytest.fixture(scope="module")
def spans() -> list[Span]:
    """Of documents of every kind, finished and not, and of a correction."""
    now = time.time_ns()
    runs = [Run.from_json(text) for text in documents()]
    corrected = encode(Run.from_json(whole(now)), tenant="acme", observed_at=now, after_root=True)
    return [*corrected, *(span for run in runs for span in encode(run, tenant="acme", observed_at=now))]


def plain(key: str) -> str:
    """An attribute's name without the suffixes of long texts and of unusual forms."""
    return re.sub(r"(\.json)?(\.bytes|\.preview)?$", "", key)


def test_every_attribute_is_documented_with_its_spans_and_type(spans: list[Span]) -> None:
    """What any span carries stands in the tables, and the tables' names, kinds of spans and types are those seen."""
    seen: dict[str, set[str]] = {}
    kinds: dict[str, set[str]] = {}
    for span in spans:
        attributes = dict(span.attributes())
        for key, value in attributes.items():
            seen.setdefault(plain(key), set()).add(str(attributes[ROLE]))
            if plain(key) == key:
                kinds.setdefault(key, set()).add(TYPES[type(value)])
    assert sorted(seen) == sorted(ATTRIBUTES)
    for name, roles in seen.items():
        kind, where, about = ATTRIBUTES[name]
        documented = ROLES if where == "all" else set(where.split(", "))
        assert roles <= documented, name
        assert roles == documented or roles | {"revision"} == documented, name
        assert kinds.get(name, {"string"}) == {kind}, name
        assert len(about) > 3


def test_every_role_is_documented_with_its_scope(spans: list[Span]) -> None:
    """The table of roles has each with the scope that backends search by, and the form of its name."""
    seen: dict[str, set[str]] = {}
    for span in spans:
        role = str(span.attributes()[ROLE])
        seen.setdefault(role, set()).add(span.scope)
        forms = re.findall(r"`([^`]+)`", SPANS[role][1])
        patterns = [re.escape(form).replace("WORKFLOW", ".+").replace("STEP", ".+") for form in forms]
        assert any(re.fullmatch(pattern, span.name, re.DOTALL) for pattern in patterns), span.name
    assert seen == {role: {cells[0].strip("`")} for role, cells in SPANS.items()}


def test_every_row_of_the_codecs_table_is_documented() -> None:
    """``fields`` is the source: a member that is added there must be added here, with its type."""
    assert set(ATTRIBUTES) >= KEYS
    for field in (*RUN_TABLE.fields, *STEP_TABLE.fields):
        assert ATTRIBUTES[field.key][0] == ("integer" if field.kind is FieldKind.INTEGER else "string")


def test_links_and_events_are_documented(spans: list[Span]) -> None:
    """Their attributes stand in the text."""
    keys = {key for span in spans for link in span.links for key, _ in link.attributes}
    keys |= {key for span in spans for event in span.events for key, _ in event.attributes}
    keys |= {event.name for span in spans for event in span.events if TEXT_KEY not in dict(event.attributes)}
    keys = {re.sub(rf"(?<={re.escape(TEXT_PIECE)})\d+", "0", key) for key in keys}
    assert len(keys) >= 7
    assert all(f"`{key}`" in PAGE for key in keys)


def labels(names_of: list[str]) -> set[str]:
    return {name.replace(".", "_") for name in names_of}


def test_what_the_collector_counts_is_what_its_configuration_says() -> None:
    """Each metric of ``signal_to_metrics`` has a row with its labels, span metrics have theirs, and no row is left."""
    found = {"traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds"}
    for name, connector in CONFIG["connectors"].items():
        for metric in connector.get("spans", ()) if name.startswith("signal_to_metrics") else ():
            counter = "sum" in metric
            unit = {"USD": "_USD", "s": "_seconds"}.get(metric["unit"], "")
            shown = metric["name"].replace(".", "_") + unit + ("_total" if counter else "")
            found.add(shown)
            kind, _, told, _ = COUNTED[shown]
            assert kind == ("counter" if counter else "histogram")
            assert set(re.findall(r"`(\w+)`", told)) == labels([each["key"] for each in metric["attributes"]])
    assert set(COUNTED) == found
    dimensions = {each["name"] for each in CONFIG["connectors"]["span_metrics"]["dimensions"]}
    told = PAGE.split("The span's dimensions: ", 1)[1].split(". A dimension", 1)[0]
    assert set(re.findall(r"`(\w+)`", told)) == labels(sorted(dimensions))


def test_metrics_of_the_server_are_documented(tmp_path: Any) -> None:
    """What ``/metrics`` of a server with an embedded store has, by name and labels, but for health.md's own."""
    store = SqliteStore(tmp_path, index=True)
    try:
        while store.search(RunQuery(order="cost")).partial:  # until the index is there
            pass
        now = time.time_ns()
        store.put(running("stuck", now - 2 * HOUR), observed_at=now - HOUR)
        store.put(running("waits", now - 2 * HOUR, status="suspended"), observed_at=now - HOUR)
        usage = UsageStore(None)
        with usage.charged("acme", [bytes(16)], 1):
            pass
        metrics = Metrics(store, usage=usage)
        metrics.observe_request("/api/v1/runs", "GET", "200", 0.01)
        assert isinstance(metrics.registry, CollectorRegistry)
        told = {family.name: family for family in metrics.registry.collect()}
    finally:
        store.close()
    health = {metric.prometheus_name.removesuffix("_total") for metric in INSTRUMENTS}
    assert {name.removesuffix("_total") for name in SERVER} == set(told) - health
    for name, (kind, named, _) in SERVER.items():
        family = told[name.removesuffix("_total")]
        assert kind == family.type
        seen = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert set(re.findall(r"`(\w+)`", named)) == seen
    page = (ROOT / "docs" / "health.md").read_text()
    assert all(f"`{metric.prometheus_name}`" in page for metric in INSTRUMENTS)


def test_metrics_of_a_shared_state_are_documented(postgres: Postgres) -> None:
    """What ``/metrics`` of a server without an embedded store has more if it shares its state."""
    with closing(connect_shared_state(postgres.database())) as database:
        families = [list(Metrics(None, windows).registry.collect()) for windows in (None, SharedWindows(database))]
    alone, sharing = ({family.name: family.type for family in each} for each in families)
    documented = {name.removesuffix("_total"): row[0] for name, row in STATE.items()}
    assert documented == {name: kind for name, kind in sharing.items() if name not in alone}


def test_every_metric_that_is_asked_for_is_documented() -> None:
    """Whatever a dashboard or a rule names has a row, and the rows of other programs' metrics are asked for."""
    values = dict.fromkeys(("environment", "workflow"), ".*")
    values |= {"__rate_interval_ms": "60000", "__rate_interval": "1m", "__range": "10m"}
    asked = {name for _, target in targets("prometheus") for name in names(filled_in(target["expr"], values))}
    for file in (ROOT / "deploy" / "rules").glob("*.yaml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            asked |= {name for rule in group["rules"] for name in names(rule["expr"])}
    asked = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    health = {metric.prometheus_name for metric in INSTRUMENTS}
    assert sorted(asked - health - {*COUNTED, *OWN, *SERVER, *STATE, *BESIDES}) == []
    assert sorted({*OWN, *BESIDES} - asked) == []
