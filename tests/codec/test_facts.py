"""The facts of a document, and of a list item."""

from __future__ import annotations

import pytest

from runspan import Run, encode
from runspan.codec.facts import duration, run_facts, summary_members
from runspan.codec.semconv import RUN_TOTALS

USAGE = {"usage": {"promptTokens": 3, "completionTokens": 2, "model": "m", "estimatedCostUsd": 0.25}}


@pytest.mark.parametrize("member", ['"triggerType":7', '"status":{}', '"createdAt":false', '"workflowId":"\\ud800"'])
def test_a_list_item_may_have_members_of_any_type(member: str) -> None:
    """The platform writes none, and a list that compares durations has such items too."""
    run = Run.from_json(f'{{"id":"it",{member},"durationMs":5}}')
    assert duration(summary_members(run.summary())) == 5_000_000


def test_models_are_counted_as_in_the_totals_of_the_run_span() -> None:
    """Only agents use models: an output of another step may look alike."""
    steps = [
        {"id": kind, "type": kind, "status": "completed", "output": USAGE} for kind in ("agent", "action", "agent")
    ]
    run = Run.from_dict({"id": "it", "status": "completed", "steps": steps})
    (use,) = run_facts(run).models
    totals = dict(encode(run)[-1].pairs())
    assert (
        (use.input_tokens, use.output_tokens, use.cost / 1e9) == tuple(totals[key] for key in RUN_TOTALS) == (6, 4, 0.5)
    )


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" * 5000, "1e400", "-1", "1000000000001"])
def test_a_duration_that_is_not_believed(number: str) -> None:
    """The times count instead, however many digits the number has."""
    times = '"startedAt":"2026-01-01T00:00:00Z","completedAt":"2026-01-01T00:00:05Z"'
    run = Run.from_json(f'{{"id":"it",{times},"durationMs":{number}}}')
    assert run_facts(run).duration == duration(summary_members(run.summary())) == 5_000_000_000


@pytest.mark.parametrize("models", [1, 20_000])
def test_costs_stay_within_64_bits(models: int) -> None:
    """However many steps a run has, each with the highest cost that is believed."""
    usage = [USAGE["usage"] | {"estimatedCostUsd": 1e6, "model": f"m{number % models}"} for number in range(20_000)]
    steps = [{"id": "a", "type": "agent", "output": {"usage": used}} for used in usage]
    facts = run_facts(Run.from_dict({"id": "it", "steps": steps}))
    assert 1 << 61 < facts.cost < 1 << 63
    assert max(use.cost for use in facts.models) <= facts.cost
