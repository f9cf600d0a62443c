"""Agents and cost: tokens, dollars, models, and the runs that spend most."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.parts import (
    COUNT,
    DOLLARS,
    PER_MINUTE,
    SECONDS,
    SHARE,
    Panel,
    filled,
    graph,
    judged,
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
    AGENTS,
    CHOSEN,
    COST,
    FAILED_AGENTS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    PLACE,
    RANGE,
    RATE,
    RATE_MS,
    RUN_SHOWN,
    RUN_SPAN,
    STEPS,
    every,
    grew,
    quantile,
    traceql,
)

HOUR = 3600
COST_OF_RANGE = f"sum({grew(COST, PLACE, RANGE)})"
AGENT_STEPS = f"sum({grew(STEPS, AGENTS, RANGE)})"
AGENT_SPANS = f'runspan_role="step", {AGENTS}'
MODEL = "{{gen_ai_request_model}}"


def dashboard() -> Dashboard:
    """Tokens and cost are counted once: on the agent's step, never again on its run."""
    made = new_dashboard(
        "runspan-agents",
        "runspan / Agents and cost",
        "Agent steps: tokens, cost, models, speed, failures. Cost is what the platform reported with each step.",
        since="now-24h",
    )
    made.variables([prometheus_variable(), tempo_variable(), *run_variables(), runspan_variable()])
    return filled(
        made,
        [("Now", totals()), ("Tokens and cost", spending()), ("Agents", agents()), ("Runs to look at", tables())],
    )


def totals() -> list[Panel]:
    return [
        number("Cost", "In US dollars, in the chosen time.", DOLLARS, COST_OF_RANGE, decimals=2),
        number(
            "Cost of an agent step",
            "Cost by the number of agent steps.",
            DOLLARS,
            f"{COST_OF_RANGE} / {AGENT_STEPS}",
            decimals=4,
        ),
        number("Agent steps", "Agent steps that ended in the chosen time.", COUNT, AGENT_STEPS),
        number(
            "Input tokens", "What models read in the chosen time.", COUNT, f"sum({grew(INPUT_TOKENS, PLACE, RANGE)})"
        ),
        number(
            "Output tokens", "What models wrote in the chosen time.", COUNT, f"sum({grew(OUTPUT_TOKENS, PLACE, RANGE)})"
        ),
        judged(
            number(
                "Failed agent steps",
                "Of all agent steps that ended.",
                SHARE,
                f"(sum({grew(STEPS, FAILED_AGENTS, RANGE)}) or vector(0)) / {AGENT_STEPS}",
                decimals=1,
            ),
            (None, "green"),
            (0.01, "yellow"),
            (0.05, "red"),
        ),
    ]


def spending() -> list[Panel]:
    return [
        graph(
            "Cost by workflow",
            "US dollars an hour, as agent steps reported it.",
            DOLLARS,
            prom(every(HOUR, COST, PLACE, "runspan_workflow_id"), "{{runspan_workflow_id}}"),
            stacked=True,
        ),
        graph(
            "Cost by model",
            "US dollars an hour, as agent steps reported it.",
            DOLLARS,
            prom(every(HOUR, COST, PLACE, "gen_ai_request_model"), MODEL),
            stacked=True,
        ),
        graph(
            "Tokens",
            "Tokens a minute, input and output.",
            COUNT,
            prom(every(60, INPUT_TOKENS, PLACE), "input"),
            prom(every(60, OUTPUT_TOKENS, PLACE), "output"),
            stacked=True,
        ),
        graph(
            "Tokens by model",
            "Input and output tokens a minute.",
            COUNT,
            prom(
                f"60000 / {RATE_MS} * (sum by (gen_ai_request_model) ({grew(INPUT_TOKENS, PLACE, RATE)}) + "
                f"sum by (gen_ai_request_model) ({grew(OUTPUT_TOKENS, PLACE, RATE)}))",
                MODEL,
            ),
            stacked=True,
        ),
        ranked(
            "Workflows that cost most",
            "US dollars in the chosen time.",
            DOLLARS,
            f"topk(10, sum by (runspan_workflow_id) ({grew(COST, PLACE, RANGE)}))",
            {"runspan_workflow_id": "Workflow"},
            "Cost",
        ),
        ranked(
            "Models that cost most",
            "US dollars in the chosen time.",
            DOLLARS,
            f"topk(10, sum by (gen_ai_request_model) ({grew(COST, PLACE, RANGE)}))",
            {"gen_ai_request_model": "Model"},
            "Cost",
        ),
    ]


def agents() -> list[Panel]:
    return [
        graph(
            "Agent step duration",
            "Quantiles over the chosen workflows. A point leads to the trace of one step.",
            SECONDS,
            prom(quantile(0.5, AGENT_SPANS), "p50"),
            prom(quantile(0.95, AGENT_SPANS), "p95", exemplars=True),
        ),
        graph(
            "Agent steps by step",
            "Agent steps that ended, a minute.",
            PER_MINUTE,
            prom(
                every(60, STEPS, AGENTS, "runspan_workflow_id, runspan_step_id"),
                "{{runspan_workflow_id}} {{runspan_step_id}}",
            ),
        ),
    ]


def tables() -> list[Panel]:
    cost = ("span.runspan.run.input_tokens", "span.runspan.run.output_tokens")
    return [
        span_rows(
            "Runs that cost",
            "The newest runs with agent steps. Sort by cost to see the dearest of these.",
            traceql(f"{RUN_SPAN} && span.runspan.run.cost_usd > 0.0 && {CHOSEN}", *RUN_SHOWN, *cost),
            limit=200,
            hidden=("kind", "instrumentation:name", "name"),
        ),
        span_rows(
            "Agent steps to look at",
            "The newest agent steps that failed or used more than 10,000 tokens at once.",
            traceql(
                f'span.gen_ai.operation.name = "invoke_agent" && {CHOSEN} && '
                "(status = error || span.gen_ai.usage.input_tokens > 10000)",
                "span.runspan.run.id",
                "span.runspan.workflow.id",
                "span.runspan.step.id",
                "span.runspan.step.status",
                "span.gen_ai.request.model",
                "span.gen_ai.usage.input_tokens",
                "span.gen_ai.usage.output_tokens",
                "span.runspan.cost.usd",
                "span.error.type",
            ),
            hidden=("gen_ai.operation.name", "status"),
        ),
    ]
