"""Forged and damaged revision spans cause bounded work and never a wrong document."""

from __future__ import annotations

import importlib
import json
import math
from typing import Any

import pytest

from runspan import Run, decode, encode
from runspan.codec.decode import read_summary, verify_run
from runspan.codec.fields import DIGEST, OPEN_STEPS, REVISION
from runspan.errors import TraceIncomplete
from runspan.model.document import run_text
from runspan.model.span import Span

NOW = 1_768_467_700_000_000_000
TIMES = {"startedAt": "2026-01-15T09:00:01.000Z", "completedAt": "2026-01-15T09:00:02.000Z"}
decoding = importlib.import_module("runspan.codec.decode")


def with_attributes(span: Span, attributes: dict[str, Any]) -> Span:
    members = {name: getattr(span, name) for name in Span.__struct_fields__}
    return Span(**{**members, "shared": (), "own": list({**span.attributes(), **attributes}.items())})


def running(steps: int, text: str = "x") -> Run:
    listed = [{"id": f"s{number}", "status": "completed", "output": text, **TIMES} for number in range(steps)]
    return Run.from_dict({"id": "r", "status": "running", "startedAt": TIMES["startedAt"], "steps": listed})


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of each document that is rebuilt."""
    sizes: list[int] = []

    def counted(envelope: Any) -> bytes:
        text = run_text(envelope)
        sizes.append(len(text))
        return text

    monkeypatch.setattr(decoding, "run_text", counted)
    return sizes


def test_forged_revisions_are_not_all_tried(rebuilt: list[int]) -> None:
    """A thousand revisions with a wrong digest, each with 64 combinations of steps, cause a few hundred rebuilds."""
    spans = encode(running(6), observed_at=NOW)
    other_contents = [with_attributes(span, {"runspan.step.name": "other"}) for span in spans[:-1]]
    forged = [with_attributes(spans[-1], {REVISION: NOW + n, DIGEST: "0" * 64}) for n in range(1, 1001)]
    with pytest.raises(TraceIncomplete) as refusal:
        verify_run([*spans, *other_contents, *forged])
    assert len(rebuilt) == decoding._MAX_REBUILDS
    assert len(refusal.value.missing) == decoding._MAX_REPORTED + 1
    assert "not tried" not in refusal.value.missing[0]


def test_large_documents_are_rebuilt_less_often(rebuilt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are bounded too, but a few revisions are always tried, whatever their size."""
    monkeypatch.setattr(decoding, "_MAX_BYTES", 1_000_000)
    spans = encode(running(1, "y" * 300_000), observed_at=NOW)
    forged = [with_attributes(spans[-1], {REVISION: NOW + n, DIGEST: "0" * 64}) for n in range(1, 50)]
    assert verify_run([*spans, *forged[:3]]).run == running(1, "y" * 300_000)
    rebuilt.clear()
    with pytest.raises(TraceIncomplete):
        verify_run([*spans, *forged])
    assert len(rebuilt) == 4


def test_a_step_is_decoded_once_for_all_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revisions share their steps, which are not decoded again for each."""
    decoded_ids: list[bytes] = []
    real = decoding.decode_step

    def counted(span: Span, attributes: Any) -> Any:
        decoded_ids.append(span.span_id)
        return real(span, attributes)

    monkeypatch.setattr(decoding, "decode_step", counted)
    spans = encode(running(5), observed_at=NOW)
    forged = [with_attributes(spans[-1], {REVISION: NOW + n, DIGEST: "0" * 64}) for n in range(1, 20)]
    verified = verify_run([*spans, *forged])
    assert (verified.revision, len(verified.incomplete), len(decoded_ids)) == (NOW, 19, 5)


def test_the_first_of_many_spans_with_one_id_is_tried() -> None:
    """The span that came first is tried even if there are more spans with its id than are tried."""
    spans = encode(running(2), observed_at=NOW)
    others = [with_attributes(spans[0], {"runspan.step.name": f"other {number}"}) for number in range(200)]
    assert decode([*spans, *others]) == running(2)


@pytest.mark.parametrize("text", ["[1]", "[null]", '["s"]', "[[]]", '[{"status":"running"}]', '[{"id":1}]', "[{]", "7"])
def test_open_steps_that_are_no_steps(text: str) -> None:
    """A revision whose open steps are no list of steps is damaged; older revisions can still be verified."""
    run = Run.from_dict({"id": "r", "status": "running", "steps": [{"id": "a", "status": "running"}]})
    spans = encode(run, observed_at=NOW)
    newer = with_attributes(spans[-1], {OPEN_STEPS: text, REVISION: NOW + 1})
    verified = verify_run([*spans, newer])
    assert (verified.run, verified.revision, len(verified.incomplete)) == (run, NOW, 1)
    with pytest.raises(TraceIncomplete):
        verify_run([newer])


@pytest.mark.parametrize("text", ["}{", '1,"status":"failed"', "tru", '"\x01"', "1 2", " 1", "", "[1", "\u0661"])
def test_a_summary_is_valid_json_whatever_its_span_holds(text: str) -> None:
    """A list item is read without verifying the digest, so each value in it has to be one JSON value."""
    run = Run.from_dict({"id": "r", "status": "completed", **TIMES, "durationMs": 1.5, "steps": []})
    span = encode(run)[-1]
    assert json.loads(read_summary(span).summary)["durationMs"] == 1.5  # type: ignore[union-attr]
    key = next(key for key in span.attributes() if key.startswith("runspan.run.duration_ms"))
    with pytest.raises(TraceIncomplete, match="duration_ms"):
        read_summary(with_attributes(span, {key: text}))


def test_an_infinite_sum_of_costs_is_omitted() -> None:
    """A sum that overflows to infinity is omitted, because JSON cannot represent it."""
    usage = {"promptTokens": 1, "completionTokens": 2, "estimatedCostUsd": 1.7e308}
    step = {"type": "agent", "status": "completed", "output": {"usage": usage}, **TIMES}
    run = Run.from_dict(
        {"id": "r", "status": "completed", **TIMES, "steps": [{"id": "a", **step}, {"id": "b", **step}]}
    )
    spans = encode(run)
    numbers = [value for span in spans for value in span.attributes().values() if type(value) is float]
    assert numbers == [1.7e308, 1.7e308]
    assert all(map(math.isfinite, numbers))
    assert decode(spans) == run
