// The bars in one row of the timeline, as elements.

import { h } from "../dom.js";
import { duration, number, status } from "../format.js";
import { elapsedMs } from "./run-stats.js";
import { attemptLabel, errorText } from "./step-labels.js";

const MIN_WIDTH = 3; // pixels
const OVERFLOW = 4; // pixels that a bar extends beyond the axis, so that its end is hidden
const MERGE_DISTANCE = 1.5; // pixels
const LABEL_GAP = 7;
const CHARACTER_WIDTH = 6.2; // approximate width of a character of the label's font
const MAX_DOTS = 12;

/**
 * Return the time interval of a step's bar, as {from, to, isOpen} in milliseconds; null for a step without a start.
 *
 * @param {object} step - A step of indexRun().
 * @param {number} last - Where the bars of unfinished steps end.
 */
export function barInterval(step, last) {
  if (step.from === null) return null;
  return { from: step.from, to: step.to ?? Math.max(last, step.from), isOpen: step.to === null };
}

/**
 * Create the elements in the track of a row.
 *
 * @param {object} row - A row of timelineRows().
 * @param {object} options
 * @param {object} options.run - The result of indexRun().
 * @param {import("./time-axis.js").TimeAxis} options.axis - The time axis.
 * @param {number} options.last - Where the bars of unfinished steps end.
 * @param {number} options.now - The current time in milliseconds since 1970.
 * @param {number|null} options.selected - Index of the selected step.
 */
export function createBars(row, options) {
  const { run, axis, last } = options;
  const visible = row.steps
    .map((index) => ({ index, interval: barInterval(run.steps[index], last) }))
    .filter(({ interval }) => interval && interval.to >= axis.from && interval.from <= axis.to);
  if (row.kind === "loop") return loopBars(visible, options);
  return visible.flatMap(({ index, interval }) => stepBar(run.steps[index], interval, options));
}

function place(element, left, right, axis) {
  const from = Math.min(Math.max(left, -OVERFLOW), axis.width - MIN_WIDTH);
  const to = Math.min(Math.max(right, left + MIN_WIDTH), axis.width + OVERFLOW);
  element.style.transform = `translateX(${from}px)`;
  element.style.width = `${Math.max(to - from, 1)}px`;
  return element;
}

function stepBar(step, interval, { run, axis, now }) {
  const [left, right] = [axis.toPixel(interval.from), axis.toPixel(interval.to)];
  const css = `bar-box ${status(step.status).css}${interval.isOpen ? " open" : ""}`;
  const bar = place(h("span", { class: css }, attemptNodes(step, interval)), left, right, axis);
  const ms = elapsedMs(step, run.origin, now);
  const parts = [ms !== null && duration(ms), attemptLabel(step)].filter(Boolean);
  return [bar, barLabel(parts, left, Math.max(right, left + MIN_WIDTH), axis)];
}

/** The label of a bar: after the bar, before it or inside, where there is room; only its first part if necessary. */
function barLabel(parts, left, right, axis) {
  const [from, to] = [Math.max(left, 0), Math.min(right, axis.width)];
  const texts = [parts.join(" · "), parts[0] ?? ""];
  const fitting = (room) => texts.find((text) => text.length * CHARACTER_WIDTH + 2 * LABEL_GAP <= room);
  const [after, before] = [fitting(axis.width - to), fitting(from)];
  const element = h("span", { class: "bar-text tabular-nums" }, after ?? before ?? fitting(to - from) ?? texts[1]);
  if (after !== undefined) element.style.transform = `translateX(${to + LABEL_GAP}px)`;
  else {
    const isInside = before === undefined;
    element.classList.toggle("inside", isInside);
    element.style.transform = `translateX(calc(${(isInside ? to : from) - LABEL_GAP}px - 100%))`;
  }
  return element;
}

/** The attempts inside a bar: at their times if the document lists them, else one dot for each. */
function attemptNodes(step, interval) {
  const length = interval.to - interval.from;
  const listed = (step.attempts ?? []).filter((attempt) => attempt.from !== null && attempt.to !== null);
  if (listed.length && length > 0) {
    return listed.map((attempt) => {
      const hasFailed = attempt.error !== null || attempt.status === "failed";
      const error = attempt.error ? `, ${errorText(attempt.error)}` : "";
      const title = `Attempt ${number(attempt.number)}: ${duration(attempt.to - attempt.from)}${error}`;
      const element = h("span", { class: `bar-attempt ${status(hasFailed ? "failed" : "completed").css}`, title });
      element.style.left = `${((attempt.from - interval.from) / length) * 100}%`;
      element.style.width = `${Math.max(((attempt.to - attempt.from) / length) * 100, 0.5)}%`;
      return element;
    });
  }
  if (!attemptLabel(step)) return null;
  const count = Math.min(step.attempt, MAX_DOTS);
  return h(
    "span",
    { class: "bar-dots" },
    Array.from({ length: count }, (_, position) => h("i", { class: position + 1 < count ? "dot before" : "dot" })),
  );
}

function loopBars(visible, { run, axis, selected }) {
  const bars = visible.map(({ index, interval }) => ({
    index,
    from: axis.toPixel(interval.from),
    to: axis.toPixel(interval.to),
    status: run.steps[index].status,
  }));
  bars.sort((a, b) => a.from - b.from);
  const elementOf = (css, { from, to }) => place(h("span", { class: `bar-box thin ${css}` }), from, to, axis);
  const elements = mergeBars(bars).map((bar) => elementOf(status(bar.status).css, bar));
  const selectedBar = bars.find((bar) => bar.index === selected);
  return selectedBar ? [...elements, elementOf("selected", selectedBar)] : elements;
}

/** Merge adjacent bars with the same status, so that thousands of executions need few elements. */
function mergeBars(bars) {
  const merged = [];
  for (const bar of bars) {
    const last = merged.at(-1);
    if (last && bar.from - last.to < MERGE_DISTANCE && last.status === bar.status) last.to = Math.max(last.to, bar.to);
    else merged.push({ ...bar });
  }
  return merged;
}
