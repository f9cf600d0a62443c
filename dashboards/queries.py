"""The expressions that dashboards ask: PromQL over the Collector's metrics, TraceQL over the spans."""

from __future__ import annotations

from typing import Final

RATE: Final = "$__rate_interval"
RATE_MS: Final = "$__rate_interval_ms"
RANGE: Final = "$__range"

RUNS: Final = "runspan_runs_total"
STEPS: Final = "runspan_steps_total"
RETRIES: Final = "runspan_step_retries_total"
INPUT_TOKENS: Final = "runspan_tokens_input_total"
OUTPUT_TOKENS: Final = "runspan_tokens_output_total"
COST: Final = "runspan_cost_USD_total"
SECONDS: Final = "traces_span_metrics_duration_seconds_bucket"
UNFINISHED_AGE: Final = "runspan_unfinished_age_seconds_bucket"

PLACE: Final = 'deployment_environment_name=~"$environment", runspan_workflow_id=~"$workflow"'
"""What the variables at a dashboard's top pick. A series without the label matches ``.*``, the value of All."""
FAILED_RUNS: Final = f'runspan_run_status=~"failed|timed_out", {PLACE}'
FAILED_STEPS: Final = f'runspan_step_status="failed", {PLACE}'
AGENTS: Final = f'runspan_step_type="agent", {PLACE}'
FAILED_AGENTS: Final = f'runspan_step_status="failed", {AGENTS}'
RUN_SPANS: Final = f'runspan_role="run", {PLACE}'
STEP_SPANS: Final = f'runspan_role="step", {PLACE}'


def grew(metric: str, matchers: str, window: str) -> str:
    """By how much a counter grew, its first value included.

    ``increase`` starts from a series' first sample: what a counter that was born inside the window was born with is
    missing from it, and the counters of runs, steps, tokens and cost are born with their first value.
    """
    chosen = f"{metric}{{{matchers}}}"
    return f"(({chosen} unless {chosen} offset {window}) or increase({chosen}[{window}]))"


def every(seconds: int, metric: str, matchers: str, by: str = "") -> str:
    """A counter's growth in so many seconds, at the resolution of the panel, for each value of these labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{seconds * 1000} / {RATE_MS} * {grouped} ({grew(metric, matchers, RATE)})"


def quantile(share: float, matchers: str, by: str = "", window: str = RATE) -> str:
    """A quantile of spans' durations in seconds, over all series or for each value of a label.

    Where nothing ended there is none: the comparison drops NaN.
    """
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) ({grew(SECONDS, matchers, window)})) >= 0"


def traceql(conditions: str, *shown: str) -> str:
    """A search for the newest spans, each with these attributes."""
    select = f" | select({', '.join(shown)})" if shown else ""
    return f"{{ {conditions} }}{select} with (most_recent=true)"


RUN_SPAN: Final = 'kind = server && instrumentation:name = "runspan.run"'
REVISION_SPAN: Final = 'instrumentation:name = "runspan.revision"'
STEP_SPAN: Final = 'instrumentation:name = "runspan.step" && span.runspan.step.status != nil'
"""Tempo finds spans by intrinsics several times faster than by attributes. Attempts are in the scope of steps too, and
have no step status."""
ATTEMPT_SPAN: Final = 'instrumentation:name = "runspan.step" && span.runspan.attempt.number > 0'
CHOSEN: Final = "span.runspan.workflow.id =~ `${workflow:regex}`"
"""A raw string of TraceQL: Grafana escapes what is special in a regular expression with one backslash."""
RUN_SHOWN: Final = (
    "span.runspan.run.id",
    "span.runspan.workflow.id",
    "span.runspan.run.status",
    "span.runspan.run.trigger_type",
)
