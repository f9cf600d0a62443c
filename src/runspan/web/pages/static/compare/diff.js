// Where two JSON texts differ, member by member. Values are compared by their own text, so 12.10 is not 12.1 and no
// number loses a digit. Pure.

import { children, kindOf, readString } from "../run/json.js";

/**
 * {changes, more}: at most `limit` changes as {path, a, b}, where a and b are {start, end} in their texts or null, and
 * path is a list of names and positions; more: whether there are others. White space between values is no difference.
 */
export function diff(one, a, other, b, limit = 200) {
  const changes = [];
  const waiting = [{ path: [], a, b }];
  while (waiting.length) {
    const { path, a, b } = waiting.pop();
    if (changes.length > limit) break;
    if (a && b && one.slice(a.start, a.end) === other.slice(b.start, b.end)) continue;
    const kind = a && b && kindOf(one, a.start);
    const within = kind && kind === kindOf(other, b.start) ? pairs(kind, one, a, other, b) : null;
    if (!within) changes.push({ path, a, b });
    else for (const pair of within.reverse()) waiting.push({ path: [...path, pair.name], a: pair.a, b: pair.b });
  }
  return { changes: changes.slice(0, limit), more: changes.length > limit };
}

/** A path as people write it: items[3].name, ["odd name"]; "the whole value" for none. */
export function pathText(path) {
  const text = path
    .map((name) =>
      typeof name === "number"
        ? `[${name}]`
        : /^[\p{L}_$][\p{L}\p{N}_$-]*$/u.test(name)
          ? `.${name}`
          : `[${JSON.stringify(name)}]`,
    )
    .join("");
  return text.replace(/^\./, "") || "the whole value";
}

function pairs(kind, one, a, other, b) {
  if (kind === "object") return members(one, a, other, b);
  if (kind === "array") return items(one, a, other, b);
  return null;
}

function members(one, a, other, b) {
  const found = new Map();
  const put = (text, place, side) => {
    const seen = new Map();
    for (const child of children(text, place.start).items) {
      const name = readString(text, child.keyStart, child.keyEnd);
      const count = (seen.get(name) || 0) + 1;
      seen.set(name, count);
      const key = `${count} ${name}`;
      found.set(key, { name, a: null, b: null, ...found.get(key), [side]: child });
    }
  };
  put(one, a, "a");
  put(other, b, "b");
  return [...found.values()];
}

/** Items in order; what both arrays begin and end with is taken away first, so that one new item is one change. */
function items(one, a, other, b) {
  const left = children(one, a.start).items;
  const right = children(other, b.start).items;
  const same = (x, y) =>
    x.end - x.start === y.end - y.start && one.slice(x.start, x.end) === other.slice(y.start, y.end);
  let begin = 0;
  while (begin < left.length && begin < right.length && same(left[begin], right[begin])) begin += 1;
  let end = 0;
  while (end < left.length - begin && end < right.length - begin && same(left.at(-1 - end), right.at(-1 - end)))
    end += 1;
  const count = Math.max(left.length, right.length) - end;
  return Array.from({ length: Math.max(count - begin, 0) }, (_, offset) => {
    const place = begin + offset;
    return {
      name: place,
      a: place < left.length - end ? left[place] : null,
      b: place < right.length - end ? right[place] : null,
    };
  });
}
