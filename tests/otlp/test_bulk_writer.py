"""The fast writer writes the same bytes as ``encode`` and ``span_bytes``, whichever part of a run is unusual."""

from __future__ import annotations

from contextlib import suppress
from json import dumps
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runspan import Run, encode
from runspan.otlp import bulk_writer
from runspan.otlp.protobuf_writer import ScopedBytes, scoped_bytes, single_spans
from runspan.testing import generate
from support.corpus import cases, runs
from support.servers.finding import missing

CASES = cases()
TENANTS = ["", "acme"]


def write_run(run: Run, tenant: str = "", observed_at: int | None = None) -> list[ScopedBytes]:
    return single_spans(bulk_writer.write_run(run, tenant=tenant, observed_at=observed_at))


def reference(run: Run, tenant: str = "", observed_at: int | None = None) -> list[ScopedBytes]:
    return [scoped_bytes(span) for span in encode(run, tenant=tenant, observed_at=observed_at)]


def written_natively(run: Run) -> bool:
    """Whether the native writer writes the run itself."""
    if not bulk_writer.COMPILED:
        missing("compiled", "the package was built without its native part")
    return bulk_writer._writer("").write(run.text, bulk_writer._Details(run, "")) is not None


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("name", CASES)
def test_every_case(name: str, tenant: str) -> None:
    """Every case of the corpus is the same bytes, as it is and as canonical text."""
    run = Run.from_json(CASES[name])
    assert write_run(run, tenant=tenant, observed_at=7) == reference(run, tenant, 7)
    canonical = Run.from_json(run.text)
    assert write_run(canonical, tenant=tenant) == reference(canonical, tenant)


def test_generated_runs() -> None:
    """Realistic runs, finished and unfinished, are the same bytes."""
    for run in map(Run.from_json, generate(500, seed=5, unfinished=True)):
        assert write_run(run, observed_at=7) == reference(run, observed_at=7)


def test_finished_runs_are_written_natively() -> None:
    """The native part writes all realistic finished runs."""
    assert all(written_natively(Run.from_json(text)) for text in generate(500, seed=6))


def test_without_the_native_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python alone writes the same."""
    expected = [write_run(Run.from_json(text)) for text in generate(20, seed=7)]
    monkeypatch.setattr(bulk_writer, "COMPILED", False)
    assert [write_run(Run.from_json(text)) for text in generate(20, seed=7)] == expected


@given(runs().map(lambda run: Run.from_json(run.text)), st.sampled_from(TENANTS))
def test_any_document(run: Run, tenant: str) -> None:
    """Any generated document is the same bytes."""
    assert write_run(run, tenant=tenant) == reference(run, tenant)


def finished(times: st.SearchStrategy[Any]) -> st.SearchStrategy[Run]:
    """Return a strategy for finished runs with nearly usual members, most of which are written natively."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    json = st.one_of(st.integers(), text, st.just("x" * 3000), st.none(), st.just([{"a": ["}", '"\\', {}]}]))
    step = st.fixed_dictionaries(
        {
            "id": text | st.sampled_from("ab"),
            "status": st.sampled_from(["completed", "completed", "skipped", "failed", "pending"]),
        },
        optional={
            "name": text,
            "type": st.sampled_from(["action", "agent", "sub-workflow", "loop", "loop"]),
            "startedAt": times,
            "completedAt": times,
            "durationMs": st.integers(-5, 10**12) | st.sampled_from([10**17, 10**18, 10**19, 1.5]),
            "attempt": st.integers(0, 3),
            "input": json,
            "output": json | st.just({"usage": {"promptTokens": 5, "completionTokens": 7}, "runId": "child"}),
            "error": json,
            "retryPolicy": json,
        },
    )
    run = st.fixed_dictionaries(
        {
            "id": text.filter(bool),
            "status": st.sampled_from(["completed", "cancelled", "failed"]),
            "startedAt": times,
            "completedAt": times,
            "steps": st.lists(step, min_size=1, max_size=6),
        },
        optional={
            "workflowId": text,
            "durationMs": st.integers(),
            "output": json,
            "createdAt": text | st.just("c" * 600),
        },
    )
    return run.map(Run.from_dict)


_NEAR = st.integers(0, 3000).map(lambda ms: f"2026-01-15T09:00:0{ms // 1000}.{ms % 1000:03}Z")


@given(finished(_NEAR), st.sampled_from(TENANTS))
def test_nearly_usual_runs(run: Run, tenant: str) -> None:
    """Runs that differ from usual ones in one or two members are the same bytes."""
    assert write_run(run, tenant=tenant) == reference(run, tenant)


_NUMBERS = st.sampled_from(["0", "5", "-0", "-1", "1.0", "1e2", "null", '"5"', "true", "[1]", "{}"]) | st.sampled_from(
    [str(number) for number in (12345678901234567890, 2**63 - 1, 2**63)]
)
_COSTS = (
    st.floats(0, allow_nan=False, allow_infinity=False).map(repr)
    | st.decimals(0, 100, places=30).map(str)
    | st.sampled_from(["1E5", "1e999", "1.7976931348623157e308", "-0.0", "0.1", "2.2250738585072011e-308", "7"])
)
_MODELS = st.sampled_from(
    ["claude-sonnet", "gpt-5", "o3", "", "x" * 500, "x" * 501, "ä" * 500, 'a"b', "\ud83d\ude00"]
).map(dumps)
_MEMBERS = st.sampled_from(
    ["promptTokens", "completionTokens", "estimatedCostUsd", "model", "totalTokens", "prompt\\u0054okens"]
)
_USAGE = st.lists(st.tuples(_MEMBERS, _NUMBERS | _COSTS | _MODELS), max_size=5).map(
    lambda members: "{" + ", ".join(f' "{name}" : {value}' for name, value in members) + " }"
)
_GOOD_USAGE = st.tuples(st.integers(0, 2**63), st.integers(0, 10**6), _MODELS, _COSTS).map(
    lambda usage: '{"promptTokens":%d,"completionTokens":%d,"model":%s,"estimatedCostUsd":%s}' % usage  # noqa: UP031
)
_OUTPUTS = st.one_of(
    st.one_of(_USAGE, _GOOD_USAGE).map(lambda usage: f'{{"result": [{{}}], "usage":{usage} }}'),
    _USAGE.map(lambda usage: f'{{"usage":null,"usage":{usage}}}'),
    _USAGE.map(lambda usage: f'[{{"usage":{usage}}}]'),
    _USAGE.map(lambda usage: f'{{"usage":[1,2,"model",0.5],"x":{usage}}}'),
    st.sampled_from(
        ['[{"usage":5}]', '"\\"usage\\""', '{"\\u0075sage":{"promptTokens":1},"x":"usage"}', "[" * 200 + "]" * 200]
    ),
)


@given(st.lists(_OUTPUTS | _GOOD_USAGE.map('{{"usage":{}}}'.format), min_size=1, max_size=4))
def test_token_usage_in_any_form(outputs: list[str]) -> None:
    """Counts, models and costs, and what only looks like them, are the same bytes."""
    span = '"startedAt":"2026-01-15T09:00:01.200Z","completedAt":"2026-01-15T09:00:02.000Z"'
    steps = ",".join(
        f'{{"id":"s{number}","type":"agent","status":"completed",{span},"output":{output}}}'
        for number, output in enumerate(outputs)
    )
    run = Run.from_json(f'{{"id":"r","status":"completed",{span},"steps":[{steps}]}}'.encode())
    assert write_run(run) == reference(run)


_TEXTS = st.sampled_from(["", "E1", "x" * 500, "x" * 501, "ä" * 250, "ä" * 251, "ä" * 501, 'a"b', "\n", "\U0001f680"])
_ERRORS = st.one_of(
    _TEXTS.map(dumps),
    st.lists(
        st.tuples(st.sampled_from(["code", "message", "details", "c\\u006fde"]), _TEXTS.map(dumps) | _NUMBERS),
        max_size=4,
    ).map(lambda members: "{" + ", ".join(f' "{name}" : {value}' for name, value in members) + " }"),
    st.sampled_from(["null", "5", "true", "[]", '["E1","m"]', '"\\ud800"', '{"code":"\\ud800"}', "{}"]),
)


@given(
    st.lists(st.tuples(st.sampled_from(["failed", "completed", "skipped"]), _ERRORS, st.booleans()), max_size=4),
    st.sampled_from(["failed", "timed_out", "cancelled", "completed"]),
    _ERRORS | st.none(),
)
def test_errors_in_any_form(steps: list[tuple[str, str, bool]], status: str, error: str | None) -> None:
    """Codes and messages of errors, and what only looks like them, are the same bytes whatever failed."""
    span = '"startedAt":"2026-01-15T09:00:01.200Z","completedAt":"2026-01-15T09:00:02.000Z"'
    parts = [
        f'{{"id":"s{number}","type":"{"agent" if is_agent else "action"}","status":"{status}",{span},'
        f'"output":{{"usage":{{"promptTokens":3,"model":"gpt-5"}}}},"error":{found}}}'
        for number, (status, found, is_agent) in enumerate(steps)
    ]
    own = "" if error is None else f',"error":{error}'
    run = Run.from_json(f'{{"id":"r","status":"{status}",{span},"steps":[{",".join(parts)}]{own}}}'.encode())
    assert write_run(Run.from_json(run.text)) == reference(run)


def test_failed_runs_are_written_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose errors have the form that the platform writes asks nothing about them."""
    span = '"startedAt":"2026-01-15T09:00:01.200Z","completedAt":"2026-01-15T09:00:02.000Z"'
    error = '"error":{"code":"E1","message":"no reply","details":{"attempts":[1]}}'
    step = f'{{"id":"s","type":"agent","status":"failed",{span},"output":{{"usage":{{"model":"gpt-5"}}}},{error}}}'
    run = Run.from_json(f'{{"id":"r","status":"failed",{span},"steps":[{step}],{error}}}'.encode())

    def refuse(*values: object) -> None:
        raise AssertionError(values)

    monkeypatch.setattr(bulk_writer._Details, "step_parts", refuse)
    monkeypatch.setattr(bulk_writer._Details, "run_parts", refuse)
    assert written_natively(run)


@given(finished(_NEAR | st.none() | st.sampled_from(["2026-01-15T09:00:01Z", "2026-01-15T09:00:01.000+00:00", "x"])))
def test_runs_with_unusual_times(run: Run) -> None:
    """Times that are null, in another form, or none are the same bytes."""
    assert write_run(run) == reference(run)


def test_many_steps_and_equal_steps() -> None:
    """Runs with equal steps or manifests longer than one attribute are the same bytes."""
    span = '"startedAt":"2026-01-15T09:00:01.200Z","completedAt":"2026-01-15T09:00:02.000Z"'
    step = f'{{"id":"s","status":"completed",{span}%s}}'
    times = '"startedAt":"2026-01-15T09:00:01.000Z","completedAt":"2026-01-15T09:00:04.500Z"'
    for count in (1, 2, 124, 125, 126, 300):
        for steps in (
            ",".join(step % f',"attempt":{number}' for number in range(count)),
            ",".join(step % "" for _ in range(count)),
        ):
            run = Run.from_json(f'{{"id":"r{count}","status":"completed",{times},"steps":[{steps}]}}')
            assert run.plain
            assert write_run(run) == reference(run)


def test_labels_of_any_length_and_number() -> None:
    """More labels than are kept as templates, and labels that are too long for an attribute, are the same bytes."""
    times = '"startedAt":"2026-01-15T09:00:01.000Z","completedAt":"2026-01-15T09:00:04.500Z"'
    for number in range(5000):
        label = f"{number}" + "ä" * (number % 7 * 400 if number % 500 == 0 else 0)
        step = f'{{"id":"{label}","name":"{label}","status":"completed",{times}}}'
        text = f'{{"id":"r","workflowId":"{label}","status":"completed",{times},"steps":[{step}]}}'
        run = Run.from_json(text)
        assert write_run(run) == reference(run)


def test_types_and_models_in_any_writing() -> None:
    """What JSON escapes, and how many there are, is the same on the run span."""
    odd = [chr(code) for code in (*range(32), 34, 47, 92, 127, 128, 233, 0x2028, 0xFEFF, 0x1F680)]
    for labels in (
        *[[label] for label in odd],
        odd,
        [f"label-{number}" for number in range(300)],
        ["b", "a b", "a", "a"],
    ):
        steps = [
            {"id": "s", "type": "agent", "status": status, "output": {"usage": {"model": model, "promptTokens": 1}}}
            | {"startedAt": "2026-01-15T09:00:02.000Z", "completedAt": "2026-01-15T09:00:03.000Z", "durationMs": number}
            for number, model in enumerate(labels)
            for status in ("completed", "failed")[: 1 + number % 2]
        ]
        others = [step | {"type": label} for step, label in zip(steps, labels, strict=False)]
        run = Run.from_dict(
            {"id": "r", "workflowId": "w", "status": "completed", "startedAt": "2026-01-15T09:00:01.000Z"}
            | {"completedAt": "2026-01-15T09:00:04.500Z", "steps": [*steps[:2], *others]}
        )
        assert write_run(run) == reference(run)
        run = Run.from_dict(run.to_dict() | {"steps": steps})
        assert write_run(run) == reference(run)


TIMES = [
    "1970-01-01T00:00:00.000Z",
    "1970-01-01T00:00:00.001Z",
    "1972-02-29T23:59:59.999Z",
    "1999-12-31T23:59:59.999Z",
    "2000-02-29T00:00:00.000Z",
    "2000-03-01T00:00:00.000Z",
    "2024-01-15T09:00:01.200Z",
    "2024-12-31T09:00:01.200Z",
    "2100-02-28T12:34:56.789Z",
    "2262-04-09T23:59:59.999Z",
]
INVALID_TIMES = [
    "",
    "1969-12-31T23:59:59.999Z",
    "0000-01-01T00:00:00.000Z",
    "1900-01-01T00:00:00.000Z",
    "2023-02-29T00:00:00.000Z",
    "2100-02-29T00:00:00.000Z",
    "2024-04-31T00:00:00.000Z",
    "2024-00-15T00:00:00.000Z",
    "2024-13-15T00:00:00.000Z",
    "2024-01-00T00:00:00.000Z",
    "2024-01-32T00:00:00.000Z",
    "2024-01-15T24:00:00.000Z",
    "2024-01-15T00:60:00.000Z",
    "2024-01-15T00:00:60.000Z",
    "2024-01-15T00:00:00.000z",
    "2024-01-15t00:00:00.000Z",
    "2024-01-15 00:00:00.000Z",
    "2024-01-15T00:00:00,000Z",
    "2024-01-15T00:00:00.0000Z",
    "2024-01-15T00:00:00.00Z",
    "2024-01-15T00:00:00Z",
    "2024-01-15T00:00:00.000+00:00",
    "2024-01-15T0 :00:00.000Z",
    "2024-01-15T-1:00:00.000Z",
    "2024-01-15T00:00:00.0/0Z",
    "2024-01-15T00:00:00.:00Z",
    "٢٠٢٤-01-15T00:00:00.000Z",
    "2024-01-15T00:00:00.00\u0660Z",
    "2262-04-11T00:00:00.000Z",
    "2262-04-11T23:47:16.854Z",
    "9999-12-31T23:59:59.999Z",
    " 024-01-15T00:00:00.000Z",
]


def timed(started: str, completed: str) -> Run:
    step = {"id": "s", "status": "completed", "startedAt": started, "completedAt": completed}
    return Run.from_dict(
        {
            "id": "r",
            "status": "completed",
            "startedAt": "1970-01-01T00:00:00.001Z",
            "completedAt": "2262-04-09T23:59:59.999Z",
            "steps": [step],
        }
    )


@pytest.mark.parametrize("text", TIMES + INVALID_TIMES)
def test_times(text: str) -> None:
    """Timestamps, including leap days and ends of years, and texts that only resemble one are the same bytes."""
    for run in (timed(TIMES[0], text), timed(text, TIMES[-1])):
        assert write_run(run) == reference(run)
    assert written_natively(timed(TIMES[0], text)) == (text in TIMES)


@given(st.sampled_from(TIMES), st.integers(0, 23), st.sampled_from("0a:/Z- ٣"))
def test_times_with_a_character_changed(valid: str, index: int, other: str) -> None:
    """A timestamp with any character changed is the same bytes."""
    run = timed(valid[:index] + other + valid[index + 1 :], TIMES[-1])
    assert write_run(run) == reference(run)


@given(st.data())
def test_texts_that_are_not_canonical(data: st.DataObject) -> None:
    """The native part returns spans or None, or passes on an exception of Python, for any text: it does not panic."""
    if not bulk_writer.COMPILED:
        missing("compiled", "the package was built without its native part")
    run = data.draw(finished(_NEAR))
    text = bytearray(run.text)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text[start:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b'"', b"\\", b"{", b"}", b"]", b"99999999"])
        )
    with suppress(Exception):  # a panic is none
        bulk_writer._writer("").write(bytes(text), bulk_writer._Details(run, ""))
