// Texts that describe a step, shared by the canvas, the timeline and the side panel.

import { h } from "../dom.js";
import { duration, number, status, tokens } from "../format.js";
import { visible } from "../invisible-characters.js";
import { elapsedMs } from "./run-stats.js";

const UNCUT_LENGTH = 20;
const TAIL_LENGTH = 9;

/**
 * Return the title of a step on one line: its name, or its id without a name.
 *
 * @param {object} step - A step of indexRun().
 */
export const stepTitle = (step) => visible(step.name || step.id || "(no name)");

/**
 * Return which round of a loop an execution of a step is, such as "round 3 of 4"; "" for a step that is not repeated.
 *
 * @param {object} step - A step of indexRun().
 * @param {object} stats - The result of runStats().
 */
export function roundLabel(step, stats) {
  const indexes = stats.executions.get(step.id);
  return indexes.length > 1 ? `round ${number(indexes.indexOf(step.index) + 1)} of ${number(indexes.length)}` : "";
}

/**
 * Return what shows a text on one line and, where it does not fit, leave out its middle: names and ids often
 * differ at their end.
 *
 * @param {string} text - The text.
 */
export function cutInMiddle(text) {
  if (text.length <= UNCUT_LENGTH) return text;
  const characters = [...new Intl.Segmenter().segment(text)].map(({ segment }) => segment);
  const tail = characters.splice(-TAIL_LENGTH);
  const part = (css, texts) => h("span", { class: css }, texts.join(""));
  return h("span", { class: "cut" }, part("cut-head", characters), part("cut-tail", tail));
}

/**
 * Return the number of a step's attempt, such as "3 of 4"; "" if there is only one.
 *
 * @param {object} step - A step of indexRun().
 */
export function attemptNumber(step) {
  if (step.attempt === null || (step.attempt <= 1 && step.status !== "retrying")) return "";
  return step.maxAttempts !== null ? `${number(step.attempt)} of ${number(step.maxAttempts)}` : number(step.attempt);
}

/**
 * Return the attempt of a step, such as "attempt 3 of 4"; "" if there is only one.
 *
 * @param {object} step - A step of indexRun().
 */
export const attemptLabel = (step) => attemptNumber(step) && `attempt ${attemptNumber(step)}`;

/**
 * Return the details of a step, as a list of texts: type, duration, attempt and tokens.
 *
 * @param {object} step - A step of indexRun().
 * @param {{seconds: number, nanos: number}|null} origin - The run's origin.
 * @param {number} now - The current time in milliseconds since 1970.
 */
export function stepDetails(step, origin, now) {
  const ms = elapsedMs(step, origin, now);
  return [
    step.type && visible(step.type),
    ms !== null && duration(ms),
    attemptLabel(step),
    step.usage?.total && `${tokens(step.usage.total)} tokens`,
  ].filter(Boolean);
}

/**
 * Return the accessible name of a step: title, status and details.
 *
 * @param {object} step - A step of indexRun().
 * @param {{seconds: number, nanos: number}|null} origin - The run's origin.
 * @param {number} now - The current time in milliseconds since 1970.
 */
export function accessibleName(step, origin, now) {
  return [stepTitle(step), statusText(step.status), ...stepDetails(step, origin, now)].join(", ");
}

/**
 * Return the label of a status within a sentence.
 *
 * @param {string} value - The status.
 */
export const statusText = (value) => status(value).label.toLowerCase();

/**
 * Return code and message of an error on one line.
 *
 * @param {{code: string, message: string}} error - The error of a run, step or attempt.
 */
export const errorText = (error) =>
  [error.code, error.message].filter(Boolean).map(visible).join(": ") || "failed without a message";
