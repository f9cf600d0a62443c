// Finds where two JSON texts differ, value by value. Values are compared by their text, so 12.10 differs from 12.1 and
// no number loses a digit. Pure.

import { children, readString, valueType } from "../run/json.js";
import { isSameText } from "./align.js";

/**
 * Compare two JSON values. White space between values is ignored.
 *
 * @param {string} textA - The text that contains value A.
 * @param {{start: number, end: number}|null} a - The bounds of value A; null if there is none.
 * @param {string} textB - The text that contains value B.
 * @param {{start: number, end: number}|null} b - The bounds of value B; null if there is none.
 * @param {number} [limit] - Maximum number of changes.
 * @returns {{changes: {path: (string|number)[], a: object|null, b: object|null}[], hasMore: boolean}} path: keys and
 *   positions. a, b: the bounds of the values that differ.
 */
export function diffJson(textA, a, textB, b, limit = 200) {
  const changes = [];
  const pending = [{ path: [], a, b }];
  while (pending.length && changes.length <= limit) {
    const { path, a: valueA, b: valueB } = pending.pop();
    if (isSameText(textA, valueA, textB, valueB)) continue;
    const pairs = valueA && valueB ? pairChildren(textA, valueA, textB, valueB) : null;
    if (!pairs) changes.push({ path, a: valueA, b: valueB });
    else for (const pair of pairs.reverse()) pending.push({ path: [...path, pair.name], a: pair.a, b: pair.b });
  }
  return { changes: changes.slice(0, limit), hasMore: changes.length > limit };
}

/**
 * Format a path: items[3].name, ["any other key"]; "the entire value" for an empty path.
 *
 * @param {(string|number)[]} path - Keys and positions.
 */
export function formatPath(path) {
  const isIdentifier = (name) => /^[\p{L}_$][\p{L}\p{N}_$-]*$/u.test(name);
  const text = path
    .map((name) => (typeof name === "string" && isIdentifier(name) ? `.${name}` : `[${JSON.stringify(name)}]`))
    .join("");
  return text.replace(/^\./, "") || "the entire value";
}

/** Pair the children of two objects or two arrays; null for other values. */
function pairChildren(textA, a, textB, b) {
  const type = valueType(textA, a.start);
  if (type !== valueType(textB, b.start)) return null;
  if (type === "object") return pairMembers(textA, a, textB, b);
  return type === "array" ? pairItems(textA, a, textB, b) : null;
}

/** Pair members by key. The n-th of duplicate keys is paired with the n-th. */
function pairMembers(textA, a, textB, b) {
  const pairs = new Map();
  const add = (text, bounds, side) => {
    const seen = new Map();
    for (const child of children(text, bounds.start).items) {
      const name = readString(text, child.keyStart, child.keyEnd);
      const count = (seen.get(name) || 0) + 1;
      seen.set(name, count);
      const key = `${count} ${name}`;
      pairs.set(key, { name, a: null, b: null, ...pairs.get(key), [side]: child });
    }
  };
  add(textA, a, "a");
  add(textB, b, "b");
  return [...pairs.values()];
}

/** Pair items by position, without the common start and end of the arrays, so that one inserted item is one change. */
function pairItems(textA, a, textB, b) {
  const itemsA = children(textA, a.start).items;
  const itemsB = children(textB, b.start).items;
  const minLength = Math.min(itemsA.length, itemsB.length);
  let start = 0;
  while (start < minLength && isSameText(textA, itemsA[start], textB, itemsB[start])) start += 1;
  let end = 0;
  while (end < minLength - start && isSameText(textA, itemsA.at(-1 - end), textB, itemsB.at(-1 - end))) end += 1;
  const count = Math.max(itemsA.length, itemsB.length) - end - start;
  return Array.from({ length: Math.max(count, 0) }, (_, offset) => {
    const position = start + offset;
    return {
      name: position,
      a: position < itemsA.length - end ? itemsA[position] : null,
      b: position < itemsB.length - end ? itemsB[position] : null,
    };
  });
}
