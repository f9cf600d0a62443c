// How values look: durations, times, tokens, cost, bytes, and what a status is called, coloured and marked with.

import { h, s, visible } from "./dom.js";

const NONE = "–";

/** Milliseconds as people say them: 340 ms, 1.24 s, 3 m 05 s, 2 h 14 m, 3 d 4 h. */
export function duration(ms) {
  if (typeof ms !== "number" || !Number.isFinite(ms)) return NONE;
  const sign = ms < 0 ? "−" : "";
  const value = Math.abs(ms);
  if (value < 1) return value === 0 ? "0 ms" : `${sign}${trim(value.toPrecision(2))} ms`;
  if (value < 999.5) return `${sign}${Math.round(value)} ms`;
  if (value < 9_995) return `${sign}${(value / 1000).toFixed(2)} s`;
  if (value < 59_950) return `${sign}${(value / 1000).toFixed(1)} s`;
  const seconds = Math.round(value / 1000);
  if (seconds < 3600) return `${sign}${Math.floor(seconds / 60)} m ${pad(seconds % 60)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${sign}${Math.floor(minutes / 60)} h ${pad(minutes % 60)} m`;
  const hours = Math.round(minutes / 60);
  return `${sign}${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const ZONED = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(?:[.,]\d+)?)?\s*(Z|[+-]\d\d:?\d\d)$/i;

/** Milliseconds since 1970 of a document's time; null when it is none, or names no zone and so no moment. */
export function instant(text) {
  if (typeof text !== "string" || !ZONED.test(text)) return null;
  const ms = Date.parse(text.replace(" ", "T").replace(",", "."));
  return Number.isFinite(ms) ? ms : null;
}

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const dayOfYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

/** A moment in this browser's zone: "14:03:22" today, "3 Oct, 14:03:22" this year. ms since 1970. */
export function time(ms, now = Date.now()) {
  if (ms === null || ms === undefined) return NONE;
  const date = new Date(ms);
  const today = new Date(now);
  if (date.toDateString() === today.toDateString()) return clock.format(date);
  const form = date.getFullYear() === today.getFullYear() ? day : dayOfYear;
  return `${form.format(date)}, ${clock.format(date)}`;
}

/** How long ago: "12 s ago", "3 h ago", "in 5 m". */
export function ago(ms, now = Date.now()) {
  if (ms === null || ms === undefined) return NONE;
  const away = Math.abs(now - ms) / 1000;
  const [amount, unit] =
    away < 60
      ? [away, "s"]
      : away < 3600
        ? [away / 60, "m"]
        : away < 86_400
          ? [away / 3600, "h"]
          : [away / 86_400, "d"];
  const text = `${Math.floor(amount)} ${unit}`;
  return now >= ms ? `${text} ago` : `in ${text}`;
}

/** The title of a moment: the document's own text, and UTC. */
export function utc(ms, own = "") {
  const text =
    ms === null || ms === undefined ? "" : `${new Date(ms).toISOString().replace("T", " ").replace("Z", "")} UTC`;
  return own && text ? `${text} (${visible(own)})` : text || visible(own);
}

/** A <time> element of a document's time: local, with UTC as its title; the text itself when it is no moment. */
export function timeElement(own, now = Date.now()) {
  if (own === null || own === undefined || own === "") return h("span", { class: "quiet" }, NONE);
  const ms = instant(own);
  if (ms === null)
    return h(
      "span",
      { title: "This time names no zone, so it is shown as it is." },
      visible(typeof own === "string" ? own : JSON.stringify(own)),
    );
  return h("time", { datetime: new Date(ms).toISOString(), title: utc(ms, own) }, time(ms, now));
}

/** A count of tokens: 940, 1,590, 12.4k, 3.20M. */
export function tokens(count) {
  if (typeof count !== "number" || !Number.isFinite(count)) return NONE;
  if (count < 10_000) return count.toLocaleString("en-US");
  return count < 999_950 ? `${(count / 1000).toFixed(1)}k` : `${(count / 1e6).toFixed(2)}M`;
}

/** US dollars: $0, <$0.0001, $0.0190, $1.24, $1,240.00. */
export function cost(usd) {
  if (typeof usd !== "number" || !Number.isFinite(usd)) return NONE;
  if (usd === 0) return "$0";
  if (usd > 0 && usd < 0.0001) return "<$0.0001";
  const digits = Math.abs(usd) < 1 ? 4 : 2;
  return `$${usd.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

/** A length in bytes: 812 B, 3.4 KB, 10.2 MB. */
export function bytes(count) {
  if (typeof count !== "number" || !Number.isFinite(count)) return NONE;
  if (count < 1000) return `${count} B`;
  if (count < 999_950) return `${(count / 1000).toFixed(1)} KB`;
  return `${(count / 1e6).toFixed(1)} MB`;
}

/** A count of things: 1,240. */
export function number(count) {
  return typeof count === "number" && Number.isFinite(count) ? count.toLocaleString("en-US") : NONE;
}

/** What is known of the statuses of runs and steps. path: the mark, drawn with lines in a box of 16 by 16. */
const STATUSES = {
  completed: { label: "Completed", mark: "✓", ended: true, path: "M4.2 8.4 6.9 11 11.8 5.4" },
  failed: { label: "Failed", mark: "✕", ended: true, path: "M5 5l6 6M11 5l-6 6" },
  skipped: { label: "Skipped", mark: "⤳", ended: true, path: "M5.4 8h5.2" },
  retrying: { label: "Retrying", mark: "↻", ended: false, path: "M11.6 6.2A4.2 4.2 0 1 0 12.2 8M12.2 3.6v2.8H9.4" },
  running: { label: "Running", mark: "▶", ended: false, path: "M5.8 4.4v7.2L11.6 8z" },
  pending: { label: "Pending", mark: "○", ended: false, path: "M8 4.7V8l2.2 1.6" },
  suspended: { label: "Suspended", mark: "⏸", ended: false, path: "M6.2 5v6M9.8 5v6" },
  cancelled: { label: "Cancelled", mark: "⊘", ended: true, path: "M4.6 11.4l6.8-6.8" },
  timed_out: { label: "Timed out", mark: "!", ended: true, path: "M8 4.2v4.4M8 11.3v.2" },
};

export const RUN_STATUSES = ["pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out"];

/**
 * {key, label, mark, css, path, ended}: key is the status, or "other" for one that is not known; css is the class
 * "status-<key>", which sets the variables --status, --status-text and --status-tint; mark is one character for plain
 * text; ended: whether it leaves by itself no more.
 */
export function status(value) {
  if (Object.hasOwn(STATUSES, value)) return { key: value, css: `status-${value}`, ...STATUSES[value] };
  const label =
    value === null || value === undefined
      ? "No status"
      : visible(typeof value === "string" ? value : JSON.stringify(value));
  return {
    key: "other",
    css: "status-other",
    label,
    mark: "?",
    ended: true,
    path: "M6 6.2a2 2 0 1 1 2.8 1.9c-.5.2-.8.6-.8 1.1v.2M8 11.4v.2",
  };
}

/** The mark of a status as an SVG element: a shape of its own for each, so that colour is not needed to tell it. */
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

/** Mark and word of a status, on its tint. */
export function statusBadge(value) {
  const { css, label } = status(value);
  return h(
    "span",
    { class: `badge ${css}` },
    statusIcon(value, 14),
    h("span", { class: "badge-text", dir: "auto" }, label),
  );
}

function pad(value) {
  return String(value).padStart(2, "0");
}

function trim(text) {
  return String(Number(text));
}
