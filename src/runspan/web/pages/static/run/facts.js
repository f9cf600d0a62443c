// What a reader asks of a run first: counts, tokens and cost, the slowest steps, the first failure. Pure.

import { hasEnded, lengthOf } from "./document.js";

const ORDER = ["failed", "retrying", "running", "pending", "completed", "skipped"];

/** {counts, usage, models, slowest, failure, occurrences}: each as its function below says. */
export function factsOf(run) {
  return {
    counts: countsOf(run.steps),
    ...usageOf(run.steps),
    slowest: slowestOf(run),
    failure: failureOf(run),
    occurrences: occurrencesOf(run.steps),
  };
}

/** How many steps have each status, as [status, count], the ones to look at first. */
function countsOf(steps) {
  const counts = new Map();
  for (const step of steps) counts.set(step.status, (counts.get(step.status) ?? 0) + 1);
  const place = (status) => (ORDER.includes(status) ? ORDER.indexOf(status) : ORDER.length);
  return [...counts].sort(([one], [other]) => place(one) - place(other));
}

const add = (sum, number) => (number === null ? sum : (sum ?? 0) + number);

/** `usage`: tokens and cost of all agent steps, null where none tells; `models`: those of each model, dearest first. */
function usageOf(steps) {
  const models = new Map();
  let usage = null;
  for (const step of steps) {
    if (!step.usage) continue;
    usage = sum(usage, step.usage);
    models.set(step.usage.model, sum(models.get(step.usage.model) ?? null, step.usage));
  }
  const dear = ([, one], [, other]) => (other.cost ?? 0) - (one.cost ?? 0) || (other.total ?? 0) - (one.total ?? 0);
  return { usage, models: [...models].sort(dear).map(([model, of]) => ({ model, ...of })) };
}

function sum(one, other) {
  const before = one ?? { input: null, output: null, total: null, cost: null, calls: 0 };
  return {
    input: add(before.input, other.input),
    output: add(before.output, other.output),
    total: add(before.total, other.total),
    cost: add(before.cost, other.cost),
    calls: before.calls + 1,
  };
}

/**
 * The steps that took longest, at most five, as {index, ms}; of a step's executions the longest. A loop's own step
 * covers its body and would only say the same again.
 */
function slowestOf(run) {
  const longest = new Map();
  for (const step of run.steps) {
    const ms = lengthOf(step);
    if (ms === null || ms <= 0 || step.type === "loop") continue;
    if (!(longest.get(step.id)?.ms >= ms)) longest.set(step.id, { index: step.index, ms });
  }
  return [...longest.values()].sort((one, other) => other.ms - one.ms || one.index - other.index).slice(0, 5);
}

/**
 * The failure that came first: {index, error}. `index` is null when the run failed and no step did; `error` is the
 * step's own, else the run's. `count` is how many steps failed; `tolerated` that the run went on to its end. Null
 * without any failure.
 */
function failureOf(run) {
  const failed = run.steps.filter((step) => step.status === "failed");
  const when = (step) => step.to ?? step.from ?? Infinity;
  const first = failed.reduce((best, step) => (best === null || when(step) < when(best) ? step : best), null);
  if (!first && !run.error) return null;
  return {
    index: first ? first.index : null,
    error: first?.error ?? run.error,
    count: failed.length,
    tolerated: first !== null && run.status === "completed",
  };
}

/** For each step id the positions of its executions, in the order of the document. */
function occurrencesOf(steps) {
  const found = new Map();
  for (const step of steps) {
    if (found.has(step.id)) found.get(step.id).push(step.index);
    else found.set(step.id, [step.index]);
  }
  return found;
}

/** How long a run or step has taken until `now`, milliseconds since 1970; null when it has not begun. */
export function elapsed(item, zero, now) {
  const length = lengthOf(item);
  if (length !== null) return length;
  if (item.from === null || !zero || hasEnded(item.status) || item.status === "skipped") return null;
  return Math.max(0, now - (zero.seconds * 1000 + zero.nanos / 1e6) - item.from);
}
