// Whether an unfinished run has fallen silent. Pure.

import { parseEpochMs } from "../instants.js";

const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;
const HEARTBEAT_INTERVAL = MINUTE / 2; // this and the next as in contracts.py
const HEARTBEAT_SHARE = 16;
const LATE = 15 * MINUTE; // after the time when the run should have been observed again
const UNITS = [
  ["day", DAY],
  ["hour", 60 * MINUTE],
  ["minute", MINUTE],
];
const ago = new Intl.RelativeTimeFormat("en");

/**
 * Return how long a run has been silent: null unless it is pending or running and was not observed again when it was
 * due. A suspended run waits, and is never silent.
 *
 * @param {object} run - The result of indexRun().
 * @param {string} observedAt - When it was last observed, "" if that is not known.
 * @param {number} now - The current time in milliseconds since 1970.
 * @returns {{ms: number, isDead: boolean}|null} isDead: whether it is probably dead, being a day late.
 */
export function silenceOf(run, observedAt, now) {
  const observed = parseEpochMs(observedAt);
  if (observed === null || !["pending", "running"].includes(run.status)) return null;
  const started = parseEpochMs(run.startedAt || run.createdAt) ?? observed;
  const due = observed + Math.max(HEARTBEAT_INTERVAL, (observed - started) / HEARTBEAT_SHARE);
  return now - due > LATE ? { ms: now - observed, isDead: now - due > DAY } : null;
}

/**
 * Return a silence for people: "Last seen 22 days ago, probably dead".
 *
 * @param {{ms: number, isDead: boolean}} silence - The result of silenceOf().
 */
export function silenceText({ ms, isDead }) {
  const [unit, length] = UNITS.find(([, one]) => ms >= one) ?? UNITS.at(-1);
  return `Last seen ${ago.format(-Math.floor(ms / length), unit)}${isDead ? ", probably dead" : ""}`;
}
