// The days or hours that statistics are shown by, in the browser's time zone. Pure.

import { startRange } from "../panel/time-range.js";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const HOURLY = 49 * HOUR; // the longest range that is shown by hours: two days, one of which may have 25 hours
const MAX_DAYS = 92;

/**
 * Choose days or hours for a range of time.
 *
 * @param {object} times - Query parameters of the time.
 * @param {Date} now
 * @returns {{unit: "day"|"hour", from: string, to: string, isCut: boolean}} from, to: parameters of the API. isCut:
 *   whether the range begins earlier, and only its end is shown.
 */
export function chooseBins(times, now) {
  const range = startRange(times, now);
  const to = range.to ?? now.getTime();
  const isCut = range.from === null || to - range.from > MAX_DAYS * DAY;
  const from = isCut ? to - MAX_DAYS * DAY : range.from;
  return {
    unit: to - from <= HOURLY ? "hour" : "day",
    from: new Date(from).toISOString(),
    to: range.to === null ? "" : new Date(to).toISOString(),
    isCut,
  };
}

/**
 * Return all bins of a range, with or without runs.
 *
 * @param {{from: string, to: string}} meta - Of the response.
 * @param {"day"|"hour"} unit
 * @returns {{from: number, to: number, key: string}[]} from, to: milliseconds since 1970. key: the member from of the
 *   group of this bin.
 */
export function allBins(meta, unit) {
  const end = Date.parse(meta.to);
  const bins = [];
  for (let from = Date.parse(meta.from); from < end;) {
    const to = Math.min(unit === "hour" ? from + HOUR : nextDay(from), end);
    bins.push({ from, to, key: new Date(from).toISOString() });
    from = to;
  }
  return bins;
}

/** The whole hour of UTC in which the next day of the browser's time zone begins. */
function nextDay(ms) {
  const at = new Date(ms);
  for (let days = 1; ; days++) {
    const midnight = new Date(at.getFullYear(), at.getMonth(), at.getDate() + days).getTime();
    const hour = Math.floor(midnight / HOUR) * HOUR;
    if (hour > ms) return hour;
  }
}

const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short" });
const hourFormat = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
});

/**
 * Format a bin: "Sat, 28 Nov" or "28 Nov, 14:00".
 *
 * @param {{from: number, to: number}} bin
 * @param {"day"|"hour"} unit
 */
export function binLabel(bin, unit) {
  // A day that begins within an hour is named by its middle.
  return unit === "hour" ? hourFormat.format(bin.from) : dayFormat.format((bin.from + bin.to) / 2);
}
