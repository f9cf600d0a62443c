// Text as elements, with what cannot be seen or turns the reading direction around shown for what it is.

import { h } from "../dom.js";

const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/**
 * Nodes for a piece of text. An odd character stays in the text, so that a selection copies it, in an element of its
 * own that isolates its direction and shows its number. `marks` are {start, end, current} to highlight, in order, and
 * `from` is where the piece stands in the text that they count in.
 */
export function textNodes(piece, from = 0, marks = []) {
  const nodes = [];
  let at = 0;
  for (const { start, end, current } of marks) {
    const [first, last] = [Math.max(start - from, at), Math.min(end - from, piece.length)];
    if (last <= first) continue;
    nodes.push(...plain(piece.slice(at, first)));
    nodes.push(h("mark", { class: current ? "hit current" : "hit" }, plain(piece.slice(first, last))));
    at = last;
  }
  nodes.push(...plain(piece.slice(at)));
  return nodes;
}

function plain(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(ODD)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(h("span", { class: "odd", dataset: { code: codeOf(match[0]) } }, match[0]));
    at = match.index + 1;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

const codeOf = (character) => `U+${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
