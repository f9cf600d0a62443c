// The rows of the timeline: one for a step, one for all executions of a step id, and one for each of these when it is
// opened. Pure.

import { firstOf, fold } from "./loops.js";

/**
 * Rows in the order of time, those without times after what stands before them in the document. A row is {key, steps,
 * level, kind}: kind is "step", "loop" for several executions, "round" for one of them. `open` holds the keys of the
 * rows whose executions are rows of their own.
 */
export function rowsOf(steps, open = new Set()) {
  const items = fold(steps);
  const moments = new Map();
  let last = -Infinity;
  for (const item of items) {
    last = item.from === null ? last : Math.max(item.from, -Infinity);
    moments.set(item, item.from ?? last);
  }
  items.sort((one, other) => moments.get(one) - moments.get(other) || firstOf(one) - firstOf(other));
  return items.flatMap((item) => itemRows(item, open, 1));
}

function itemRows(item, open, level) {
  if (item.kind === "frame") {
    const own = item.header === null ? [] : [{ key: item.key, steps: [item.header], level, kind: "step" }];
    const below = item.header === null ? level : level + 1;
    return [...own, ...item.items.flatMap((inner) => itemRows(inner, open, below))];
  }
  if (item.steps.length === 1) return [{ key: item.key, steps: item.steps, level, kind: "step" }];
  const row = { key: item.key, steps: item.steps, level, kind: "loop" };
  if (!open.has(item.key)) return [row];
  const rounds = item.steps.map((index, round) => ({
    key: `${item.key}\n${round}`,
    steps: [index],
    level: level + 1,
    kind: "round",
    round: round + 1,
  }));
  return [row, ...rounds];
}
