// Rows of the timeline: one for each step, or for all executions of a step id, which expands into a row for each. Pure.

import { firstIndex, groupSteps } from "./grouping.js";

/**
 * Return the rows of a run by start time. Items without times follow the item before them in the document.
 *
 * @param {object[]} steps - Steps of indexRun().
 * @param {Set<string>} [expanded] - Keys of the rows that show their executions.
 * @returns {{key: string, steps: number[], level: number, kind: string, execution?: number}[]}
 *   steps: indexes of the executions.
 *   level: level in the tree, from 1.
 *   kind: "step", "loop" for several executions, or "execution" for one of them.
 *   execution: number of the execution, from 1.
 */
export function timelineRows(steps, expanded = new Set()) {
  const items = groupSteps(steps);
  const times = new Map();
  let previous = -Infinity;
  for (const item of items) {
    previous = item.from ?? previous;
    times.set(item, previous);
  }
  items.sort((a, b) => times.get(a) - times.get(b) || firstIndex(a) - firstIndex(b));
  return items.flatMap((item) => rowsOf(item, expanded, 1));
}

function rowsOf(item, expanded, level) {
  const { key } = item;
  if (item.kind === "frame") {
    const header = item.header === null ? [] : stepRows(key, item.header, expanded, level);
    const itemLevel = level + (header.length ? 1 : 0);
    return [...header, ...item.items.flatMap((inner) => rowsOf(inner, expanded, itemLevel))];
  }
  return stepRows(key, item.steps, expanded, level);
}

function stepRows(key, steps, expanded, level) {
  if (steps.length === 1) return [{ key, steps, level, kind: "step" }];
  const row = { key, steps, level, kind: "loop" };
  if (!expanded.has(key)) return [row];
  const executions = steps.map((index, position) => ({
    key: `${key}\n${position}`,
    steps: [index],
    level: level + 1,
    kind: "execution",
    execution: position + 1,
  }));
  return [row, ...executions];
}
