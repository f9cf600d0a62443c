// Locates values in a JSON text without parsing them, so that numbers, duplicate keys and escapes keep their own text.
// Nesting of any depth is scanned without recursion. The text must be JSON; throws SyntaxError if it ends early. Pure.

const QUOTE = 34,
  COMMA = 44,
  COLON = 58,
  OPEN_ARRAY = 91,
  BACKSLASH = 92,
  CLOSE_ARRAY = 93,
  OPEN_OBJECT = 123,
  CLOSE_OBJECT = 125;

const unexpectedEnd = (at) => new SyntaxError(`the text ends inside a value, at character ${at}`);

const isWhitespace = (code) => code === 32 || code === 10 || code === 13 || code === 9;

function skipWhitespace(text, at) {
  while (isWhitespace(text.charCodeAt(at))) at += 1;
  return at;
}

function skipString(text, at) {
  let end = at;
  for (;;) {
    end = text.indexOf('"', end + 1);
    if (end < 0) throw unexpectedEnd(at);
    let before = end - 1;
    while (text.charCodeAt(before) === BACKSLASH) before -= 1;
    if ((end - before) % 2) return end + 1;
  }
}

/**
 * Return the position after a value.
 *
 * @param {string} text - The JSON text.
 * @param {number} at - Position of the value's first character.
 */
export function skipValue(text, at) {
  const first = text.charCodeAt(at);
  if (first === QUOTE) return skipString(text, at);
  const length = text.length;
  let depth = 0;
  let here = at;
  while (here < length) {
    const code = text.charCodeAt(here);
    if (code === QUOTE) {
      here = skipString(text, here);
      continue;
    }
    if (code === OPEN_OBJECT || code === OPEN_ARRAY) depth += 1;
    else if (code === CLOSE_OBJECT || code === CLOSE_ARRAY) {
      if (depth === 0) return here; // the end of the container around a scalar
      depth -= 1;
      if (depth === 0) return here + 1;
    } else if (depth === 0 && (code === COMMA || isWhitespace(code))) return here;
    here += 1;
  }
  if (depth || here === at) throw unexpectedEnd(at);
  return here;
}

/**
 * Return the type of a value by its first character: object, array, string, number, true, false or null.
 *
 * @param {string} text - The JSON text.
 * @param {number} at - Position of the value's first character.
 */
export function valueType(text, at) {
  switch (text[at]) {
    case "{":
      return "object";
    case "[":
      return "array";
    case '"':
      return "string";
    case "t":
      return "true";
    case "f":
      return "false";
    case "n":
      return "null";
    default:
      return "number";
  }
}

/**
 * Locate the children of an object or array, in the order of the text. Duplicate keys are separate children.
 *
 * @param {string} text - The JSON text.
 * @param {number} start - Position of the container.
 * @param {{from?: number, limit?: number}} [page] - from: continue at the `next` of an earlier call. limit: maximum
 *   number of children.
 * @returns {{items: {start: number, end: number, keyStart?: number, keyEnd?: number}[], next: number}}
 *   items: the bounds of each value and, in an object, of its key including the quotes.
 *   next: where to continue; -1 after the last child.
 */
export function children(text, start, { from = start + 1, limit = Infinity } = {}) {
  const inObject = text.charCodeAt(start) === OPEN_OBJECT;
  const close = inObject ? CLOSE_OBJECT : CLOSE_ARRAY;
  const items = [];
  let at = skipWhitespace(text, from);
  if (text.charCodeAt(at) === close) return { items, next: -1 };
  while (items.length < limit) {
    const child = {};
    if (inObject) {
      child.keyStart = at;
      child.keyEnd = skipString(text, at);
      at = skipWhitespace(text, child.keyEnd);
      if (text.charCodeAt(at) !== COLON) throw unexpectedEnd(at);
      at = skipWhitespace(text, at + 1);
    }
    child.start = at;
    child.end = skipValue(text, at);
    items.push(child);
    at = skipWhitespace(text, child.end);
    const code = text.charCodeAt(at);
    if (code === close) return { items, next: -1 };
    if (code !== COMMA) throw unexpectedEnd(at);
    at = skipWhitespace(text, at + 1);
  }
  return { items, next: at };
}

/**
 * Return whether an object or array has no children.
 *
 * @param {string} text - The JSON text.
 * @param {number} start - Position of the container.
 */
export function isEmpty(text, start) {
  const code = text.charCodeAt(skipWhitespace(text, start + 1));
  return code === CLOSE_OBJECT || code === CLOSE_ARRAY;
}

/**
 * Locate a member of an object. Return {start, end}, or null without such a member. The last of duplicate keys wins, as
 * in JSON.parse().
 *
 * @param {string} text - The JSON text.
 * @param {number} start - Position of the value. Values that are not objects have no members.
 * @param {string} name - The key.
 */
export function findMember(text, start, name) {
  if (text.charCodeAt(start) !== OPEN_OBJECT) return null;
  const quoted = JSON.stringify(name);
  let found = null;
  for (const child of children(text, start).items) {
    const key = text.slice(child.keyStart, child.keyEnd);
    if (key === quoted || (key.includes("\\") && JSON.parse(key) === name)) found = child;
  }
  return found;
}

/**
 * Return the characters of a JSON string. Escaped lone surrogates are kept.
 *
 * @param {string} text - The JSON text.
 * @param {number} start - Position of the opening quote.
 * @param {number} end - Position after the closing quote.
 */
export function readString(text, start, end) {
  return JSON.parse(text.slice(start, end));
}

/**
 * Return the path from a value to the innermost value at a position, as {start, index, child} for each container on the
 * path. The path of a scalar is empty.
 *
 * @param {string} text - The JSON text.
 * @param {number} start - Position of the outermost value.
 * @param {number} offset - The position to find.
 */
export function pathTo(text, start, offset) {
  const path = [];
  let at = start;
  for (;;) {
    const kind = valueType(text, at);
    if (kind !== "object" && kind !== "array") return path;
    let found = null;
    let from = at + 1;
    let index = 0;
    while (from >= 0 && !found) {
      const page = children(text, at, { from, limit: 256 });
      for (const child of page.items) {
        if (child.end > offset) {
          found = (child.keyStart ?? child.start) <= offset ? child : null;
          page.next = -1;
          break;
        }
        index += 1;
      }
      from = page.next;
    }
    if (!found) return path;
    path.push({ start: at, index, child: found });
    if (offset < found.start) return path;
    at = found.start;
  }
}
