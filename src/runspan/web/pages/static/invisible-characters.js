// Untrusted text made safe to display: control characters, zero-width characters and bidirectional controls become
// visible, and no text changes the direction of its surroundings.

import { h } from "./dom.js";

const RANGES =
  "\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff";
const INVISIBLE = new RegExp(`[${RANGES}]`, "g");
const INVISIBLE_OR_BREAK = new RegExp(`[\\t\\n${RANGES}]`, "g");

const hexCode = (character) => character.charCodeAt(0).toString(16).padStart(4, "0");

/**
 * Return a text on one line, with every invisible character, tab and line break replaced by its \uXXXX escape.
 *
 * @param {any} text - The text. Other values are converted to strings.
 */
export function visible(text) {
  return String(text).replace(INVISIBLE_OR_BREAK, (character) => `\\u${hexCode(character)}`);
}

/**
 * Return a <bdi> element with a text on one line, isolated from the direction of its surroundings.
 *
 * @param {any} text - The text.
 * @param {object} [attributes] - Attributes of the element, as for h().
 */
export function isolated(text, attributes = {}) {
  return h("bdi", attributes, visible(text));
}

/**
 * Return nodes that display a piece of a text with its own line breaks. An invisible character stays in the text, so
 * that copying a selection includes it, but is wrapped in an element that isolates it and displays its code point.
 *
 * @param {string} piece - The piece.
 * @param {number} [offset] - Where the piece begins in the text that the highlights refer to.
 * @param {{start: number, end: number, isCurrent: boolean}[]} [highlights] - Ranges to highlight, in order.
 */
export function textNodes(piece, offset = 0, highlights = []) {
  const nodes = [];
  let at = 0;
  for (const { start, end, isCurrent } of highlights) {
    const [first, last] = [Math.max(start - offset, at), Math.min(end - offset, piece.length)];
    if (last <= first) continue;
    nodes.push(...plainNodes(piece.slice(at, first)));
    nodes.push(h("mark", { class: isCurrent ? "match current" : "match" }, plainNodes(piece.slice(first, last))));
    at = last;
  }
  nodes.push(...plainNodes(piece.slice(at)));
  return nodes;
}

function plainNodes(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    const code = `U+${hexCode(match[0]).toUpperCase()}`;
    nodes.push(h("span", { class: "invisible-character", dataset: { code } }, match[0]));
    at = match.index + 1;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}
