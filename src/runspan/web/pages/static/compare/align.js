// Two runs side by side: steps paired by id and occurrence, payloads compared by their own text. Pure.

import { lengthOf } from "../run/document.js";

const PAYLOADS = ["output", "input", "error"];
const FAR = 2; // so many times as long
const MUCH = 500; // and so many milliseconds longer

/**
 * The steps of both runs as pairs {id, occurrence, of, a, b, differs, slower}, in the order of the first run, those of
 * the second alone after their neighbour. a, b: a step or null. of: how often the id occurs. differs: what does, of
 * "missing", "status", "output", "input", "error" and other payloads' names.
 */
export function align(one, other) {
  const counts = countIds(one.run.steps, countIds(other.run.steps));
  const second = numbered(other.run.steps);
  const byKey = new Map(second.map((item) => [item.key, item]));
  const first = numbered(one.run.steps);
  const known = new Set(first.map((item) => item.key));
  const after = new Map(); // key of the first run's step -> steps of the second alone that follow it there
  let last = "";
  for (const item of second) {
    if (known.has(item.key)) last = item.key;
    else after.set(last, [...(after.get(last) || []), item]);
  }
  const alone = (key) => (after.get(key) || []).map((item) => [null, item]);
  const pairs = [...alone(""), ...first.flatMap((item) => [[item, byKey.get(item.key) || null], ...alone(item.key)])];
  return pairs.map(([a, b]) => pairOf(one, other, a, b, counts));
}

/** What differs of two items (runs or steps): names of payloads whose texts are not the same. */
export function payloadsThatDiffer(one, a, other, b) {
  const places = new Map();
  for (const payload of a.payloads) places.set(payload.key, [payload, null]);
  for (const payload of b.payloads) places.set(payload.key, [places.get(payload.key)?.[0] || null, payload]);
  const names = [...places.keys()].sort((x, y) => rank(x) - rank(y));
  return names.filter((name) => {
    const [x, y] = places.get(name);
    if (!x || !y) return true;
    return x.end - x.start !== y.end - y.start || one.text.slice(x.start, x.end) !== other.text.slice(y.start, y.end);
  });
}

/** Whether one took far longer than the other. */
export function isFar(a, b) {
  if (a === null || b === null) return false;
  const [less, more] = a < b ? [a, b] : [b, a];
  return more - less >= MUCH && more >= less * FAR;
}

function pairOf(one, other, a, b, counts) {
  const {
    step: { id, name },
    occurrence,
  } = a || b;
  const pair = {
    id,
    name,
    occurrence,
    of: counts.get(id),
    a: a?.step || null,
    b: b?.step || null,
    differs: [],
    far: false,
  };
  if (!a || !b) pair.differs.push("missing");
  else {
    if (a.step.status !== b.step.status) pair.differs.push("status");
    pair.differs.push(...payloadsThatDiffer(one, a.step, other, b.step));
    pair.far = isFar(lengthOf(a.step), lengthOf(b.step));
  }
  return pair;
}

function rank(name) {
  const place = PAYLOADS.indexOf(name);
  return place < 0 ? PAYLOADS.length : place;
}

function numbered(steps) {
  const seen = new Map();
  return steps.map((step) => {
    const occurrence = (seen.get(step.id) || 0) + 1;
    seen.set(step.id, occurrence);
    return { key: `${occurrence} ${step.id}`, occurrence, step };
  });
}

function countIds(steps, least = new Map()) {
  const counts = new Map();
  for (const { id } of steps) counts.set(id, (counts.get(id) || 0) + 1);
  for (const [id, count] of least) counts.set(id, Math.max(count, counts.get(id) || 0));
  return counts;
}
