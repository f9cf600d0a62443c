// The index of a run document: what the page shows of the run and of each step, and where in the text every member
// stands. Payloads are located, never parsed. Pure; the result is plain data that a worker can hand over.

import { children, kindOf, member, readString } from "./json.js";
import { between, parseInstant } from "./times.js";

const LABEL_LENGTH = 300;
const MESSAGE_LENGTH = 2000;
const ENDED = new Set(["completed", "failed", "cancelled", "timed_out"]);

/** Whether what has this status will not change any more; without a status nobody knows, and nothing is waited for. */
export const hasEnded = (status) => status === "" || ENDED.has(status);

/**
 * The run in the answer of `GET /api/v1/runs/{id}`. SyntaxError when the text is no such answer.
 *
 * `start` and `end` bound the document's own text. `payloads` are the members to look into, as {key, start, end}; the
 * first are input, output and error. Times are milliseconds after `zero`, the first instant in the document.
 */
export function indexRun(text) {
  const data = kindOf(text, 0) === "object" ? member(text, 0, "data") : null;
  if (!data || kindOf(text, data.start) !== "object") throw new SyntaxError("the answer has no run in it");
  const members = named(text, data.start);
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
    parentRunId: label("parentRunId"),
    durationMs: numberOf(text, members.get("durationMs")),
    error: faultOf(text, members.get("error")),
    payloads: payloadsOf(text, members),
    steps: [],
    zero: null,
  };
  const steps = members.get("steps");
  if (steps && kindOf(text, steps.start) === "array") {
    const usage = finder(text, '"usage"');
    run.steps = children(text, steps.start).items.map((place, index) => indexStep(text, place, index, usage));
  }
  placeInTime(run);
  return run;
}

const RUN_KNOWN = new Set([
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
const STEP_KNOWN = new Set(["id", "name", "type", "status", "startedAt", "completedAt", "durationMs", "attempt"]);
const FIRST = ["input", "output", "error"];

function indexStep(text, place, index, usage) {
  const members = named(text, place.start);
  const label = (key) => labelOf(text, members.get(key));
  const type = label("type");
  const output = members.get("output");
  return {
    index,
    start: place.start,
    end: place.end,
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
    error: faultOf(text, members.get("error")),
    usage: type === "agent" && output && usage(output.start, output.end) ? usageOf(text, output) : null,
    child: type === "sub-workflow" ? childOf(text, output) : "",
    payloads: payloadsOf(text, members, STEP_KNOWN),
  };
}

/** Looks for a word between two positions that never go back, so that all questions together read the text once. */
function finder(text, word) {
  let next = text.indexOf(word);
  return (start, end) => {
    while (next >= 0 && next < start) next = text.indexOf(word, start);
    return next >= 0 && next < end;
  };
}

function named(text, start) {
  if (kindOf(text, start) !== "object") return new Map();
  return new Map(children(text, start).items.map((child) => [readString(text, child.keyStart, child.keyEnd), child]));
}

/** What a person reads of a member: a string's characters, anything else as its text, both cut; "" for none. */
function labelOf(text, place, limit = LABEL_LENGTH) {
  if (!place || kindOf(text, place.start) === "null") return "";
  const value =
    kindOf(text, place.start) === "string"
      ? readString(text, place.start, place.end)
      : text.slice(place.start, place.end);
  return value.length > limit ? `${value.slice(0, limit)}…` : value;
}

function numberOf(text, place) {
  if (!place || kindOf(text, place.start) !== "number") return null;
  return Number(text.slice(place.start, place.end));
}

function payloadsOf(text, members, known = RUN_KNOWN) {
  const first = FIRST.filter((key) => members.has(key));
  const rest = [...members.keys()].filter((key) => !known.has(key) && !FIRST.includes(key));
  return [...first, ...rest].map((key) => ({ key, start: members.get(key).start, end: members.get(key).end }));
}

/** The error as {code, message}, or null when there is none. */
function faultOf(text, place) {
  if (!place) return null;
  const kind = kindOf(text, place.start);
  if (kind === "null") return null;
  if (kind !== "object") return { code: "", message: labelOf(text, place, MESSAGE_LENGTH), step: "" };
  return {
    code: labelOf(text, member(text, place.start, "code")),
    message: labelOf(text, member(text, place.start, "message"), MESSAGE_LENGTH),
    step: labelOf(text, member(text, place.start, "step")),
  };
}

/** Tokens, model and cost of an agent's output; a number is null where the output has none. */
function usageOf(text, output) {
  const place = member(text, output.start, "usage");
  if (!place || kindOf(text, place.start) !== "object") return null;
  const number = (key) => {
    const value = numberOf(text, member(text, place.start, key));
    return value !== null && value >= 0 ? value : null;
  };
  const [input, output_] = [number("promptTokens"), number("completionTokens")];
  const sum = input === null && output_ === null ? number("totalTokens") : (input ?? 0) + (output_ ?? 0);
  const model = labelOf(text, member(text, place.start, "model"));
  return { input, output: output_, total: sum, cost: number("estimatedCostUsd"), model };
}

function childOf(text, output) {
  const place = output ? member(text, output.start, "runId") : null;
  return place && kindOf(text, place.start) === "string" ? labelOf(text, place, 512) : "";
}

function maxAttemptsOf(text, policy) {
  return policy ? numberOf(text, member(text, policy.start, "maxAttempts")) : null;
}

/** The attempts that a step lists one by one in its member `attempts`; null when it does not. */
function attemptsOf(text, place) {
  if (!place || kindOf(text, place.start) !== "array") return null;
  const items = children(text, place.start, { limit: 100 }).items.filter(
    (item) => kindOf(text, item.start) === "object",
  );
  return items.map((item, position) => {
    const members = named(text, item.start);
    return {
      number: numberOf(text, members.get("attempt")) ?? position + 1,
      status: labelOf(text, members.get("status")),
      startedAt: labelOf(text, members.get("startedAt")),
      completedAt: labelOf(text, members.get("completedAt")),
      error: faultOf(text, members.get("error")),
    };
  });
}

/** Gives run, steps and attempts `from` and `to`, in milliseconds after the first instant; null is none. */
function placeInTime(run) {
  const timed = [run, ...run.steps, ...run.steps.flatMap((step) => step.attempts ?? [])];
  for (const item of timed) {
    item.begin = parseInstant(item.startedAt);
    item.finish = parseInstant(item.completedAt);
  }
  const begun = timed.filter((item) => item.begin).map((item) => item.begin);
  const zero = begun.reduce((first, one) => (first && between(first, one) >= 0 ? first : one), null);
  run.zero = zero;
  for (const item of timed) {
    item.from = item.begin ? between(zero, item.begin) : null;
    item.to = item.begin ? endOf(item, zero) : null;
    delete item.begin;
    delete item.finish;
  }
}

/** The end as the document tells it; of what has ended without telling when, the start and the duration tell it. */
function endOf(item, zero) {
  if (item.finish) return Math.max(between(zero, item.finish), item.from);
  if (item.status !== "skipped" && !hasEnded(item.status)) return null;
  return item.from + Math.max(item.durationMs ?? 0, 0);
}

/** How long a run or step took in milliseconds: what the document says, else between its times; null is unknown. */
export function lengthOf(item) {
  if (item.durationMs !== null) return item.durationMs;
  return item.from !== null && item.to !== null ? item.to - item.from : null;
}
