// Aligns the steps of two runs by id and execution, and finds the payloads whose texts differ. Pure.

import { durationOf } from "../run/document.js";

const PAYLOAD_ORDER = ["output", "input", "error"];
const MIN_RATIO = 2; // a duration differs if it is at least twice the other
const MIN_DIFFERENCE = 500; // and at least so many milliseconds longer

/**
 * Pair the steps of two runs, in the order of run A. Steps that are only in run B come after their predecessor there.
 *
 * @param {object} loadedA - The result of loadRun() for run A.
 * @param {object} loadedB - The result of loadRun() for run B.
 * @returns {{id: string, name: string, execution: number, executions: number, a: object|null, b: object|null,
 *   changes: string[], isDurationDifferent: boolean}[]} a, b: the step in each run. changes: "missing" if one is null,
 *   else "status" and the keys of the payloads that differ.
 */
export function alignSteps(loadedA, loadedB) {
  const stepsA = numberExecutions(loadedA.run.steps);
  const stepsB = numberExecutions(loadedB.run.steps);
  const byKeyB = new Map(stepsB.map((item) => [item.key, item]));
  const keysA = new Set(stepsA.map((item) => item.key));
  const onlyInB = new Map(); // key of a step in both runs, "" for the start -> the steps only in B that follow it
  let predecessor = "";
  for (const item of stepsB) {
    if (keysA.has(item.key)) predecessor = item.key;
    else onlyInB.set(predecessor, [...(onlyInB.get(predecessor) || []), item]);
  }
  const following = (key) => (onlyInB.get(key) || []).map((item) => [null, item]);
  const pairs = [
    ...following(""),
    ...stepsA.flatMap((item) => [[item, byKeyB.get(item.key) || null], ...following(item.key)]),
  ];
  return pairs.map(([a, b]) => createPair(loadedA, a, loadedB, b));
}

/**
 * Return the keys of the payloads whose texts differ, or that only one side has.
 *
 * @param {object} loadedA - The result of loadRun() for run A.
 * @param {object} a - Run A, or a step of it.
 * @param {object} loadedB - The result of loadRun() for run B.
 * @param {object} b - Run B, or a step of it.
 */
export function changedPayloads(loadedA, a, loadedB, b) {
  const byKeyB = new Map(b.payloads.map((payload) => [payload.key, payload]));
  const keys = new Set([...a.payloads, ...b.payloads].map(({ key }) => key));
  const byKeyA = new Map(a.payloads.map((payload) => [payload.key, payload]));
  return [...keys]
    .filter((key) => !isSameText(loadedA.text, byKeyA.get(key), loadedB.text, byKeyB.get(key)))
    .sort((x, y) => payloadRank(x) - payloadRank(y));
}

/**
 * Return whether two values have the same text. A missing value differs from every other.
 *
 * @param {string} textA - The text that contains value A.
 * @param {{start: number, end: number}|null|undefined} a - The bounds of value A.
 * @param {string} textB - The text that contains value B.
 * @param {{start: number, end: number}|null|undefined} b - The bounds of value B.
 */
export function isSameText(textA, a, textB, b) {
  if (!a || !b || a.end - a.start !== b.end - b.start) return false;
  return textA.slice(a.start, a.end) === textB.slice(b.start, b.end);
}

/**
 * Return whether two durations differ considerably.
 *
 * @param {number|null} a - Milliseconds.
 * @param {number|null} b - Milliseconds.
 */
export function isDurationDifferent(a, b) {
  if (a === null || b === null) return false;
  const [shorter, longer] = a < b ? [a, b] : [b, a];
  return longer - shorter >= MIN_DIFFERENCE && longer >= shorter * MIN_RATIO;
}

function createPair(loadedA, itemA, loadedB, itemB) {
  const { step, execution } = itemA || itemB;
  const [a, b] = [itemA?.step || null, itemB?.step || null];
  const isInBoth = a !== null && b !== null;
  return {
    id: step.id,
    name: step.name,
    execution,
    executions: Math.max(itemA?.executions ?? 0, itemB?.executions ?? 0),
    a,
    b,
    changes: isInBoth
      ? [...(a.status !== b.status ? ["status"] : []), ...changedPayloads(loadedA, a, loadedB, b)]
      : ["missing"],
    isDurationDifferent: isInBoth && isDurationDifferent(durationOf(a), durationOf(b)),
  };
}

function payloadRank(key) {
  const rank = PAYLOAD_ORDER.indexOf(key);
  return rank < 0 ? PAYLOAD_ORDER.length : rank;
}

function numberExecutions(steps) {
  const executions = Map.groupBy(steps, (step) => step.id);
  const seen = new Map();
  return steps.map((step) => {
    const execution = (seen.get(step.id) || 0) + 1;
    seen.set(step.id, execution);
    return { key: `${execution} ${step.id}`, execution, executions: executions.get(step.id).length, step };
  });
}
