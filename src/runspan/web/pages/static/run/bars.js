// The bars of one row of the timeline, as elements.

import { h } from "../dom.js";
import { duration, number, status } from "../format.js";
import { merged } from "./axis.js";
import { elapsed } from "./facts.js";
import { attemptOf, faultText } from "./words.js";

const LEAST = 3;
const CLOSE = 1.5;
const GAP = 7;
const LETTER = 6.2; // about as wide as a letter of the smallest size

/** Where a step's bar begins and ends, in milliseconds; null for a step without a start. */
export function spanOf(step, last) {
  if (step.from === null) return null;
  return { from: step.from, to: step.to ?? Math.max(last, step.from), isOpen: step.to === null };
}

/** The elements of a row's track. `axis` is the time in sight, `last` where open bars end. */
export function barElements(row, { run, axis, last, now, selected }) {
  const spans = row.steps.map((index) => ({ index, span: spanOf(run.steps[index], last) })).filter(({ span }) => span);
  const seen = spans.filter(({ span }) => span.to >= axis.from && span.from <= axis.to);
  if (row.kind === "loop") return loopElements(seen, { run, axis, selected });
  return seen.flatMap(({ index, span }) => stepElements(run.steps[index], span, { run, axis, now }));
}

function placed(element, left, right, axis) {
  const from = Math.min(Math.max(left, -4), axis.width - LEAST);
  const to = Math.min(Math.max(right, left + LEAST), axis.width + 4);
  element.style.transform = `translateX(${from}px)`;
  element.style.width = `${Math.max(to - from, 1)}px`;
  return element;
}

function stepElements(step, span, { run, axis, now }) {
  const [left, right] = [axis.at(span.from), axis.at(span.to)];
  const { css } = status(step.status);
  const open = span.isOpen ? " open" : "";
  const bar = placed(h("span", { class: `bar-box ${css}${open}` }, attemptParts(step, span)), left, right, axis);
  const took = elapsed(step, run.zero, now);
  const words = [took !== null && duration(took), attemptOf(step)].filter(Boolean);
  return [bar, textElement(words, left, Math.max(right, left + LEAST), axis)];
}

/** The words of a bar after it, before it or in it: outside where there is room, if need be only the first of them. */
function textElement(words, left, right, axis) {
  const [from, to] = [Math.max(left, 0), Math.min(right, axis.width)];
  const texts = [words.join(" · "), words[0] ?? ""];
  const fits = (room) => texts.find((text) => text.length * LETTER + 2 * GAP <= room);
  const [after, before] = [fits(axis.width - to), fits(from)];
  const text = after ?? before ?? fits(to - from) ?? texts[1];
  const element = h("span", { class: "bar-text numbers" }, text);
  if (after !== undefined) element.style.transform = `translateX(${to + GAP}px)`;
  else {
    const edge = before !== undefined ? from : to;
    element.classList.toggle("inside", before === undefined);
    element.style.transform = `translateX(calc(${edge - GAP}px - 100%))`;
  }
  return element;
}

/** The attempts inside a bar: at their own times where the document lists them, else as many dots as there were. */
function attemptParts(step, span) {
  const whole = span.to - span.from;
  const listed = (step.attempts ?? []).filter((attempt) => attempt.from !== null && attempt.to !== null);
  if (listed.length && whole > 0) {
    return listed.map((attempt) => {
      const bad = attempt.error !== null || attempt.status === "failed";
      const fault = attempt.error ? `, ${faultText(attempt.error)}` : "";
      const title = `Attempt ${number(attempt.number)}: ${duration(attempt.to - attempt.from)}${fault}`;
      const part = h("span", { class: `bar-attempt ${status(bad ? "failed" : "completed").css}`, title });
      part.style.left = `${((attempt.from - span.from) / whole) * 100}%`;
      part.style.width = `${Math.max(((attempt.to - attempt.from) / whole) * 100, 0.5)}%`;
      return part;
    });
  }
  if (!attemptOf(step)) return null;
  const dots = Math.min(step.attempt, 12);
  return h(
    "span",
    { class: "bar-dots" },
    Array.from({ length: dots }, (_, place) => h("i", { class: place + 1 < dots ? "dot before" : "dot" })),
  );
}

function loopElements(seen, { run, axis, selected }) {
  const bars = seen.map(({ index, span }) => ({
    index,
    from: axis.at(span.from),
    to: axis.at(span.to),
    status: run.steps[index].status,
  }));
  bars.sort((one, other) => one.from - other.from);
  const boxes = merged(bars, CLOSE).map((bar) =>
    placed(h("span", { class: `bar-box thin ${status(bar.status).css}` }), bar.from, bar.to, axis),
  );
  const chosen = bars.find((bar) => bar.index === selected);
  return chosen ? [...boxes, placed(h("span", { class: "bar-box thin chosen" }), chosen.from, chosen.to, axis)] : boxes;
}
