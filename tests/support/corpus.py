"""The documents that the codec, OTLP, the server and every backend must carry in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from runspan import Run

SAMPLES = Path(__file__).parents[2] / "examples" / "runs"

PAYLOADS: dict[str, str] = {
    "null": "null",
    "true": "true",
    "false": "false",
    "empty string": '""',
    "empty object": "{}",
    "empty array": "[]",
    "zero": "0",
    "minus zero": "-0",
    "minus zero float": "-0.0",
    "trailing zero": "12.10",
    "2**70": str(2**70),
    "int64 edges": f"[{2**63 - 1},{2**63},{-(2**63)},{-(2**63) - 1}]",
    "exponents": "[1e400,1E5,1e+5,1e-5,-1.5E-300,1e-999]",
    "long fraction": "3." + "14159" * 400,
    "long integer": "9" * 5000,
    "spaces": '{ "a" : 1 ,\t"b":[ 1,2 , 3 ]\r\n}',
    "leading and trailing space inside": '[ "  x  " ]',
    "simple escapes": r'"\" \\ \/ \b \f \n \r \t"',
    "unicode escapes": r'"\u0041\u00e9\u20AC\ud83d\ude00"',
    "escaped NUL": r'"a\u0000b"',
    "NUL key": r'{"\u0000":"\u0000"}',
    "lone high surrogate": r'"\ud800"',
    "lone low surrogate": r'"\uDFFF x"',
    "surrogates the wrong way round": r'"\ude00\ud83d"',
    "non-characters": '"\ufffe\uffff\U0010ffff"',
    "delete and C1": '"\x7f\x80\x9f"',
    "line separators": '"\u2028\u2029\u0085"',
    "right to left and joiners": '"\u202eabc\u202c \u200d\u200b\ufeff"',
    "combining": '"e\u0301 \u0065\u0301\u0323"',
    "emoji": '"👩‍👩‍👧‍👦 🇩🇪 🏴‍☠️"',
    "duplicate keys": '{"a":1,"a":2,"b":{"a":3,"a":4}}',
    "escaped duplicate keys": r'{"a":1,"\u0061":2}',
    "empty keys": '{"":{"":{"":[]}}}',
    "key order": '{"z":1,"a":2,"m":3}',
    "keys like runspan's": '{"runspan.digest":"x","error":true,"span.kind":"server","otel.status_code":"ERROR"}',
    "JSON in a string": json.dumps(json.dumps({"id": "run_1", "steps": [{"id": "x"}]})),
    "script": "\"<script>alert(1)</script>' onload='x'\"",
    "depth 900": "[" * 900 + "]" * 900,
    "depth 5000": "[" * 5000 + "1" + "]" * 5000,
    "deep objects": '{"a":' * 3000 + "null" + "}" * 3000,
    "1999 bytes": '"' + "x" * 1997 + '"',
    "2000 bytes": '"' + "x" * 1998 + '"',
    "2001 bytes": '"' + "x" * 1999 + '"',
    "2048 bytes": '"' + "x" * 2046 + '"',
    "cut before a two-byte character": '"' + "x" * 1998 + "é" * 3000 + '"',
    "cut inside three-byte characters": '"x' + "€" * 3000 + '"',
    "cut inside four-byte characters": '"xx' + "😀" * 3000 + '"',
    "300 KB string": '"' + "abcdefghij" * 30_000 + '"',
    "wide array": "[" + ",".join(map(str, range(20_000))) + "]",
    "wide object": "{" + ",".join(f'"k{n}":{n}' for n in range(5000)) + "}",
}
"""Valid JSON that careless software changes, as in JSONTestSuite's ``y_`` files and more."""

BAD_PAYLOADS: dict[str, str] = {
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "leading zero": "01",
    "minus leading zero": "-01",
    "no fraction": "1.",
    "no integer": ".5",
    "plus": "+1",
    "bare minus": "-",
    "no exponent": "1e",
    "hex": "0x1",
    "trailing comma in array": "[1,]",
    "trailing comma in object": '{"a":1,}',
    "missing comma": "[1 2]",
    "missing colon": '{"a" 1}',
    "single quotes": "'a'",
    "bare key": "{a:1}",
    "number key": "{1:2}",
    "comment": "[1/*x*/]",
    "raw newline in string": '"a\nb"',
    "raw tab in string": '"a\tb"',
    "raw control": '"\x01"',
    "unknown escape": r'"\x41"',
    "short unicode escape": r'"\u12"',
    "bad unicode escape": r'"\u00zz"',
    "open string": '"abc',
    "open array": "[1,2",
    "open object": '{"a":1',
    "closed twice": "[1]]",
    "wrong closer": "[1}",
    "misspelt": "tru",
    "capital": "True",
    "vertical tab": "[\v1]",
    "no-break space": "[\u00a01]",
    "nothing": "",
    "open and deep": "[" * 100_000,
}
"""Texts that are not JSON, as in JSONTestSuite's ``n_`` files."""

STEP = '{"id":"s1","name":"Step","type":"action","status":"completed","startedAt":"2026-01-15T09:00:01.200Z",' + (
    '"completedAt":"2026-01-15T09:00:02.800Z","durationMs":1600%s}'
)
RUN = '{"id":"run_1","workflowId":"wf_1","status":"completed","startedAt":"2026-01-15T09:00:01.000Z",' + (
    '"completedAt":"2026-01-15T09:00:04.500Z","durationMs":3500,"steps":[%s]%s}'
)


def with_payload(payload: str) -> str:
    """Return a document with the payload as input, output and error of run and step, and in unknown members."""
    step = STEP % f',"input":{payload},"output":{payload},"error":{payload},"x-step":{payload}'
    run = RUN % (step, f',"x-run":{payload}')
    return run.replace('"steps":', f'"input":{payload},"output":{payload},"error":{payload},"steps":', 1)


def _step(**members: Any) -> dict[str, Any]:
    return {"id": "s", "status": "completed", **members}


def _run(**members: Any) -> dict[str, Any]:
    return {"id": "run_x", "workflowId": "wf", "status": "completed", **members}


ENVELOPES: dict[str, dict[str, Any]] = {
    "only an id": {"id": "run_x"},
    "null everywhere": dict.fromkeys(
        (
            *("workflowId", "status", "triggerType", "startedAt", "completedAt", "durationMs"),
            *("input", "output", "error", "createdAt", "steps"),
        )
    )
    | {"id": "run_x"},
    "steps null in a step": _run(steps=[dict.fromkeys(("name", "type", "startedAt", "error")) | _step()]),
    "no steps": _run(),
    "empty steps": _run(steps=[]),
    "numbers for strings": _run(
        workflowId=5, triggerType=1.5, startedAt=1700000000, createdAt=[], steps=[_step(name=7)]
    ),
    "objects for strings": _run(workflowId={"a": 1}, steps=[_step(name={"a": [1]}, type=["x"], status={"s": 1})]),
    "strings for numbers": _run(durationMs="3500", steps=[_step(durationMs="x", attempt="2")]),
    "non-canonical durations": _run(
        durationMs=-1, steps=[_step(durationMs=d) for d in (0, -0.0, 1.5, 2**63, -(2**63), 2**64, True)]
    ),
    "unknown statuses": _run(status="queued", steps=[_step(status="waiting"), _step()]),
    "empty strings": _run(
        workflowId="", triggerType="", startedAt="", steps=[_step(id="", name="", type="", status="")]
    ),
    "long strings": _run(workflowId="w" * 3000, steps=[_step(id="i" * 600, name="é" * 5000, type="t" * 501)]),
    "same step twice": _run(steps=[_step(), _step(), _step(output=1), _step()]),
    "finished between open": _run(status="running", steps=[_step(status="running"), _step(), _step(status="pending")]),
    "open steps of a finished run": _run(status="failed", steps=[_step(status="failed"), _step(status="pending")]),
    "retrying": _run(
        status="running", steps=[_step(status="retrying", attempt=3, error={"code": "X", "message": "m"})]
    ),
    "zero length": _run(
        startedAt="2026-01-15T09:00:01.000Z",
        completedAt="2026-01-15T09:00:01.000Z",
        steps=[_step(startedAt="2026-01-15T09:00:01.000Z", completedAt="2026-01-15T09:00:01.000Z")],
    ),
    "ends before it starts": _run(
        startedAt="2026-01-15T09:00:02.000Z",
        completedAt="2026-01-15T09:00:01.000Z",
        steps=[_step(startedAt="2026-01-15T09:00:01.000Z", completedAt="2020-01-15T09:00:01.000Z")],
    ),
    "times of every form": _run(
        startedAt="2026-01-15T09:00:01Z",
        completedAt="2026-01-15T11:00:01.123456789+02:00",
        createdAt="2026-01-15T09:00:00.000-00:00",
        steps=[
            _step(startedAt=start, completedAt="2026-01-15T09:00:02.000Z")
            for start in (
                "2026-01-15T09:00:01.2Z",
                "2026-01-15T09:00:01.200000Z",
                "2026-01-15T09:00:01.2000000000000001Z",
                "2026-01-15t09:00:01.200z",
                "2026-01-15 09:00:01.200Z",
                "2026-01-15T09:00:01.200+00:00",
                "2026-01-15T09:00:60.000Z",
                "2026-01-15T24:00:00.000Z",
                "2026-02-30T09:00:01.200Z",
                "1969-12-31T23:59:59.999Z",
                "1970-01-01T00:00:00.000Z",
                "0001-01-01T00:00:00.000Z",
                "9999-12-31T23:59:59.999Z",
                "2262-04-11T23:47:16.854Z",
                "\uff12\uff10\uff12\uff16-01-15T09:00:01.200Z",
                "yesterday",
            )
        ],
    ),
    "attempts": _run(
        steps=[
            _step(
                attempt=2,
                attempts=[
                    {
                        "attempt": 1,
                        "status": "failed",
                        "startedAt": "2026-01-15T09:00:01.000Z",
                        "completedAt": "2026-01-15T09:00:02.000Z",
                        "error": {"code": "TIMEOUT", "message": "slow"},
                    },
                    {"attempt": 2, "startedAt": "2026-01-15T09:00:03.000Z", "completedAt": "2026-01-15T09:00:04.000Z"},
                    {"attempt": 3},
                ],
            )
        ]
    ),
    "invalid attempts": _run(
        steps=[_step(attempts={"a": 1}), _step(attempts=[1, "x"]), _step(attempts=[{"attempt": "1"}])]
    ),
    "sub-workflows": _run(
        parentRunId="run_parent",
        steps=[
            _step(id="a", type="sub-workflow", output={"runId": "run_child"}),
            _step(id="b", type="sub-workflow", output={"runId": 5}),
            _step(id="c", type="sub-workflow"),
        ],
    ),
    "usage": _run(
        steps=[
            _step(
                type="agent",
                output={
                    "usage": {
                        "promptTokens": 1250,
                        "completionTokens": 340,
                        "totalTokens": 1590,
                        "model": "claude-sonnet-4-6",
                        "estimatedCostUsd": 0.0095,
                    }
                },
            ),
            _step(id="b", type="agent", output={"usage": {"promptTokens": 2**80, "model": 5}}),
            _step(id="c", type="agent", output={"usage": {"promptTokens": -5, "estimatedCostUsd": -1}}),
            _step(id="d", type="agent", output="usage"),
        ]
    ),
    "errors of every form": _run(
        status="failed",
        error="boom",
        steps=[
            _step(status="failed", error=error)
            for error in (
                None,
                "text",
                {},
                {"code": 5},
                {"code": "", "message": "m" * 3000},
                [1],
                True,
                {"message": "é"},
            )
        ],
    ),
    "ids with quotes": {"id": 'run "x" \\ {y}\n é\u0000/..', "workflowId": 'wf "q" \\ {b}\n', "status": "completed"},
    "members like runspan's": _run(runspan={"digest": 1}, extra=1, steps=[_step(extra={"a": 1}, runspan=None)]),
    "ten thousand steps": _run(steps=[_step(id=f"s{n}") for n in range(10_000)]),
    "three thousand open steps": _run(
        status="running", steps=[_step(id=f"s{n}", status="pending") for n in range(3000)]
    ),
}
"""Documents whose envelope is unusual."""


def cases() -> dict[str, bytes]:
    """Return the JSON text of every case by name."""
    found = {f"sample {path.stem}": path.read_bytes() for path in sorted(SAMPLES.glob("*.json"))}
    found |= {f"payload {name}": with_payload(text).encode() for name, text in PAYLOADS.items()}
    found |= {f"envelope {name}": json.dumps(document).encode() for name, document in ENVELOPES.items()}
    return found


# Documents generated by hypothesis.

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
JSON_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_UTF8 = st.characters(exclude_categories=["Cs"])
_TIMES = (
    st.integers(0, 4_102_444_800_000).map(lambda ms: _iso(ms, 3))
    | st.integers(0, 4_102_444_800_000).map(lambda ms: _iso(ms, 6))
    | st.text(max_size=12)
    | st.none()
)


def _iso(ms: int, digits: int) -> str:
    from datetime import UTC, datetime, timedelta

    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06}"[:digits] + "Z"


def _optional(**members: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    return members


_STEP = st.fixed_dictionaries(
    {"id": st.text(_UTF8, max_size=12)},
    optional=_optional(
        name=st.text(max_size=12) | st.none() | st.integers(),
        type=st.sampled_from(["action", "agent", "loop", "sub-workflow", "slack", "brand-new"]),
        status=st.sampled_from(["pending", "running", "completed", "failed", "skipped", "retrying"]) | JSON_VALUES,
        startedAt=_TIMES,
        completedAt=_TIMES,
        durationMs=st.integers(-5, 10**6) | JSON_VALUES,
        attempt=st.integers(0, 5) | JSON_VALUES,
        input=JSON_VALUES,
        output=JSON_VALUES,
        error=st.none() | st.fixed_dictionaries({"code": st.text(max_size=8), "message": st.text(max_size=8)}),
        retryPolicy=JSON_VALUES,
        custom=JSON_VALUES,
    ),
)
DOCUMENTS = st.fixed_dictionaries(
    {"id": st.text(_UTF8, min_size=1, max_size=20)},
    optional=_optional(
        workflowId=st.text(max_size=12) | st.none(),
        status=st.sampled_from(
            ["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out", "odd"]
        ),
        triggerType=st.sampled_from(["webhook", "api", "schedule", "event", "manual"]) | JSON_VALUES,
        startedAt=_TIMES,
        completedAt=_TIMES,
        durationMs=st.integers(0, 10**9) | JSON_VALUES,
        input=JSON_VALUES,
        output=JSON_VALUES,
        error=JSON_VALUES,
        createdAt=_TIMES,
        steps=st.lists(_STEP, max_size=6) | st.none(),
        custom=JSON_VALUES,
        parentRunId=st.text(max_size=8),
    ),
)
"""Run documents as dicts, with most members optional and some non-canonical values."""

TEXTS = st.builds(
    lambda document, ascii_only, separators: json.dumps(document, ensure_ascii=ascii_only, separators=separators),
    DOCUMENTS,
    st.just(True),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", "\t:\n")]),
)
"""Run documents as JSON texts, with several kinds of white space."""


def runs() -> st.SearchStrategy[Run]:
    """Return a strategy for parsed documents."""
    return TEXTS.map(Run.from_json)
