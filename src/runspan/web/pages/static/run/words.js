// What is said of a step, the same on the canvas, in the timeline and in the panel.

import { visible } from "../dom.js";
import { duration, number, status, tokens } from "../format.js";
import { elapsed } from "./facts.js";

/** The step's name, its id without one; on one line. */
export const titleOf = (step) => visible(step.name || step.id || "(no name)");

/** The attempt, where there was more than one or more may come: "attempt 3 of 4"; "" otherwise. */
export function attemptOf(step) {
  if (step.attempt === null || (step.attempt <= 1 && step.status !== "retrying")) return "";
  return step.maxAttempts !== null
    ? `attempt ${number(step.attempt)} of ${number(step.maxAttempts)}`
    : `attempt ${number(step.attempt)}`;
}

/** Type, duration, attempt and tokens of a step, as pieces. */
export function piecesOf(step, zero, now) {
  const took = elapsed(step, zero, now);
  return [
    step.type && visible(step.type),
    took !== null && duration(took),
    attemptOf(step),
    step.usage?.total && `${tokens(step.usage.total)} tokens`,
  ].filter(Boolean);
}

/** What a screen reader says of a step. */
export function nameOf(step, zero, now) {
  return [titleOf(step), status(step.status).label.toLowerCase(), ...piecesOf(step, zero, now)].join(", ");
}

/** An error in one line. */
export const faultText = (error) =>
  [error.code, error.message].filter(Boolean).map(visible).join(": ") || "failed without a message";
