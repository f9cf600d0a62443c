"""The overview: how many runs, how many failed, how long they took, what they cost, and which to look at."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    COUNT,
    DOLLARS,
    LISTED,
    PER_MINUTE,
    SECONDS,
    SHARE,
    Panel,
    colored,
    compared,
    filled,
    graph,
    judged,
    linked,
    new_dashboard,
    number,
    prom,
    prometheus_variable,
    ranked,
    run_variables,
    runspan_variable,
    span_rows,
    tempo_variable,
)
from dashboards.queries import (
    CHOSEN,
    COST,
    FAILED_RUNS,
    FAILED_STEPS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    PLACE,
    RANGE,
    RATE,
    RETRIES,
    REVISION_SPAN,
    RUN_SHOWN,
    RUN_SPAN,
    RUN_SPANS,
    RUNS,
    STEP_SPAN,
    STEP_SPANS,
    STEPS,
    UNFINISHED_AGE,
    every,
    grew,
    quantile,
    traceql,
)

RUNS_OF_RANGE = f"sum({grew(RUNS, PLACE, RANGE)})"
FAILED_OF_RANGE = f"(sum({grew(RUNS, FAILED_RUNS, RANGE)}) or vector(0))"

UNFINISHED_NOW = 'sum(runspan_runs_unfinished{job="runspan"}) or max(runspan_runs_unfinished)'
"""Of the servers. Exporters tell of the same runs, and of them alone where the server has no store of its own."""
STUCK_NOW = "sum(runspan_runs_stuck) or 0 * sum(runspan_runs_unfinished)"


def dashboard() -> Dashboard:
    """Where people begin."""
    made = new_dashboard(
        "runspan-overview",
        "runspan / Overview",
        "Workflow runs as the Collector counted them: how many, how many failed, how long they took, what they cost. "
        "Counts are of runs that ended while the Collector listened; backfilled runs are in the tables only.",
    )
    made.variables([prometheus_variable(), tempo_variable(), *run_variables(), runspan_variable()])
    return filled(
        made,
        [
            ("Now", totals()),
            ("Runs", runs()),
            ("Unfinished runs", unfinished()),
            ("What fails", failing()),
            ("Runs to look at", tables()),
        ],
    )


def totals() -> list[Panel]:
    return [
        linked(
            number("Runs", "Runs that ended in the chosen time.", COUNT, RUNS_OF_RANGE, span=3, empty="no runs"),
            "Runs of the last day in runspan",
            "/?endedFrom=24h",
        ),
        judged(
            number(
                "Success ratio",
                "Runs that ended without an error, of all that ended. Cancelled runs are no errors.",
                SHARE,
                f"1 - {FAILED_OF_RANGE} / ({RUNS_OF_RANGE} > 0)",
                span=3,
                decimals=1,
                empty="no runs",
            ),
            (None, "red"),
            (0.95, "yellow"),
            (0.99, "green"),
        ),
        linked(
            judged(
                number(
                    "Failed runs",
                    "Runs that failed or timed out in the chosen time.",
                    COUNT,
                    FAILED_OF_RANGE,
                    span=3,
                    empty="no runs",
                ),
                (None, "green"),
                (1, "red"),
            ),
            "Failed runs of the last day in runspan",
            "/?status=failed&endedFrom=24h",
        ),
        linked(
            number(
                "Unfinished now",
                "Runs in runspan's embedded store that are pending, running or suspended, of all workflows.",
                COUNT,
                UNFINISHED_NOW,
                span=3,
                empty="no server",
            ),
            "Running runs in runspan",
            "/?status=running",
        ),
        linked(
            judged(
                number(
                    "Stuck runs",
                    "Runs in runspan's embedded store that nobody has seen go on. Their engine crashed, or is cut off.",
                    COUNT,
                    STUCK_NOW,
                    span=3,
                    empty="no store",
                ),
                (None, "green"),
                (1, "red"),
            ),
            "Stuck runs in runspan",
            "/?stuckAfter=15m",
        ),
        number(
            "Run duration p50, p95",
            "Half of the runs, and 19 of 20, took no longer.",
            SECONDS,
            (quantile(0.5, RUN_SPANS, window=RANGE), "p50"),
            (quantile(0.95, RUN_SPANS, window=RANGE), "p95"),
            span=4,
            empty="no runs",
        ),
        number(
            "Tokens",
            "Input and output tokens of agent steps in the chosen time.",
            COUNT,
            f"sum({grew(INPUT_TOKENS, PLACE, RANGE)}) + sum({grew(OUTPUT_TOKENS, PLACE, RANGE)})",
            span=3,
            empty="no agents",
        ),
        number(
            "Cost",
            "What agent steps reported as their cost, in US dollars.",
            DOLLARS,
            f"sum({grew(COST, PLACE, RANGE)})",
            span=2,
            decimals=2,
            empty="no cost",
        ),
    ]


def runs() -> list[Panel]:
    return [
        colored(
            graph(
                "Runs by status",
                "Runs that ended, a minute. Runs that have not ended are in Unfinished now.",
                PER_MINUTE,
                prom(every(60, RUNS, PLACE, "runspan_run_status"), "{{runspan_run_status}}"),
                stacked=True,
                empty="No run ended in this time.",
            )
        ),
        graph(
            "Run duration",
            "Quantiles over the chosen workflows. A point leads to the trace of one run.",
            SECONDS,
            prom(quantile(0.5, RUN_SPANS), "p50"),
            prom(quantile(0.95, RUN_SPANS), "p95", exemplars=True),
            prom(quantile(0.99, RUN_SPANS), "p99"),
            empty="No run ended in this time.",
        ),
        graph(
            "Run duration p95 by workflow",
            "19 of 20 runs took no longer. A point leads to the trace of one run.",
            SECONDS,
            prom(quantile(0.95, RUN_SPANS, "runspan_workflow_id"), "{{runspan_workflow_id}}", exemplars=True),
            empty="No run ended in this time.",
        ),
        graph(
            "Runs by workflow",
            "Runs that ended, a minute.",
            PER_MINUTE,
            prom(every(60, RUNS, PLACE, "runspan_workflow_id"), "{{runspan_workflow_id}}"),
            empty="No run ended in this time.",
        ),
        graph(
            "Step duration p95 by type",
            "Of finished steps, without the time that they waited for others. A point leads to the trace of one step.",
            SECONDS,
            prom(quantile(0.95, STEP_SPANS, "runspan_step_type"), "{{runspan_step_type}}", exemplars=True),
            empty="No step ended in this time.",
        ),
        compared(
            "Run duration by workflow",
            "Half of a workflow's runs, and 19 of 20, took no longer in the chosen time.",
            {"runspan_workflow_id": "Workflow"},
            ("p95", SECONDS, quantile(0.95, RUN_SPANS, "runspan_workflow_id", RANGE)),
            ("p50", SECONDS, quantile(0.5, RUN_SPANS, "runspan_workflow_id", RANGE)),
            ("Runs", COUNT, f"sum by (runspan_workflow_id) ({grew(RUNS, PLACE, RANGE)})"),
            links=f"{LISTED}&endedFrom=24h",
            empty="No run ended in this time.",
        ),
    ]


def unfinished() -> list[Panel]:
    return [
        linked(
            graph(
                "Unfinished and stuck runs",
                "Runs in runspan's embedded store that are pending, running or suspended, of all workflows, and those "
                "of them that nobody has seen go on.",
                COUNT,
                prom(UNFINISHED_NOW, "unfinished"),
                prom(STUCK_NOW, "stuck"),
                empty="Prometheus does not scrape a runspan that has a store or follows runs.",
            ),
            "Running runs in runspan",
            "/?status=running",
        ),
        graph(
            "Age of unfinished runs",
            "Of the oldest run in the store, and the p95 of the revisions that came. A line that only climbs is a run "
            "that is stuck or waits for a person.",
            SECONDS,
            prom("max(runspan_runs_oldest_unfinished_age_seconds)", "oldest"),
            prom(
                f"histogram_quantile(0.95, sum by (le, runspan_run_status) ({grew(UNFINISHED_AGE, PLACE, RATE)}))",
                "{{runspan_run_status}} p95",
            ),
            empty="No unfinished run, or Prometheus does not scrape runspan.",
        ),
        compared(
            "Stuck runs by workflow",
            "Runs in runspan's embedded store that nobody has seen go on, and for how long the longest of them.",
            {"runspan_workflow_id": "Workflow"},
            ("Stuck runs", COUNT, "sum by (runspan_workflow_id) (runspan_runs_stuck) > 0"),
            ("Not seen for", SECONDS, "max by (runspan_workflow_id) (runspan_runs_stuck_age_seconds) > 0"),
            links=f"{LISTED}&stuckAfter=15m",
            empty="No run is stuck, or Prometheus does not scrape a runspan with a store of its own.",
        ).span(24),
        span_rows(
            "Revisions of unfinished runs",
            "What was observed of runs before their end, each at the start of its run. A run that has ended since is "
            "among the runs too.",
            traceql(f"{REVISION_SPAN} && {CHOSEN}", *RUN_SHOWN, "span.runspan.observed_at"),
            hidden=("instrumentation:name", "name"),
            empty="No run that began in this time was seen before its end.",
        ),
    ]


def failing() -> list[Panel]:
    return [
        ranked(
            "Workflows that fail most",
            "Failed and timed-out runs in the chosen time.",
            COUNT,
            f"topk(10, sum by (runspan_workflow_id) ({grew(RUNS, FAILED_RUNS, RANGE)}) > 0)",
            {"runspan_workflow_id": "Workflow"},
            "Failed runs",
            empty="No run failed in this time.",
        ),
        ranked(
            "Steps that fail most",
            "Failed steps in the chosen time. A step that succeeded after retries is not among them.",
            COUNT,
            "topk(10, sum by (runspan_workflow_id, runspan_step_id, runspan_step_type) "
            f"({grew(STEPS, FAILED_STEPS, RANGE)}) > 0)",
            {"runspan_workflow_id": "Workflow", "runspan_step_id": "Step", "runspan_step_type": "Type"},
            "Failures",
            empty="No step failed in this time.",
        ),
        graph(
            "Failure ratio by workflow",
            "Failed and timed-out runs of all that ended.",
            SHARE,
            prom(
                f"sum by (runspan_workflow_id) ({grew(RUNS, FAILED_RUNS, RATE)}) / "
                f"sum by (runspan_workflow_id) ({grew(RUNS, PLACE, RATE)})",
                "{{runspan_workflow_id}}",
            ),
            empty="No run ended in this time, or none failed.",
        ),
        graph(
            "Failed steps by type",
            "Failed steps a minute.",
            PER_MINUTE,
            prom(every(60, STEPS, FAILED_STEPS, "runspan_step_type"), "{{runspan_step_type}}"),
            stacked=True,
            empty="No step failed in this time.",
        ),
        graph(
            "Retries by step",
            "Attempts beyond the first, a minute.",
            PER_MINUTE,
            prom(
                every(60, RETRIES, PLACE, "runspan_workflow_id, runspan_step_id"),
                "{{runspan_workflow_id}} {{runspan_step_id}}",
            ),
            empty="No step was retried in this time.",
        ),
        ranked(
            "Steps that retry most",
            "Attempts beyond the first in the chosen time.",
            COUNT,
            "topk(10, sum by (runspan_workflow_id, runspan_step_id, runspan_step_type) "
            f"({grew(RETRIES, PLACE, RANGE)}))",
            {"runspan_workflow_id": "Workflow", "runspan_step_id": "Step", "runspan_step_type": "Type"},
            "Retries",
            empty="No step was retried in this time.",
        ),
    ]


def tables() -> list[Panel]:
    return [
        span_rows(
            "Newest failed runs",
            "The newest runs that failed or timed out. A run id leads to its trace, its document and its page.",
            traceql(f"{RUN_SPAN} && status = error && {CHOSEN}", *RUN_SHOWN, "span.error.type", "statusMessage"),
            hidden=("kind", "instrumentation:name", "status", "name"),
            empty="No run failed in this time, or Tempo does not have it.",
        ),
        span_rows(
            "Newest failed steps",
            "The newest steps that failed, those of runs that went on and those of runs under way too.",
            traceql(
                f"{STEP_SPAN} && status = error && {CHOSEN}",
                "span.runspan.run.id",
                "span.runspan.workflow.id",
                "span.runspan.step.id",
                "span.runspan.step.type",
                "span.error.type",
                "statusMessage",
            ),
            hidden=("instrumentation:name", "runspan.step.status", "status", "name"),
            empty="No step failed in this time, or Tempo does not have it.",
        ),
        span_rows(
            "Newest runs",
            "The newest runs that ended.",
            traceql(f"{RUN_SPAN} && {CHOSEN}", *RUN_SHOWN, "span.runspan.run.cost_usd"),
            hidden=("kind", "instrumentation:name", "name"),
            empty="No run ended in this time, or Tempo does not have it.",
        ),
    ]
