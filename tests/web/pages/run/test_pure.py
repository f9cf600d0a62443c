"""The pure modules of the run page, called in Chromium as the page calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from support.cli import SAMPLES
from web.pages.run.documents import EXACT_OUTPUT, at, document, exact_run, loop_run, step

Call = Callable[..., Any]

LAYOUT = """async (m, text) => {
  const { indexRun } = await import(document.documentElement.dataset.static + "/run/document.js");
  return m.layoutSteps(indexRun(text).steps);
}"""
STATS = LAYOUT.replace("m.layoutSteps(indexRun(text).steps)", "m.runStats(indexRun(text))")
INDEX = "(m, text) => m.indexRun(text)"


def answer(text: str) -> str:
    return '{"success":true,"data":' + text + "}"


def placed(module: Call, *steps: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of these steps by their keys."""
    board = module("layout.js", LAYOUT, answer(json.dumps(document("r", list(steps)))))
    return {node["key"]: node for node in board["nodes"]}


def row(nodes: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The keys from the top down, those side by side from the left."""
    rows: dict[float, list[str]] = {}
    for key, node in sorted(nodes.items(), key=lambda item: (item[1]["y"], item[1]["x"])):
        rows.setdefault(node["y"], []).append(key)
    return list(rows.values())


def test_children_keep_every_text(module: Call) -> None:
    """Values are found by their own text: duplicate keys, huge numbers, escapes and white space included."""
    found = module(
        "json.js",
        """(m, text) => m.children(text, 0).items.map((child) =>
          [text.slice(child.keyStart, child.keyEnd), text.slice(child.start, child.end)])""",
        EXACT_OUTPUT,
    )
    assert found == [
        ['"price"', "12.10"],
        ['"huge"', "1e400"],
        ['"power"', "1180591620717411303424"],
        ['"zero"', "-0.0"],
        ['"same"', "1"],
        ['"same"', "2"],
        ['"escaped"', '"\\u0000 \\/ \\u00e9 \\ud800"'],
        ['"plain"', '"é 😀 日本"'],
        ['"deep"', "[[[[[]]]]]"],
        ['"empty"', "{ }"],
        ['""', "null"],
    ]


@pytest.mark.parametrize("text", ['"a\\\\"', '"\\""', '"\\\\\\""', "[[],[{}]]", "-1.5e3", "true", '{"a":"]}"}'])
def test_a_value_ends_where_it_ends(module: Call, text: str) -> None:
    """Escaped quotes and brackets in strings end nothing."""
    assert module("json.js", "(m, text) => m.skipValue(text, 0)", text + ',"next"') == len(text)


@pytest.mark.parametrize("text", ['"abc', '"abc\\"', "[1,2", '{"a":[}', '{"a":1', ""])
def test_a_text_that_ends_early_is_refused(module: Call, text: str) -> None:
    """A cut text is a SyntaxError, not an endless loop or a wrong value."""
    script = """(m, text) => {
      try {
        return text.startsWith("{") ? m.children(text, 0) : m.skipValue(text, 0);
      } catch (error) {
        return error.name;
      }
    }"""
    assert module("json.js", script, text) == "SyntaxError"


def test_nesting_needs_no_stack(module: Call) -> None:
    """A payload nested a million deep is walked."""
    assert module("json.js", "(m, n) => m.skipValue('['.repeat(n) + ']'.repeat(n), 0)", 1_000_000) == 2_000_000


def test_the_way_to_a_position(module: Call) -> None:
    """A position in a text is found as the places of the children on the way, in lists longer than a page too."""
    text = json.dumps({"a": 1, "b": [{"c": number} for number in range(700)]})
    script = "(m, [text, at]) => m.pathTo(text, 0, at).map((step) => step.index)"
    assert module("json.js", script, [text, text.index("650")]) == [1, 650, 0]
    assert module("json.js", script, [text, text.index('"b"')]) == [1]


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_sample_is_indexed_and_placed(module: Call, path: Any) -> None:
    """Each step is found with its payloads' own texts and stands on the canvas once, and no two boxes overlap."""
    text = path.read_text()
    parsed = json.loads(text)
    run = module("document.js", INDEX, answer(text))
    assert [found["id"] for found in run["steps"]] == [one["id"] for one in parsed["steps"]]
    whole = answer(text)
    for found, one in zip(run["steps"], parsed["steps"], strict=True):
        for payload in found["payloads"]:
            # Chromium counts in UTF-16.
            units = whole.encode("utf-16-le")[2 * payload["start"] : 2 * payload["end"]].decode("utf-16-le")
            assert json.loads(units) == one[payload["key"]]
    board = module("layout.js", LAYOUT, whole)
    assert sorted(index for node in board["nodes"] for index in node["steps"]) == list(range(len(parsed["steps"])))
    assert_apart(board)


def assert_apart(board: dict[str, Any]) -> None:
    """No two nodes overlap, and all are on the board."""
    nodes = board["nodes"]
    for place, one in enumerate(nodes):
        assert one["x"] >= 0
        assert one["y"] >= 0
        assert one["x"] + one["w"] <= board["width"]
        assert one["y"] + one["h"] <= board["height"]
        for other in nodes[:place]:
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or below, (one["key"], other["key"])


def test_overlapping_steps_are_side_by_side_and_sequences_below(module: Call) -> None:
    """A fork of three and its join: one above, three side by side in their order, one below, all about one axis."""
    nodes = placed(module, step("a", 0, 10), step("b", 11, 30), step("c", 12, 50), step("d", 13, 40), step("e", 51, 60))
    assert row(nodes) == [["a"], ["b", "c", "d"], ["e"]]
    assert nodes["a"]["x"] == nodes["c"]["x"] == nodes["e"]["x"]


def test_branches_keep_their_columns(module: Call) -> None:
    """Two successive steps parallel to one long step share a column, and the long one has another."""
    nodes = placed(module, step("a", 0, 1), step("b", 2, 5), step("c", 2, 20), step("d", 6, 20), step("e", 21, 22))
    assert row(nodes) == [["a"], ["b", "c"], ["d"], ["e"]]
    assert nodes["b"]["x"] == nodes["d"]["x"] != nodes["c"]["x"]


def test_touching_times_are_a_sequence(module: Call) -> None:
    """A step that begins in the instant in which another ends comes after it, also when it takes no time."""
    assert row(placed(module, step("a", 0, 5), step("b", 5, 5), step("c", 5, 9))) == [["a"], ["b"], ["c"]]


def test_nanoseconds_decide(module: Call) -> None:
    """Two steps that overlap by ten nanoseconds stand beside each other."""
    times = {"startedAt": "2026-01-01T00:00:00.000000010Z", "completedAt": "2026-01-01T00:00:00.000000030Z"}
    other = {"startedAt": "2026-01-01T00:00:00.000000020Z", "completedAt": "2026-01-01T00:00:00.000000040Z"}
    later = {"startedAt": "2026-01-01T01:00:00.000000040+01:00", "completedAt": "2026-01-01T01:00:01+01:00"}
    plain = {"type": "action", "status": "completed"}
    nodes = placed(module, plain | {"id": "a"} | times, plain | {"id": "b"} | other, plain | {"id": "c"} | later)
    assert row(nodes) == [["a", "b"], ["c"]]


def test_steps_without_times_follow_the_document(module: Call) -> None:
    """A skipped branch stands beside what ran instead; what comes at the end stands below."""
    nodes = placed(
        module, step("if", 0, 1), step("no"), step("no2"), step("yes", 2, 3), step("end", 4, 5), step("last")
    )
    assert row(nodes) == [["if"], ["yes", "no"], ["end", "no2"], ["last"]]
    assert row(placed(module, step("a"), step("b"), step("c"))) == [["a"], ["b"], ["c"]]


def test_nothing_follows_an_unfinished_step(module: Call) -> None:
    """Open steps stand beside what began since, and pending ones below them all."""
    pending = {"status": "pending"}
    nodes = placed(module, step("a", 0, 1), step("b", 2), step("c", 3, 9), step("d", **pending))
    assert row(nodes) == [["a"], ["b", "c"], ["d"]]


def test_a_loop_is_one_frame_with_one_node_for_each_step(module: Call) -> None:
    """Two hundred rounds of two steps are two nodes in the frame of the loop's own step, in the order of a round."""
    text = answer(json.dumps(loop_run("r", 200, bad=3)))
    board = module("layout.js", LAYOUT, text)
    kinds = {node["key"]: (node["kind"], len(node["steps"])) for node in board["nodes"]}
    assert kinds == {"loop each": ("header", 1), "fetch": ("loop", 200), "store": ("loop", 200), "report": ("step", 1)}
    assert len(board["frames"]) == 1
    assert [node["key"] for node in board["nodes"]] == ["loop each", "fetch", "store", "report"]


def nested_loops() -> list[dict[str, Any]]:
    """Two rounds of a step, a loop of three rounds, and a step after it."""
    steps = [step("outer", 0, 100, type="loop")]
    for begin in (1, 51):
        steps.append(step("open", begin, begin + 2))
        steps.append(step("inner", begin + 3, begin + 33, type="loop"))
        steps += [step("line", begin + 4 + 9 * number, begin + 11 + 9 * number) for number in range(3)]
        steps.append(step("close", begin + 34, begin + 40))
    return [*steps, step("end", 101, 102)]


def test_a_loop_in_a_loop_has_a_frame_in_its_frame(module: Call) -> None:
    """With its own step, of one execution in each round of the outer loop, as the title. The timeline nests too."""
    text = answer(json.dumps(document("r", nested_loops())))
    board = module("layout.js", LAYOUT, text)
    kinds = {node["key"]: (node["kind"], len(node["steps"])) for node in board["nodes"]}
    assert kinds["loop outer"] == ("header", 1)
    assert kinds["loop inner"] == ("header", 2)
    assert kinds["line"] == ("loop", 6)
    assert_apart({**board, "nodes": [node for node in board["nodes"] if node["kind"] != "header"]})
    outer, inner = sorted(board["frames"], key=lambda frame: -frame["w"])
    keys = ["open", "line", "close", "end"]
    inside = {key: [frame for frame in (outer, inner) if is_in(node, frame)] for key, node in placed_nodes(board, keys)}
    assert inside == {"open": [outer], "line": [outer, inner], "close": [outer], "end": []}
    assert row(dict(placed_nodes(board, keys))) == [["open"], ["line"], ["close"], ["end"]]
    rows = module(
        "timeline-rows.js",
        LAYOUT.replace("m.layoutSteps(indexRun(text).steps)", "m.timelineRows(indexRun(text))"),
        text,
    )
    assert [(row["key"], row["level"]) for row in rows] == [
        ("loop outer", 1),
        ("open", 2),
        ("loop inner", 2),
        ("line", 3),
        ("close", 2),
        ("end", 1),
    ]


def placed_nodes(board: dict[str, Any], keys: list[str]) -> list[tuple[str, dict[str, Any]]]:
    return [(node["key"], node) for node in board["nodes"] if node["key"] in keys]


def is_in(node: dict[str, Any], frame: dict[str, Any]) -> bool:
    return bool(frame["x"] < node["x"] < frame["x"] + frame["w"] and frame["y"] < node["y"] < frame["y"] + frame["h"])


def test_a_loop_without_its_own_step_has_a_frame(module: Call) -> None:
    """Steps that take turns are a loop, with the step that only one round took; another repeated step later is none."""
    turns = [step("a", 0, 1), step("b", 1, 2), step("c", 2, 3), step("a", 3, 4), step("b", 4, 5), step("d", 6, 7)]
    again = [step("e", 7, 8), step("e", 8, 9)]
    board = module("layout.js", LAYOUT, answer(json.dumps(document("r", turns + again))))
    [frame] = board["frames"]
    inside = [node["key"] for node in board["nodes"] if frame["x"] < node["x"] and node["y"] < frame["y"] + frame["h"]]
    assert inside == ["a", "b", "c"]


def test_wide_rows_are_wrapped(module: Call) -> None:
    """Two hundred steps at once are a block that can be read, not one row of two hundred."""
    steps = [step("go", 0, 1), *[step(f"s{number}", 2, 10) for number in range(200)], step("end", 11, 12)]
    board = module("layout.js", LAYOUT, answer(json.dumps(document("r", steps))))
    assert board["width"] < 5000
    assert_apart(board)
    nodes = {node["key"]: node for node in board["nodes"]}
    assert max(node["y"] for key, node in nodes.items() if key.startswith("s")) < nodes["end"]["y"]
    [block] = board["frames"]
    assert block["y"] + block["h"] < nodes["end"]["y"]
    assert len(board["lines"]) == 4  # to the block and from it, not to each of the 200


def test_any_times_are_placed_without_contradiction(module: Call) -> None:
    """Whatever the times: nothing is lost, no boxes overlap, and what ended before another began is above it."""
    random = Random(7)
    for _ in range(40):
        steps = []
        for number in range(random.randrange(1, 40)):
            start = random.randrange(0, 60)
            times = (None, None) if random.random() < 0.2 else (start, start + random.randrange(0, 20))
            steps.append(step(f"s{number}", *times))
        board = module("layout.js", LAYOUT, answer(json.dumps(document("r", steps))))
        nodes = {node["key"]: node for node in board["nodes"]}
        assert len(nodes) == len(steps)
        assert_apart(board)
        timed = [one for one in steps if "startedAt" in one]
        for one in timed:
            for other in timed:
                if one["completedAt"] < other["startedAt"]:
                    assert nodes[one["id"]]["y"] < nodes[other["id"]]["y"]


def test_stats_of_a_run(module: Call) -> None:
    """Tokens and cost count agents once, the slowest sum rounds and leave out loops, the first failure is the first."""
    usage = {"promptTokens": 10, "completionTokens": 5, "model": "m", "estimatedCostUsd": 0.25}
    steps = [
        step("late", 50, 90, status="failed", error={"message": "second"}),
        step("early", 0, 40, status="failed", error="first"),
        step("all", 0, 99, type="loop"),
        step("agent", 0, 10, type="agent", output={"usage": usage}),
        step("agent", 10, 20, type="agent", output={"usage": usage}),
        step("child", 0, 60, type="sub-workflow", output={"runId": "c", "usage": usage}),
        step("round", 0, 45),
        step("round", 45, 70),
    ]
    stats = module("run-stats.js", STATS, answer(json.dumps(document("r", steps, status="failed"))))
    assert stats["usage"] == {"input": 20, "output": 10, "total": 30, "cost": 0.5, "calls": 2}
    slowest = [(slow["index"], slow["ms"], slow["count"]) for slow in stats["slowest"]]
    assert slowest == [(6, 70, 2), (5, 60, 1), (0, 40, 1), (1, 40, 1), (3, 20, 2)]
    assert (stats["open"], stats["waiting"]) == ([], None)
    assert stats["failure"] == {
        "index": 1,
        "error": {"code": "", "message": "first", "step": ""},
        "count": 2,
        "tolerated": False,
    }


def test_open_steps_are_listed_longest_first(module: Call) -> None:
    """Those that began. A suspended run waits for the one that is suspended or waits by its type, else the longest."""
    steps = [
        step("done", 0, 1),
        step("late", 9),
        step("ask", 5, type="approval"),
        step("early", 2, status="retrying"),
        step("soon", status="pending"),
    ]
    for status, waiting in (("running", None), ("suspended", 2), ("completed", None)):
        found = module("run-stats.js", STATS, answer(json.dumps(document("r", steps, status=status, completedAt=None))))
        assert (found["open"], found["waiting"]) == ([] if status == "completed" else [3, 2, 1], waiting)


@pytest.mark.parametrize(
    ("status", "late", "text"),
    [
        ("running", 14 * 60, None),
        ("running", 16 * 60, "Last seen 16 minutes ago"),
        ("pending", 5 * 3600, "Last seen 5 hours ago"),
        ("running", 22.5 * 86400, "Last seen 22 days ago, probably dead"),
        ("suspended", 22.5 * 86400, None),
    ],
)
def test_a_silent_run_is_told_from_a_live_one(module: Call, status: str, late: float, text: str | None) -> None:
    """By when it should have been observed again, which is later for a run that has gone on for long."""
    script = """(m, [run, observed, now]) => {
      const silence = m.silenceOf(run, observed, now);
      return silence && m.silenceText(silence);
    }"""
    started, observed = 1_700_000_000, 1_700_000_000 + 160
    moment = datetime.fromtimestamp(observed, UTC).isoformat().replace("+00:00", "Z")
    run = {"status": status, "startedAt": datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z")}
    assert module("silence.js", script, [run, moment, (observed + 30 + late) * 1000]) == text
    long = run | {"startedAt": datetime.fromtimestamp(observed - 16 * 86400 * 30, UTC).isoformat()}
    assert module("silence.js", script, [long, moment, (observed + 29 * 86400) * 1000]) is None
    assert module("silence.js", script, [run, "", (observed + 30 + late) * 1000]) is None


def test_the_exact_document_is_located(module: Call) -> None:
    """The output's place in the answer is its own text, whatever is in it."""
    text = answer(exact_run("r").decode())
    script = "(m, text) => { const p = m.indexRun(text).steps[0].payloads[0]; return text.slice(p.start, p.end); }"
    assert module("document.js", script, text) == EXACT_OUTPUT


def test_a_missing_end_follows_from_the_duration(module: Call) -> None:
    """A finished step gets a missing end from its duration, an unfinished one has none; no end precedes its start."""
    steps = [
        step("full", 0, 10),
        {"id": "short", "status": "completed", "startedAt": at(5), "durationMs": 20},
        {"id": "bare", "status": "failed", "startedAt": at(5)},
        {"id": "open", "status": "running", "startedAt": at(5), "durationMs": 3},
        {"id": "back", "status": "completed", "startedAt": at(9), "completedAt": at(2), "durationMs": -7},
        {"id": "never", "status": "skipped"},
    ]
    run = module("document.js", INDEX, answer(json.dumps(document("r", steps))))
    places = {found["id"]: (found["from"], found["to"]) for found in run["steps"]}
    assert places == {
        "full": (0, 10),
        "short": (5, 25),
        "bare": (5, 5),
        "open": (5, None),
        "back": (9, 9),
        "never": (None, None),
    }


def test_rows_of_text_cut_no_letter(module: Call) -> None:
    """Rows join to the whole text, are no wider than allowed, and cut neither pairs nor marks from their letters."""
    text = "ab\ncafe\u0301 " + "😀" * 30 + "日本語" * 20 + "\r\n\t" + "x" * 100 + "\n\nend"
    script = """(m, text) => {
      const rows = new m.TextRows(text, 0, text.length, 20);
      rows.extend(text.length);
      return rows.starts.map((_, row) => text.slice(...rows.bounds(row)));
    }"""
    rows = module("text-wrap.js", script, text)
    assert "".join(rows) == text
    assert all(not line.startswith("\u0301") for line in rows)
    assert all(len(line.rstrip("\r\n")) <= 20 for line in rows)
    assert rows[:2] == ["ab\n", "cafe\u0301 " + "😀" * 7]


def test_search_ignores_case_and_takes_no_pattern(module: Call) -> None:
    """What is searched is text: dots and brackets stand for themselves, and nothing outside of the part is found."""
    script = "(m, [text, needle]) => m.findAll(text, 2, text.length - 2, needle)"
    assert module("document.js", script, ["abABab", "AB"]) == [2]
    assert module("document.js", script, ["  a.c abc [x] (", "a.C"]) == [2]
    assert module("document.js", script, ["  a.c abc [x] (", "[X]"]) == [10]
    assert module("document.js", script, ["whatever", ""]) == []


def test_ticks_are_round(module: Call) -> None:
    """The time axis steps in units that people count in, from nanoseconds to days."""
    steps = module(
        "time-axis.js", "(m, values) => values.map(m.tickStep)", [0.00002, 0.3, 7, 480, 1300, 40_000, 4e6, 9e7, 3e8]
    )
    assert steps == pytest.approx([0.00002, 0.5, 10, 500, 2000, 60_000, 7.2e6, 1.728e8, 4.32e8])


@pytest.mark.parametrize(
    ("state", "fragment"),
    [
        ({"view": "canvas", "step": None, "execution": 1, "tab": None}, ""),
        ({"view": "timeline", "step": "a b&c=#/é", "execution": 3, "tab": "in put"}, None),
        ({"view": "canvas", "step": "", "execution": 1, "tab": None}, "#step="),
    ],
)
def test_the_fragment_holds_the_state(module: Call, state: dict[str, Any], fragment: str | None) -> None:
    """What is written into the address is read from it again, whatever letters a step's id has."""
    written, read = module(
        "url-state.js", "(m, s) => [m.formatUrlState(s), m.parseUrlState(m.formatUrlState(s))]", state
    )
    assert read == state
    assert fragment is None or written == fragment


@pytest.mark.parametrize("fragment", ["#view=invalid&execution=-2", "#execution=x", "#%E0%A4%A&view"])
def test_an_invalid_fragment_is_the_default_state(module: Call, fragment: str) -> None:
    """Invalid values in the fragment are replaced by defaults."""
    read = module("url-state.js", "(m, text) => m.parseUrlState(text)", fragment)
    assert read == {"view": "canvas", "step": None, "execution": 1, "tab": None}
