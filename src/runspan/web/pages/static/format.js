// Formats values for display: durations, times, tokens, cost, sizes and statuses.

import { h, s } from "./dom.js";
import { parseEpochMs } from "./instants.js";
import { visible } from "./invisible-characters.js";

const NONE = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/**
 * Format a duration: 340 ms, 1.24 s, 3 m 05 s, 2 h 14 m, 3 d 4 h. Return "–" if it is not a finite number.
 *
 * @param {number|null|undefined} ms - Milliseconds.
 */
export function duration(ms) {
  if (!isNumber(ms)) return NONE;
  const sign = ms < 0 ? "−" : "";
  const value = Math.abs(ms);
  if (value < 1) return value === 0 ? "0 ms" : `${sign}${Number(value.toPrecision(2))} ms`;
  if (value < 999.5) return `${sign}${Math.round(value)} ms`;
  if (value < 9_995) return `${sign}${(value / 1000).toFixed(2)} s`;
  if (value < 59_950) return `${sign}${(value / 1000).toFixed(1)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 3600) return `${sign}${Math.floor(seconds / 60)} m ${twoDigits(seconds % 60)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${sign}${Math.floor(minutes / 60)} h ${twoDigits(minutes % 60)} m`;
  const hours = Math.round(minutes / 60);
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const timeOfDay = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

/**
 * Format a time in the browser's time zone: "14:03:22" today, "3 Oct, 14:03:22" this year.
 *
 * @param {number|null|undefined} ms - Milliseconds since 1970.
 * @param {number} [now] - The current time in milliseconds since 1970.
 */
export function time(ms, now = Date.now()) {
  if (ms === null || ms === undefined) return NONE;
  const date = new Date(ms);
  const today = new Date(now);
  if (date.toDateString() === today.toDateString()) return timeOfDay.format(date);
  const dayFormat = date.getFullYear() === today.getFullYear() ? day : dayAndYear;
  return `${dayFormat.format(date)}, ${timeOfDay.format(date)}`;
}

/**
 * Format a time relative to now: "12 s ago", "3 h ago", "in 5 m".
 *
 * @param {number|null|undefined} ms - Milliseconds since 1970.
 * @param {number} [now] - The current time in milliseconds since 1970.
 */
export function relativeTime(ms, now = Date.now()) {
  if (ms === null || ms === undefined) return NONE;
  const seconds = Math.abs(now - ms) / 1000;
  const [amount, unit] =
    seconds < 60
      ? [seconds, "s"]
      : seconds < 3600
        ? [seconds / 60, "m"]
        : seconds < 86_400
          ? [seconds / 3600, "h"]
          : [seconds / 86_400, "d"];
  const text = `${Math.floor(amount)} ${unit}`;
  return now >= ms ? `${text} ago` : `in ${text}`;
}

/**
 * Format a time in UTC, followed by the document's own text in parentheses.
 *
 * @param {number} ms - Milliseconds since 1970.
 * @param {string} text - The timestamp as it is in the document.
 */
export function utcTime(ms, text) {
  return `${new Date(ms).toISOString().replace("T", " ").replace("Z", "")} UTC (${visible(text)})`;
}

/**
 * Return an element that shows a document's timestamp in the browser's time zone, with UTC as its title. A value that
 * is not a timestamp with a time zone is shown unchanged.
 *
 * @param {any} value - The value of a member such as startedAt.
 * @param {number} [now] - The current time in milliseconds since 1970.
 */
export function timeElement(value, now = Date.now()) {
  if (value === null || value === undefined || value === "") return h("span", { class: "muted" }, NONE);
  const ms = parseEpochMs(value);
  if (ms === null) return h("span", { title: "This time has no time zone and is shown unchanged." }, anyText(value));
  return h("time", { datetime: new Date(ms).toISOString(), title: utcTime(ms, value) }, time(ms, now));
}

/**
 * Format a number of tokens: 940, 1,590, 12.4k, 3.20M.
 *
 * @param {number|null|undefined} count - Number of tokens.
 */
export function tokens(count) {
  if (!isNumber(count)) return NONE;
  if (count < 10_000) return number(count);
  return count < 999_950 ? `${(count / 1000).toFixed(1)}k` : `${(count / 1e6).toFixed(2)}M`;
}

/**
 * Format a cost: $0, <$0.0001, $0.0190, $1.24, $1,240.00.
 *
 * @param {number|null|undefined} usd - US dollars.
 */
export function cost(usd) {
  if (!isNumber(usd)) return NONE;
  if (usd === 0) return "$0";
  if (usd > 0 && usd < 0.0001) return "<$0.0001";
  const digits = Math.abs(usd) < 1 ? 4 : 2;
  return `$${usd.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

const MAX_ENCODED = 1 << 20;

/**
 * Format the size of a text in UTF-8: 812 B, 3.4 KB, 10.2 MB. The size of a long text is estimated from its beginning.
 *
 * @param {string} text - The text.
 */
export function textSize(text) {
  const encoded = new TextEncoder().encode(text.slice(0, MAX_ENCODED)).length;
  const size = text.length <= MAX_ENCODED ? encoded : Math.round((encoded / MAX_ENCODED) * text.length);
  if (size < 1000) return `${size} B`;
  return size < 999_950 ? `${(size / 1000).toFixed(1)} KB` : `${(size / 1e6).toFixed(1)} MB`;
}

/**
 * Format a number with thousands separators: 1,240.
 *
 * @param {number|null|undefined} count - The number.
 */
export function number(count) {
  return isNumber(count) ? count.toLocaleString("en-US") : NONE;
}

/** Known statuses of runs and steps. path: the icon's lines in a box of 16 by 16. */
const STATUSES = {
  completed: { label: "Completed", isFinal: true, path: "M4.2 8.4 6.9 11 11.8 5.4" },
  failed: { label: "Failed", isFinal: true, path: "M5 5l6 6M11 5l-6 6" },
  skipped: { label: "Skipped", isFinal: true, path: "M5.4 8h5.2" },
  retrying: { label: "Retrying", isFinal: false, path: "M11.6 6.2A4.2 4.2 0 1 0 12.2 8M12.2 3.6v2.8H9.4" },
  running: { label: "Running", isFinal: false, path: "M5.8 4.4v7.2L11.6 8z" },
  pending: { label: "Pending", isFinal: false, path: "M8 4.7V8l2.2 1.6" },
  suspended: { label: "Suspended", isFinal: false, path: "M6.2 5v6M9.8 5v6" },
  cancelled: { label: "Cancelled", isFinal: true, path: "M4.6 11.4l6.8-6.8" },
  timed_out: { label: "Timed out", isFinal: true, path: "M8 4.2v4.4M8 11.3v.2" },
};
const UNKNOWN_STATUS_PATH = "M6 6.2a2 2 0 1 1 2.8 1.9c-.5.2-.8.6-.8 1.1v.2M8 11.4v.2";

/** The keys that status() returns. */
export const STATUS_KEYS = [...Object.keys(STATUSES), "other"];

/** The statuses of runs, in the order of the filter. */
export const RUN_STATUSES = ["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"];

/**
 * Describe a status.
 *
 * @param {any} value - The value of a member status.
 * @returns {{key: string, css: string, label: string, isFinal: boolean, path: string}} key: the status, or "other" for
 *   an unknown one. css: the class "status-<key>", which sets --status, --status-text and --status-tint. label: text to
 *   show. isFinal: whether the status no longer changes by itself. path: SVG path of the icon.
 */
export function status(value) {
  if (Object.hasOwn(STATUSES, value)) return { key: value, css: `status-${value}`, ...STATUSES[value] };
  const label = value === null || value === undefined ? "No status" : anyText(value);
  return { key: "other", css: "status-other", label, isFinal: true, path: UNKNOWN_STATUS_PATH };
}

/**
 * Return the icon of a status as an SVG element. Each status has its own shape, so that it does not depend on colour.
 *
 * @param {any} value - The status.
 * @param {number} [size] - Width and height in pixels.
 */
export function statusIcon(value, size = 16) {
  const { key, css, path } = status(value);
  const shape = ["pending", "skipped"].includes(key) ? "outline" : "solid";
  return s(
    "svg",
    { class: `status-icon ${css} ${shape}`, viewBox: "0 0 16 16", width: size, height: size, "aria-hidden": "true" },
    s("circle", { class: "disc", cx: 8, cy: 8, r: 7 }),
    s("path", { class: "mark", d: path }),
  );
}

/**
 * Return a badge with the icon and the label of a status.
 *
 * @param {any} value - The status.
 */
export function statusBadge(value) {
  const { css, label } = status(value);
  return h(
    "span",
    { class: `badge ${css}` },
    statusIcon(value, 14),
    h("span", { class: "badge-text", dir: "auto" }, label),
  );
}

function anyText(value) {
  return visible(typeof value === "string" ? value : JSON.stringify(value));
}

function twoDigits(value) {
  return String(value).padStart(2, "0");
}
