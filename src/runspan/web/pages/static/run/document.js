// Indexes a run document: what the page shows of the run and of each step, and where each payload is in the text.
// Payloads are located, not parsed. Pure; runs in a worker too, and returns plain data that a worker can post.

import { millisecondsBetween, parseInstant } from "../instants.js";
import { children, findMember, readString, valueType } from "./json.js";

const MAX_LABEL = 300;
const MAX_MESSAGE = 2000;
const MAX_LINKED_RUN_ID = 512;
const MAX_ATTEMPTS = 100;
const FINAL_STATUSES = new Set(["completed", "failed", "cancelled", "timed_out"]);
const COMMON_PAYLOADS = ["input", "output", "error"];
const RUN_MEMBERS = new Set([
  "id",
  "workflowId",
  "status",
  "triggerType",
  "startedAt",
  "completedAt",
  "durationMs",
  "createdAt",
  "steps",
]);
const STEP_MEMBERS = new Set(["id", "name", "type", "status", "startedAt", "completedAt", "durationMs", "attempt"]);

/**
 * Return whether a run or step with this status no longer changes. A missing status counts as final, because there is
 * nothing to wait for.
 *
 * @param {string} status - The status, "" if there is none.
 */
export const hasEnded = (status) => status === "" || FINAL_STATUSES.has(status);

/**
 * Index the response of GET /api/v1/runs/{id}. Throw a SyntaxError if the text is not such a response.
 *
 * @param {string} text - The response body.
 * @returns {object} The run, with its members as texts and numbers, and:
 *   start, end: the bounds of its document in the text.
 *   payloads: the members to inspect, as {key, start, end}, with input, output and error first.
 *   steps: its steps, in the order of the document.
 *   origin: the earliest start in the document, as from parseInstant(), or null.
 *   from, to: its times in milliseconds since origin, null if unknown. Steps and attempts have them too.
 */
export function indexRun(text) {
  const data = valueType(text, 0) === "object" ? findMember(text, 0, "data") : null;
  if (!data || valueType(text, data.start) !== "object") throw new SyntaxError("the response contains no run");
  const members = membersOf(text, data.start);
  const label = (key) => labelOf(text, members.get(key));
  const run = {
    start: data.start,
    end: data.end,
    id: members.has("id") ? labelOf(text, members.get("id"), Infinity) : "",
    workflowId: label("workflowId"),
    status: label("status"),
    triggerType: label("triggerType"),
    startedAt: label("startedAt"),
    completedAt: label("completedAt"),
    createdAt: label("createdAt"),
    parentRunId: label("parentRunId") || parentRunIdOf(text, members.get("input")),
    durationMs: numberOf(text, members.get("durationMs")),
    error: errorOf(text, members.get("error")),
    payloads: payloadsOf(members, RUN_MEMBERS),
    steps: [],
    origin: null,
  };
  const steps = members.get("steps");
  if (steps && valueType(text, steps.start) === "array") {
    const mayHaveUsage = forwardFinder(text, '"usage"');
    run.steps = children(text, steps.start).items.map((bounds, index) => indexStep(text, bounds, index, mayHaveUsage));
  }
  setTimes(run);
  return run;
}

/**
 * Return how long a run or step took in milliseconds: its durationMs, else the difference of its times, else null.
 *
 * @param {object} item - A run or step of indexRun().
 */
export function durationOf(item) {
  if (item.durationMs !== null) return item.durationMs;
  return item.from !== null && item.to !== null ? item.to - item.from : null;
}

/** The maximum number of matches that findAll() returns. */
export const MAX_MATCHES = 10_000;

/**
 * Return the positions at which a text contains another, ignoring case; none for an empty needle.
 *
 * @param {string} text - The text to search.
 * @param {number} start - Where to begin.
 * @param {number} end - Where to end.
 * @param {string} needle - The text to find, not a pattern.
 */
export function findAll(text, start, end, needle) {
  const positions = [];
  if (!needle) return positions;
  const pattern = new RegExp(needle.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "gi");
  for (const match of text.slice(start, end).matchAll(pattern)) {
    if (positions.push(start + match.index) === MAX_MATCHES) break;
  }
  return positions;
}

function indexStep(text, bounds, index, mayHaveUsage) {
  const members = membersOf(text, bounds.start);
  const label = (key) => labelOf(text, members.get(key));
  const type = label("type");
  const output = members.get("output");
  const hasUsage = type === "agent" && output && mayHaveUsage(output.start, output.end);
  return {
    index,
    start: bounds.start,
    end: bounds.end,
    id: labelOf(text, members.get("id"), Infinity),
    name: label("name"),
    type,
    status: label("status"),
    startedAt: label("startedAt"),
    completedAt: label("completedAt"),
    durationMs: numberOf(text, members.get("durationMs")),
    attempt: numberOf(text, members.get("attempt")),
    maxAttempts: maxAttemptsOf(text, members.get("retryPolicy")),
    attempts: attemptsOf(text, members.get("attempts")),
    error: errorOf(text, members.get("error")),
    usage: hasUsage ? usageOf(text, output) : null,
    childRunId: type === "sub-workflow" ? childRunIdOf(text, output) : "",
    payloads: payloadsOf(members, STEP_MEMBERS),
  };
}

/** Return a function that tests whether a range contains a word. Ranges must ascend, so that the text is read once. */
function forwardFinder(text, word) {
  let next = text.indexOf(word);
  return (start, end) => {
    while (next >= 0 && next < start) next = text.indexOf(word, start);
    return next >= 0 && next < end;
  };
}

function membersOf(text, start) {
  if (valueType(text, start) !== "object") return new Map();
  return new Map(children(text, start).items.map((child) => [readString(text, child.keyStart, child.keyEnd), child]));
}

/** A member as text: the characters of a string, the JSON text of other values, "" for null or none; shortened. */
function labelOf(text, bounds, maxLength = MAX_LABEL) {
  if (!bounds || valueType(text, bounds.start) === "null") return "";
  const value =
    valueType(text, bounds.start) === "string"
      ? readString(text, bounds.start, bounds.end)
      : text.slice(bounds.start, bounds.end);
  return value.length > maxLength ? `${value.slice(0, maxLength)}…` : value;
}

function numberOf(text, bounds) {
  if (!bounds || valueType(text, bounds.start) !== "number") return null;
  return Number(text.slice(bounds.start, bounds.end));
}

function payloadsOf(members, known) {
  const common = COMMON_PAYLOADS.filter((key) => members.has(key));
  const others = [...members.keys()].filter((key) => !known.has(key) && !COMMON_PAYLOADS.includes(key));
  return [...common, ...others].map((key) => ({ key, start: members.get(key).start, end: members.get(key).end }));
}

function errorOf(text, bounds) {
  if (!bounds) return null;
  const type = valueType(text, bounds.start);
  if (type === "null") return null;
  if (type !== "object") return { code: "", message: labelOf(text, bounds, MAX_MESSAGE), step: "" };
  return {
    code: labelOf(text, findMember(text, bounds.start, "code")),
    message: labelOf(text, findMember(text, bounds.start, "message"), MAX_MESSAGE),
    step: labelOf(text, findMember(text, bounds.start, "step")),
  };
}

/** Tokens, cost and model of an agent's output; missing numbers are null. */
function usageOf(text, output) {
  const bounds = findMember(text, output.start, "usage");
  if (!bounds || valueType(text, bounds.start) !== "object") return null;
  const number = (key) => {
    const value = numberOf(text, findMember(text, bounds.start, key));
    return value !== null && value >= 0 ? value : null;
  };
  const [input, output_] = [number("promptTokens"), number("completionTokens")];
  const total = input === null && output_ === null ? number("totalTokens") : (input ?? 0) + (output_ ?? 0);
  const model = labelOf(text, findMember(text, bounds.start, "model"));
  return { input, output: output_, total, cost: number("estimatedCostUsd"), model };
}

const childRunIdOf = (text, output) => runIdIn(text, output, "runId");

/** A parent may pass its id on in the input. */
const parentRunIdOf = (text, input) => runIdIn(text, input, "parentRunId");

function runIdIn(text, payload, key) {
  const isObject = payload && valueType(text, payload.start) === "object";
  const bounds = isObject ? findMember(text, payload.start, key) : null;
  return bounds && valueType(text, bounds.start) === "string" ? labelOf(text, bounds, MAX_LINKED_RUN_ID) : "";
}

function maxAttemptsOf(text, policy) {
  return policy ? numberOf(text, findMember(text, policy.start, "maxAttempts")) : null;
}

/** The attempts that a step lists in its member attempts; null without the member. */
function attemptsOf(text, bounds) {
  if (!bounds || valueType(text, bounds.start) !== "array") return null;
  const items = children(text, bounds.start, { limit: MAX_ATTEMPTS }).items.filter(
    (item) => valueType(text, item.start) === "object",
  );
  return items.map((item, position) => {
    const members = membersOf(text, item.start);
    return {
      number: numberOf(text, members.get("attempt")) ?? position + 1,
      status: labelOf(text, members.get("status")),
      startedAt: labelOf(text, members.get("startedAt")),
      completedAt: labelOf(text, members.get("completedAt")),
      error: errorOf(text, members.get("error")),
    };
  });
}

/** Set `origin` of the run, and `from` and `to` of the run, its steps and their attempts. */
function setTimes(run) {
  const items = [run, ...run.steps, ...run.steps.flatMap((step) => step.attempts ?? [])];
  const starts = items.map((item) => parseInstant(item.startedAt));
  run.origin = starts.reduce(
    (first, start) => (!start || (first && millisecondsBetween(first, start) >= 0) ? first : start),
    null,
  );
  items.forEach((item, position) => {
    const start = starts[position];
    item.from = start ? millisecondsBetween(run.origin, start) : null;
    item.to = start ? endOf(item, run.origin) : null;
  });
}

/** The end in the document. If an item has ended without one, derive it from the duration. */
function endOf(item, origin) {
  const end = parseInstant(item.completedAt);
  if (end) return Math.max(millisecondsBetween(origin, end), item.from);
  if (item.status !== "skipped" && !hasEnded(item.status)) return null;
  return item.from + Math.max(item.durationMs ?? 0, 0);
}
