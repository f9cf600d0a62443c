"""The dashboards: what the code makes, whole by the SDK's own types, readable, and tied to nobody's data sources."""

from __future__ import annotations

import enum
import json
import re
import shutil
import subprocess
import sys
import types
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins

from operate.boards import BOARDS, ROOT, every_panel, panels
from operate.promql import names
from runspan.web.schemas import RunsQuery

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    # The SDK prefers dashboards of the second schema, which Grafana reads from version 12 on.
    from grafana_foundation_sdk.models.dashboard import Dashboard

PANELS = [pytest.param(name, panel, id=f"{name}-{panel['title']}") for name, panel in every_panel()]
BUILT_IN = {"__all", "__data", "__range", "__rate_interval", "__rate_interval_ms", "__url_time_range", "__value"}
UIDS = {
    "overview.json": "runspan-overview",
    "run.json": "runspan-run",
    "agents.json": "runspan-agents",
    "pipeline.json": "runspan-pipeline",
}


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dashboards", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_files_are_what_the_code_makes(tmp_path: Path) -> None:
    """Byte for byte; a file that was edited by hand is named, and writing again brings the same bytes back."""
    checked = make("--check")
    assert checked.returncode == 0, checked.stderr
    shutil.copytree(ROOT / "dashboards", tmp_path / "dashboards", ignore=shutil.ignore_patterns("__pycache__"))
    edited = tmp_path / "dashboards" / "run.json"
    edited.write_text(edited.read_text().replace("Trace", "Race"))
    checked = make("--check", cwd=tmp_path)
    assert checked.returncode == 1
    assert "run.json" in checked.stderr
    assert "overview.json" not in checked.stderr
    assert make(cwd=tmp_path).returncode == 0
    assert edited.read_bytes() == (ROOT / "dashboards" / "run.json").read_bytes()


def test_the_dashboards_are_those_that_links_and_bookmarks_name() -> None:
    """Their uids never change, nobody edits them in Grafana, and each leads to the others."""
    assert {name: board["uid"] for name, board in BOARDS.items()} == UIDS
    for board in BOARDS.values():
        assert board["editable"] is False
        assert board["title"].startswith("runspan / ")
        assert len(board["description"]) > 40
        assert board["tags"] == ["runspan"]
        assert [(link["type"], link["tags"]) for link in board["links"]] == [("dashboards", ["runspan"])]


@pytest.fixture(scope="module")
def _plugins() -> None:
    register_default_plugins()


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize("name", BOARDS)
def test_the_sdk_reads_a_dashboard_and_writes_it_the_same(name: str) -> None:
    """Nothing in the file is unknown to Grafana's own types, or it would be gone after the round trip."""
    board = Dashboard.from_json(json.loads(json.dumps(BOARDS[name])))
    assert json.loads(json.dumps(board, cls=JSONEncoder)) == BOARDS[name]


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize("name", BOARDS)
def test_every_value_has_the_type_of_grafanas_schema(name: str) -> None:
    """Texts, numbers, enumerations and nested objects are what the SDK's models declare."""
    wrong = list(misfits(Dashboard.from_json(json.loads(json.dumps(BOARDS[name]))), Dashboard, name))
    assert wrong == []
    broken = json.loads(json.dumps(BOARDS[name]))
    broken["refresh"] = 30
    assert list(misfits(Dashboard.from_json(broken), Dashboard, name)) == [f"{name}.refresh: 30 is no str"]


def misfits(value: Any, kind: Any, place: str) -> typing.Iterator[str]:
    """Where a model object holds a value of another type than its class declares."""
    origin = typing.get_origin(kind)
    if kind in {Any, object} or (kind is float and type(value) is int):
        return
    if origin in {typing.Union, types.UnionType}:
        tried = [list(misfits(value, one, place)) for one in typing.get_args(kind)]
        yield from min(tried, key=len) if all(tried) else []
    elif origin is typing.Literal:
        if value not in typing.get_args(kind):
            yield f"{place}: {value!r} is none of {typing.get_args(kind)}"
    elif origin is list:
        if not isinstance(value, list):
            yield f"{place}: {value!r} is no list"
            return
        for position, item in enumerate(value):
            yield from misfits(item, typing.get_args(kind)[0], f"{place}[{position}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{place}: {value!r} is no object"
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value not in {member.value for member in kind}:
            yield f"{place}: {value!r} is no {kind.__name__}"
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        if isinstance(value, dict) and hasattr(kind, "from_json"):
            # The SDK leaves some parts as they came; its reader knows their members.
            yield from misfits(kind.from_json(value), kind, place)
        else:
            yield f"{place}: {value!r} is no {getattr(kind, '__name__', kind)}"
    elif hasattr(kind, "from_json"):
        for member, declared in typing.get_type_hints(type(value)).items():
            if hasattr(value, member):
                yield from misfits(getattr(value, member), declared, f"{place}.{member}")


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_panel_says_what_it_shows(name: str, panel: dict[str, Any]) -> None:
    """It has a title, a description of whole sentences and a unit, and asks something."""
    assert panel["title"]
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", panel["description"]), panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_panel_says_what_it_means_when_it_is_empty(name: str, panel: dict[str, Any]) -> None:
    """Grafana shows ``noValue`` in place of No data: words for a number, a sentence elsewhere. It would fill the empty
    cells of a table too, which stay empty."""
    text = panel["fieldConfig"]["defaults"]["noValue"]
    assert re.fullmatch(r"[a-z]+( [A-Za-z]+)?" if panel["type"] == "stat" else r"[A-Z].{9,}\.", text), text
    cells = {"id": "noValue", "value": ""}
    everywhere = [each for each in panel["fieldConfig"]["overrides"] if each["matcher"]["options"] == ".*"]
    assert everywhere == (
        [{"matcher": {"id": "byRegexp", "options": ".*"}, "properties": [cells]}] if panel["type"] == "table" else []
    )


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_unit_is_that_of_what_is_asked(name: str, panel: dict[str, Any]) -> None:
    """Of each column of a table and of each other query of Prometheus."""
    if panel["datasource"]["type"] != "prometheus":
        return
    units = {None: panel["fieldConfig"]["defaults"]["unit"]}
    for override in panel["fieldConfig"]["overrides"]:
        for each in override["properties"]:
            if each["id"] == "unit":
                units[override["matcher"]["options"]] = each["value"]
    renamed = {
        old: new
        for change in panel.get("transformations", ())
        for old, new in change["options"].get("renameByName", {}).items()
    }
    for target in panel["targets"]:
        column = renamed.get(f"Value #{target['refId']}") if len(panel["targets"]) > 1 else None
        unit = units.get(column, units[None])
        assert unit in allowed(target["expr"]), f"{target['expr']}: {unit}"


def allowed(expression: str) -> set[str]:
    """The units that an expression can have, by its metrics and by what is done with them."""
    unscaled = re.sub(r"\d+ / \$__rate_interval_ms", "", expression)
    is_money = "runspan_cost_USD" in expression
    if " / " in unscaled:
        return {"currencyUSD"} if is_money else {"percentunit"}
    if is_money:
        return {"currencyUSD"}
    if "histogram_quantile" in expression:
        return {"s"}
    if unscaled != expression or re.search(r"\brate\(", expression):
        return {"cpm", "cps", "reqps", "short"}
    found = names(expression)
    if any(name.endswith("_seconds") for name in found):
        return {"s"}
    return {"bytes"} if any(name.endswith(("_bytes", "_memory_rss")) for name in found) else {"short"}


def test_a_workflow_leads_to_its_counts_and_its_runs() -> None:
    """In every table of workflows, whatever is in the id."""
    columns = [
        (override["matcher"]["options"], [link["url"] for each in override["properties"] for link in each["value"]])
        for _, panel in every_panel()
        if "runspan_workflow_id" in json.dumps(panel.get("transformations", ()))
        for override in panel["fieldConfig"]["overrides"]
        if override["properties"][0]["id"] == "links" and panel["datasource"]["type"] == "prometheus"
    ]
    assert len(columns) > 4
    for column, (overview, runs) in columns:
        assert column == "Workflow"
        assert overview.startswith("/d/runspan-overview?var-workflow=${__value.raw:percentencode}&")
        assert runs.startswith("${runspan_url}/?workflowId=${__value.raw:percentencode}")


@pytest.mark.parametrize("name", BOARDS)
def test_links_to_lists_have_parameters_of_the_runs_page(name: str) -> None:
    """And values that the API takes."""
    for query in re.findall(r"\$\{runspan_url\}/\?([^\"]*)", json.dumps(BOARDS[name])):
        asked = dict(pair.split("=") for pair in query.split("&"))
        asked["workflowId"] = asked.get("workflowId", "wf").replace("${__value.raw:percentencode}", "wf")
        assert RunsQuery.model_validate(asked).model_dump(exclude_none=True).keys() >= asked.keys()


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_panels_overlap(name: str) -> None:
    """Every panel has its own place inside of the grid's 24 columns, and its own id; titles name one panel."""
    board = BOARDS[name]
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert cells
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in panels(board)]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", BOARDS)
def test_every_data_source_is_a_variable(name: str) -> None:
    """Panels, queries and variables name a variable of the kind that they ask, never the uid of somebody's Grafana."""
    board = BOARDS[name]
    kinds = {each["name"]: each["query"] for each in board["templating"]["list"] if each["type"] == "datasource"}
    places = [*panels(board), *[target for panel in panels(board) for target in panel["targets"]]]
    places += [each for each in board["templating"]["list"] if each["type"] == "query"]
    for place in places:
        source = place["datasource"]
        assert kinds[source["uid"].removeprefix("${").removesuffix("}")] == source["type"]
    assert len(places) > 4


@pytest.mark.parametrize("name", BOARDS)
def test_variables_are_defined_and_used(name: str) -> None:
    """A variable that is used exists, and one that exists is used and says what it is for."""
    board = BOARDS[name]
    defined = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps(board)
    used = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"\$(\w+)", text))
    assert used - BUILT_IN == defined
    for variable in board["templating"]["list"]:
        assert variable["label"]
        assert variable["description"].endswith(".")


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_windows_follow_the_zoom(name: str, panel: dict[str, Any]) -> None:
    """A rate over time uses the interval that fits the panel, a number the whole range; never a fixed one."""
    for target in panel["targets"]:
        for window in re.findall(r"\[([^\]\"]+)\]", target.get("expr", "")):
            if window != "45":
                assert window == ("$__range" if target.get("instant") else "$__rate_interval")


def test_links_between_dashboards_lead_to_one() -> None:
    """Every path ``/d/…`` in a data link names a dashboard of ours, and its variables are of that dashboard."""
    found = set()
    for board in BOARDS.values():
        for uid, query in re.findall(r"/d/([\w-]+)\?([^\"]*)", json.dumps(board)):
            target = next(other for other in BOARDS.values() if other["uid"] == uid)
            known = {variable["name"] for variable in target["templating"]["list"]}
            wanted = set(re.findall(r"var-(\w+)=", query)) | set(re.findall(r"\{(\w+):queryparam", query))
            assert wanted <= known
            found.add(uid)
    assert found == {"runspan-run", "runspan-overview"}


def test_run_ids_lead_to_the_trace_the_document_and_the_page() -> None:
    """In every table of spans the run id has the three links, and ids with odd characters are escaped in them."""
    tables = [
        panel for _, panel in every_panel() if panel["type"] == "table" and panel["datasource"]["type"] == "tempo"
    ]
    assert len(tables) > 5
    for panel in tables:
        (override,) = [
            each for each in panel["fieldConfig"]["overrides"] if each["matcher"]["options"] == "runspan.run.id"
        ]
        (links,) = [each["value"] for each in override["properties"] if each["id"] == "links"]
        urls = [link["url"] for link in links]
        assert urls[0].startswith("/d/runspan-run?var-trace_id=${__data.fields.traceIdHidden}")
        for url, path in zip(urls[1:], ("/api/v1/runs/", "/runs/"), strict=True):
            assert url == f'${{runspan_url}}{path}${{__data.fields["runspan.run.id"]:percentencode}}'


def test_the_drill_down_shows_trace_graph_steps_and_document() -> None:
    """The trace by its id, the same as a graph, its steps, and the trace in a Jaeger."""
    kinds = [(panel["type"], panel["datasource"]["type"]) for panel in panels(BOARDS["run.json"])]
    assert ("traces", "tempo") in kinds
    assert ("nodeGraph", "tempo") in kinds
    assert ("traces", "jaeger") in kinds
    queries = [panel["targets"][0]["query"] for panel in panels(BOARDS["run.json"])]
    assert queries.count("${trace_id}") == 3
    assert any('instrumentation:name = "runspan.step"' in query for query in queries)
