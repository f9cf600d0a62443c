// Where the values of a JSON text begin and end. Nothing is parsed, so numbers, duplicate keys and escapes keep their
// own text, and nesting of any depth is walked without recursion. Pure. The text is expected to be JSON; SyntaxError
// when it ends too early.

const QUOTE = 34,
  COMMA = 44,
  COLON = 58,
  OPEN_LIST = 91,
  BACKSLASH = 92,
  CLOSE_LIST = 93,
  OPEN = 123,
  CLOSE = 125;

const unfinished = (at) => new SyntaxError(`the text ends inside a value, at character ${at}`);

const isSpace = (code) => code === 32 || code === 10 || code === 13 || code === 9;

/** The first position from `at` that is no white space. */
export function skipSpace(text, at) {
  while (isSpace(text.charCodeAt(at))) at += 1;
  return at;
}

/** The position after the string that begins at `at`. */
export function skipString(text, at) {
  let end = at;
  for (;;) {
    end = text.indexOf('"', end + 1);
    if (end < 0) throw unfinished(at);
    let before = end - 1;
    while (text.charCodeAt(before) === BACKSLASH) before -= 1;
    if ((end - before) % 2) return end + 1;
  }
}

/** The position after the value that begins at `at`. */
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
    if (code === OPEN || code === OPEN_LIST) depth += 1;
    else if (code === CLOSE || code === CLOSE_LIST) {
      if (depth === 0) return here; // the container around a scalar
      depth -= 1;
      if (depth === 0) return here + 1;
    } else if (depth === 0 && (code === COMMA || isSpace(code))) return here;
    here += 1;
  }
  if (depth || here === at) throw unfinished(at);
  return here;
}

/** What a value is, by its first character: object, array, string, number, true, false or null. */
export function kindOf(text, at) {
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
 * The children of the object or array that begins at `start`: at most `limit`, from the position `from` that an earlier
 * call returned as `next`. Each is {start, end}, those of an object with {keyStart, keyEnd} too, quotes included.
 * `next` is -1 after the last child. Children stand in the order of the text, duplicate keys each for itself.
 */
export function children(text, start, { from = start + 1, limit = Infinity } = {}) {
  const inObject = text.charCodeAt(start) === OPEN;
  const close = inObject ? CLOSE : CLOSE_LIST;
  const items = [];
  let at = skipSpace(text, from);
  if (text.charCodeAt(at) === close) return { items, next: -1 };
  while (items.length < limit) {
    const child = {};
    if (inObject) {
      child.keyStart = at;
      child.keyEnd = skipString(text, at);
      at = skipSpace(text, child.keyEnd);
      if (text.charCodeAt(at) !== COLON) throw unfinished(at);
      at = skipSpace(text, at + 1);
    }
    child.start = at;
    child.end = skipValue(text, at);
    items.push(child);
    at = skipSpace(text, child.end);
    const code = text.charCodeAt(at);
    if (code === close) return { items, next: -1 };
    if (code !== COMMA) throw unfinished(at);
    at = skipSpace(text, at + 1);
  }
  return { items, next: at };
}

/** Whether the container that begins at `start` has no children. */
export function isEmpty(text, start) {
  const code = text.charCodeAt(skipSpace(text, start + 1));
  return code === CLOSE || code === CLOSE_LIST;
}

/** The object's member of this name, as {start, end}, or null; of several the last, as parsers take it. */
export function member(text, start, name) {
  if (text.charCodeAt(start) !== OPEN) return null;
  const wanted = JSON.stringify(name);
  let found = null;
  for (const child of children(text, start).items) {
    const key = text.slice(child.keyStart, child.keyEnd);
    if (key === wanted || (key.includes("\\") && JSON.parse(key) === name)) found = child;
  }
  return found;
}

/** A string's characters. Escaped lone surrogates stay what they are. */
export function readString(text, start, end) {
  return JSON.parse(text.slice(start, end));
}

/**
 * The way from the value at `start` to the innermost value around the position `offset`: the start of each container on
 * the way with the place of the child in it, as {start, index, child}. Empty when the value is a scalar.
 */
export function pathTo(text, start, offset) {
  const path = [];
  let at = start;
  for (;;) {
    const kind = kindOf(text, at);
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
