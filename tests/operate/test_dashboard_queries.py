"""Every expression of the dashboards and rules, asked of a real Prometheus and a real Tempo with real data in them."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
import yaml
from alerts.source import read

from operate.boards import BOARDS, ROOT, filled_in, targets
from operate.fresh import write
from operate.kit import wait_until
from operate.promql import names, selectors
from operate.scene import OPEN, Scene, export, scene
from runspan import Run, encode
from runspan.model.document import TERMINAL_RUN_STATUSES
from support.servers.prometheus import Prometheus
from support.servers.tempo import Tempo

PATIENCE = 60
BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 10800)
"""Bounds of the durations' histogram in seconds, those of otel-collector.yaml."""
EXPRESSIONS = {where: target["expr"] for where, target in targets("prometheus")}
RULES = {
    rule["alert"]: rule["expr"]
    for file in (ROOT / "deploy" / "rules").glob("*.yaml")
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
PASTED = re.findall(r"```promql\n(.*?)```", RUNBOOKS, re.DOTALL)
PASTED_SEARCHES = re.findall(r"```traceql\n(.*?)```", RUNBOOKS, re.DOTALL)
LINKED_SEARCHES = read().links["traces_url"]
LATE = Run.from_json(b'{"id":"run_late"}')
"""Of the run that comes while the Collector refuses, the id decides the trace."""
NEVER_HERE = {
    # Takes 5000 combinations to come into being; the alert's own test makes it.
    'traces_span_metrics_calls_total{otel_metric_overflow="true"}',
    # Of servers that share a PostgreSQL; tests/web/test_shared_state.py has some.
    "runspan_state_reachable",
}
SEARCHES = {where: target for where, target in targets("tempo") if target["query"] != "${trace_id}"}
VALUES = {
    "environment": ".*",
    "workflow": ".*",
    "__rate_interval_ms": "60000",
    "__rate_interval": "1m",
    "__range": "10m",
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("scene")) as running:
        yield running


def asked(prometheus: Prometheus, expression: str) -> list[dict[str, Any]]:
    return prometheus.query(filled_in(expression, VALUES))


def numbers(rows: list[dict[str, Any]]) -> list[str]:
    """The values that are numbers: a ratio of nothing is none."""
    return [row["value"][1] for row in rows if row["value"][1] != "NaN"]


def never(is_there: Callable[[str], Any], names: Iterable[str]) -> list[str]:
    """Those names which are not there after a while: a scrape may come later than what it tells of."""
    left = sorted(names)
    deadline = time.monotonic() + PATIENCE
    while (left := [name for name in left if not is_there(name)]) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def test_every_panel_has_an_answer(live: Scene) -> None:
    """Every PromQL expression of the dashboards gives at least one number."""
    assert never(lambda where: numbers(asked(live.prometheus, EXPRESSIONS[where])), EXPRESSIONS) == []


def test_every_rule_runs_and_its_series_are_there(live: Scene) -> None:
    """Prometheus evaluates every rule, and whatever series a rule looks at, by name and labels, were scraped. Rules of
    what happened here answer; the others' conditions do not hold."""
    for expr in RULES.values():
        live.prometheus.query(expr)
    wanted = {selector for expr in RULES.values() for selector in selectors(expr)} - NEVER_HERE
    assert never(lambda selector: live.prometheus.query(f"count_over_time({selector}[1h])"), wanted) == []
    happened = {
        "RunspanRunFailed",
        "RunspanStepFailed",
        "RunspanSpansDropped",
        "RunspanQueueFull",
        "RunspanCollectorRefusing",
        "RunspanWatchdog",
    }
    assert never(lambda name: live.prometheus.query(RULES[name]), happened) == []


def test_every_metric_of_the_dashboards_and_runbooks_was_scraped(live: Scene) -> None:
    """No name is invented: neither in a panel or a variable, nor in a query that a runbook tells to paste, and each of
    these is evaluated."""
    used = {name for expr in EXPRESSIONS.values() for name in names(filled_in(expr, VALUES))}
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                used |= {variable["query"].removeprefix("label_values(").split("{")[0].split(",")[0]}
    assert len(PASTED) > 20
    for query in PASTED:
        live.prometheus.query(query)
        used |= names(query)
    assert never(lambda name: name in live.prometheus.names(), used - {"ALERTS"} - NEVER_HERE) == []


def test_the_counts_are_those_of_the_documents(live: Scene) -> None:
    """The overview counts each run that ended once, and each failed one as failed: the revisions, the attempts and the
    large runs of long ago beside them are no runs."""
    statuses = [run.envelope.status for run in live.runs]
    ended = sum(status in TERMINAL_RUN_STATUSES for status in statuses)
    failed = sum(status in {"failed", "timed_out"} for status in statuses)

    def one(title: str) -> float:
        (value,) = shown(live, f"overview.json: {title} A").values()
        return value

    assert one("Runs") == ended
    assert one("Failed runs") == failed
    assert one("Success ratio") == pytest.approx(1 - failed / ended)


def shown(live: Scene, where: str, *labels: str) -> dict[tuple[str, ...], float]:
    """What a query of a panel gave before anything went wrong, by the values of these labels."""
    query = {"query": filled_in(EXPRESSIONS[where], VALUES), "time": str(live.calm)}
    answer = httpx.get(f"{live.prometheus.url}/api/v1/query", params=query, trust_env=False).json()
    rows = answer["data"]["result"]
    assert all(set(row["metric"]) <= {*labels} for row in rows)
    return {tuple(row["metric"].get(label, "") for label in labels): float(row["value"][1]) for row in rows}


def test_the_spend_is_that_of_the_documents(live: Scene) -> None:
    """By workflow and model, in dollars and tokens, of every agent step that ended within the hour."""
    expected: dict[str, dict[tuple[str, str], float]] = {letter: defaultdict(float) for letter in "ABC"}
    attributes = ("runspan.cost.usd", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    for run in live.runs:
        for span in encode(run):
            found = span.attributes()
            if found.get("runspan.role") != "step" or span.end < (live.calm - 3600) * 1e9:
                continue
            place = (str(found.get("runspan.workflow.id", "")), str(found.get("gen_ai.request.model", "")))
            for letter, name in zip("ABC", attributes, strict=True):
                if name in found:
                    expected[letter][place] += float(found[name])  # type: ignore[arg-type]  # a number
    assert len(expected["A"]) > 1
    for letter, values in expected.items():
        where = f"agents.json: Spend by workflow and model {letter}"
        assert shown(live, where, "runspan_workflow_id", "gen_ai_request_model") == pytest.approx(dict(values)), where


def test_the_durations_are_those_of_the_documents(live: Scene) -> None:
    """p50 and p95 of each workflow are in the bucket of its longest and its shortest run."""
    durations: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for span in (span for run in live.runs for span in encode(run)):
        found = span.attributes()
        if found.get("runspan.role") == "run":
            durations[(str(found.get("runspan.workflow.id", "")),)].append((span.end - span.start) / 1e9)
    assert durations
    for letter in "AB":
        quantiles = shown(live, f"overview.json: Run duration by workflow {letter}", "runspan_workflow_id")
        assert quantiles.keys() == durations.keys()
        for workflow, value in quantiles.items():
            below = max((bound for bound in BUCKETS if bound < min(durations[workflow])), default=0)
            above = min((bound for bound in BUCKETS if bound >= max(durations[workflow])), default=BUCKETS[-1])
            assert below <= value <= above, workflow
    counts = shown(live, "overview.json: Run duration by workflow C", "runspan_workflow_id")
    assert counts == {workflow: len(each) for workflow, each in durations.items()}


def test_stuck_runs_are_those_that_nobody_saw_go_on(live: Scene) -> None:
    """One run was put into the store as observed four hours ago, and no other was."""
    workflow = ("wf_long",)
    assert shown(live, "overview.json: Stuck runs by workflow A", "runspan_workflow_id") == {workflow: 1}
    (age,) = shown(live, "overview.json: Stuck runs by workflow B", "runspan_workflow_id").values()
    assert 4 * 3600 <= age < 4 * 3600 + 600
    assert shown(live, "overview.json: Unfinished and stuck runs B") == {(): 1}
    assert shown(live, "overview.json: Unfinished and stuck runs A")[()] >= len(OPEN) + 1


def test_a_point_of_a_graph_leads_to_a_trace_of_the_documents(live: Scene) -> None:
    """The exemplars that Prometheus keeps carry trace ids of runs that were sent."""
    found: list[dict[str, Any]] = []

    def has_exemplars() -> bool:
        found[:] = live.prometheus.exemplars(
            "traces_span_metrics_duration_seconds_bucket", time.time() - 600, time.time() + 60
        )
        return bool(found)

    wait_until(has_exemplars, PATIENCE, "no exemplars")
    sent = {encode(run)[-1].trace_id.hex() for run in live.runs}
    assert {each["labels"]["trace_id"] for each in found} <= sent | {encode(LATE)[-1].trace_id.hex()}


NEWER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.2"
)
"""What Prometheus 3 asks for: names with dots as they are, if they have any."""


@pytest.mark.parametrize("port", ["SPANS", "HEALTH", "OWN"])
def test_a_newer_prometheus_gets_the_same_names(live: Scene, port: str) -> None:
    """Asked for names in UTF-8, the Collector tells every metric that an expression here names by the same name."""
    asked = {name for expr in (*EXPRESSIONS.values(), *RULES.values()) for name in names(filled_in(expr, VALUES))}

    def told(accept: str) -> set[str]:
        url = f"{live.collector.url(port)}/metrics"
        text = httpx.get(url, headers={"accept": accept}, trust_env=False).raise_for_status().text
        return set(re.findall(r"^([a-zA-Z_][\w:]*)", text, re.MULTILINE)) & asked

    assert told("text/plain;version=0.0.4")
    assert told(NEWER) == told("text/plain;version=0.0.4")


@pytest.fixture(scope="module")
def searched(live: Scene, tempo: Tempo) -> Tempo:
    """A Tempo that has the same runs, and of the one to drill into a revision from before its end."""
    begun = json.loads(live.run.text) | {"status": "running"}
    del begun["completedAt"]
    export(write(live.documents.with_name("begun.ndjson"), [json.dumps(begun).encode()]), tempo.otlp)
    export(live.documents, tempo.otlp)
    return tempo


def search(tempo: Tempo, target: dict[str, Any], values: dict[str, str]) -> list[dict[str, Any]]:
    """The traces that Grafana would show, found the way its data source asks."""
    now = int(time.time())
    answer = httpx.get(
        f"{tempo.url}/api/search",
        params={
            "q": filled_in(target["query"], values),
            "limit": target["limit"],
            "spss": target["spss"],
            "start": now - 6 * 3600,
            "end": now + 60,
        },
        timeout=30,
        trust_env=False,
    )
    assert answer.status_code == 200, f"{target['query']}: {answer.text}"
    traces: list[dict[str, Any]] = answer.json().get("traces") or []
    return traces


@pytest.mark.parametrize("where", SEARCHES)
def test_every_search_finds_spans(live: Scene, searched: Tempo, where: str) -> None:
    """Every TraceQL query finds spans, and each attribute that it selects stands at one of them at least."""
    target = SEARCHES[where]
    trace_id = encode(live.run)[-1].trace_id.hex()
    values = {"workflow": ".*", "run_id": "whole" if "find" in where.lower() else "run_", "trace_id": trace_id}
    match = re.search(r"select\(([^)]*)\)", target["query"])
    assert match is not None
    selected = {name.strip().removeprefix("span.") for name in match[1].split(",")} - {"statusMessage"}

    def finds() -> bool:
        """Tempo may find some spans of a trace before the others."""
        keys = {
            attribute["key"]
            for trace in search(searched, target, values)
            for spans in trace["spanSets"]
            for span in spans["spans"]
            for attribute in span.get("attributes", ())
        }
        return selected <= keys

    wait_until(finds, PATIENCE, f"{where}: {target['query']}")


@pytest.mark.parametrize("query", PASTED_SEARCHES)
def test_searches_of_the_runbooks_find_spans(searched: Tempo, query: str) -> None:
    """With the names of a workflow and a step that are there in place of the examples'."""
    query = query.strip().replace("wf_overdue_invoices", "wf_whole").replace("fetch-invoices", "pay")
    target = {"query": query, "limit": 20, "spss": 3}
    wait_until(lambda: bool(search(searched, target, {})), PATIENCE, query)


@pytest.mark.parametrize("name", LINKED_SEARCHES)
def test_searches_that_alerts_link_to_find_spans(searched: Tempo, name: str) -> None:
    """With labels that are there, and thresholds of nothing."""
    labels = {"runspan_workflow_id": "wf_whole", "runspan_step_id": "pay"}
    query = re.sub(r"\{(\w+)\}", lambda found: labels[found[1]], re.sub(r"<\w+>", "0", LINKED_SEARCHES[name]))
    target = {"query": query.replace("> 0.5", "> 0.01"), "limit": 20, "spss": 20}
    found: list[dict[str, Any]] = []

    def finds() -> bool:
        found[:] = search(searched, target, {})
        return bool(found)

    wait_until(finds, PATIENCE, query)
    spans = [span for trace in found for each in trace["spanSets"] for span in each["spans"]]
    assert not [span["name"] for span in spans if span.get("name", "").startswith("attempt of ")]


def test_selectors_of_an_expression() -> None:
    """Names are told from functions, labels, windows and words of the language."""
    expression = (
        'sum by (job, le) (rate(a_total{x=~"b|c{2}", y!="\\"d("}[5m])) / on (job) group_left () max(e) > 14.4 * 0.01 '
        "unless a_total offset 1h and on () count(up == 1)"
    )
    assert names(expression) == {"a_total", "e", "up"}
    assert 'a_total{x=~"b|c{2}", y!="\\"d("}' in selectors(expression)
