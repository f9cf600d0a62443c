// Statistics of a run: steps by status, tokens and cost, the slowest and the open steps, and the first failure. Pure.

import { toEpochMs } from "../instants.js";
import { durationOf, hasEnded } from "./document.js";

const ATTENTION_ORDER = ["failed", "retrying", "running", "suspended", "pending", "completed", "skipped"];
const MAX_SLOWEST = 5;
const WAITING_TYPES = new Set(["approval", "wait", "event"]);

/**
 * Return the statistics of a run.
 *
 * @param {object} run - The result of indexRun().
 * @returns {object}
 *   counts: see countByStatus().
 *   usage: {input, output, total, cost, calls} of all agent steps, or null; numbers that no step reports are null.
 *   models: the same with {model} for each model, the most expensive first.
 *   slowest: the steps that took longest, as {index, ms, count}. ms: of all its count executions together. index: the
 *     longest of them.
 *   open: indexes of the steps that began and have not ended, the longest first; none of a run that has ended.
 *   waiting: index of the step that a suspended run waits for, or null.
 *   failure: {index, error, count, tolerated} of the first failure, or null. index: the failed step, null if only the
 *     run failed. count: number of failed steps. tolerated: whether the run completed nevertheless.
 *   executions: Map of step id to the indexes of its executions.
 */
export function runStats(run) {
  return {
    counts: countByStatus(run.steps),
    ...usageOf(run.steps),
    slowest: slowestOf(run),
    ...openSteps(run),
    failure: failureOf(run),
    executions: new Map(
      [...Map.groupBy(run.steps, (step) => step.id)].map(([id, steps]) => [id, steps.map((step) => step.index)]),
    ),
  };
}

/**
 * Count steps by status. Return [status, count] pairs, the status that needs attention most first.
 *
 * @param {object[]} steps - Steps of indexRun().
 */
export function countByStatus(steps) {
  const counts = new Map();
  for (const step of steps) counts.set(step.status, (counts.get(step.status) ?? 0) + 1);
  const rank = (status) => (ATTENTION_ORDER.includes(status) ? ATTENTION_ORDER.indexOf(status) : Infinity);
  return [...counts].sort(([a], [b]) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b)));
}

/**
 * Return how long a run or step has taken until now, in milliseconds; null if it has not started.
 *
 * @param {object} item - A run or step of indexRun().
 * @param {{seconds: number, nanos: number}|null} origin - The run's origin.
 * @param {number} now - The current time in milliseconds since 1970.
 */
export function elapsedMs(item, origin, now) {
  const duration = durationOf(item);
  if (duration !== null) return duration;
  if (item.from === null || !origin || hasEnded(item.status) || item.status === "skipped") return null;
  return Math.max(0, now - toEpochMs(origin) - item.from);
}

function usageOf(steps) {
  const models = new Map();
  let usage = null;
  for (const step of steps) {
    if (!step.usage) continue;
    usage = addUsage(usage, step.usage);
    models.set(step.usage.model, addUsage(models.get(step.usage.model) ?? null, step.usage));
  }
  const byCost = ([, a], [, b]) => (b.cost ?? 0) - (a.cost ?? 0) || (b.total ?? 0) - (a.total ?? 0);
  return { usage, models: [...models].sort(byCost).map(([model, sum]) => ({ model, ...sum })) };
}

function addUsage(sum, usage) {
  const before = sum ?? { input: null, output: null, total: null, cost: null, calls: 0 };
  const add = (a, b) => (b === null ? a : (a ?? 0) + b);
  return {
    input: add(before.input, usage.input),
    output: add(before.output, usage.output),
    total: add(before.total, usage.total),
    cost: add(before.cost, usage.cost),
    calls: before.calls + 1,
  };
}

/** The step of a loop covers its body and would only repeat it. */
function slowestOf(run) {
  const sums = new Map();
  for (const step of run.steps) {
    const ms = durationOf(step);
    if (ms === null || ms <= 0 || step.type === "loop") continue;
    const sum = sums.get(step.id) ?? { index: step.index, ms: 0, count: 0, longest: 0 };
    if (ms > sum.longest) Object.assign(sum, { index: step.index, longest: ms });
    sums.set(step.id, Object.assign(sum, { ms: sum.ms + ms, count: sum.count + 1 }));
  }
  const slowest = [...sums.values()].sort((a, b) => b.ms - a.ms || a.index - b.index).slice(0, MAX_SLOWEST);
  return slowest.map(({ index, ms, count }) => ({ index, ms, count }));
}

function openSteps(run) {
  const isOpen = (step) => step.from !== null && step.to === null && step.status !== "pending";
  const steps = hasEnded(run.status) ? [] : run.steps.filter(isOpen).sort((a, b) => a.from - b.from);
  const waiting =
    steps.find((step) => step.status === "suspended") ?? steps.find((step) => WAITING_TYPES.has(step.type)) ?? steps[0];
  return {
    open: steps.map((step) => step.index),
    waiting: run.status === "suspended" && waiting ? waiting.index : null,
  };
}

function failureOf(run) {
  const failed = run.steps.filter((step) => step.status === "failed");
  const timeOf = (step) => step.to ?? step.from ?? Infinity;
  const first = failed.reduce((best, step) => (best === null || timeOf(step) < timeOf(best) ? step : best), null);
  if (!first && !run.error) return null;
  return {
    index: first ? first.index : null,
    error: first?.error ?? run.error,
    count: failed.length,
    tolerated: first !== null && run.status === "completed",
  };
}
