// Rows of the timeline: one for each step, or for all executions of a step id, which expands into a row for each. The
// step of a sub-workflow expands into the rows of its run. Pure.

import { firstIndex, groupSteps } from "./grouping.js";

const MAX_DEPTH = 5; // of runs within runs

/**
 * Return the rows of a run by start time. Items without times follow the item before them in the document.
 *
 * @param {object} run - The result of indexRun().
 * @param {Set<string>} [expanded] - Keys of the rows that show what is below them.
 * @param {Map<string, {run?: object, note?: string}>} [children] - The runs of sub-workflows by their id, with times
 *   since the origin of `run`, or why there is none.
 * @returns {object[]} Rows {key, run, steps, level, kind, isExpandable, execution?, note?, childRunId?}.
 *   run, steps: the run that the row belongs to, and the indexes of the executions in it.
 *   level: level in the tree, from 1.
 *   kind: "step", "loop" for several executions, "execution" for one of them, or "note".
 *   execution: number of the execution, from 1.
 *   note: text of a note; "" for one that stands for the run childRunId, which is not in `children` yet.
 */
export function timelineRows(run, expanded = new Set(), children = new Map()) {
  return rowsOfRun({ run, expanded, children, prefix: "", depth: 1 }, 1);
}

function rowsOfRun(context, level) {
  const items = groupSteps(context.run.steps);
  const times = new Map();
  let previous = -Infinity;
  for (const item of items) {
    previous = item.from ?? previous;
    times.set(item, previous);
  }
  items.sort((a, b) => times.get(a) - times.get(b) || firstIndex(a) - firstIndex(b));
  return items.flatMap((item) => rowsOf(item, context, level));
}

function rowsOf(item, context, level) {
  if (item.kind === "node") return stepRows(item.key, item.steps, context, level);
  const header = item.header === null ? [] : stepRows(item.key, item.header, context, level);
  const itemLevel = level + (header.length ? 1 : 0);
  return [...header, ...item.items.flatMap((inner) => rowsOf(inner, context, itemLevel))];
}

function stepRows(key, steps, context, level) {
  if (steps.length === 1) return stepRow({ key: context.prefix + key, steps, level, kind: "step" }, context);
  const row = { key: context.prefix + key, run: context.run, steps, level, kind: "loop", isExpandable: true };
  if (!context.expanded.has(row.key)) return [row];
  const executions = steps.flatMap((index, position) =>
    stepRow(
      { key: `${row.key}\n${position}`, steps: [index], level: level + 1, kind: "execution", execution: position + 1 },
      context,
    ),
  );
  return [row, ...executions];
}

/** The row of one execution and, if it is expanded, those of its sub-workflow's run. */
function stepRow(row, context) {
  const { run, expanded, children, depth } = context;
  const { childRunId } = run.steps[row.steps[0]];
  const all = { ...row, run, isExpandable: childRunId !== "" && depth < MAX_DEPTH };
  if (!all.isExpandable || !expanded.has(row.key)) return [all];
  const child = children.get(childRunId);
  const prefix = `${row.key}\n\n`;
  if (child?.run?.steps.length)
    return [all, ...rowsOfRun({ ...context, run: child.run, prefix, depth: depth + 1 }, row.level + 1)];
  const note = child ? (child.note ?? "This run has no steps.") : "";
  const level = row.level + 1;
  return [all, { key: `${prefix}note`, run, steps: [], level, kind: "note", isExpandable: false, note, childRunId }];
}
