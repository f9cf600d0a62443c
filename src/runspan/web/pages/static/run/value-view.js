// Shows one long JSON value in full: the characters of a string, the JSON text of other values.

import { h } from "../dom.js";
import { textNodes } from "../invisible-characters.js";
import { readString } from "./json.js";
import { TextView } from "./text-view.js";

const MAX_PROSE = 20_000;
const LABEL = "The value as text";

/**
 * Return {element, close} for a value. Long texts are shown in rows, of which only the visible ones are elements.
 *
 * @param {string} text - The JSON text.
 * @param {{start: number, end: number}} bounds - Where the value is in the text.
 * @param {string} type - The value's type, from valueType().
 */
export function valueView(text, { start, end }, type) {
  const value = type === "string" ? readString(text, start, end) : text.slice(start, end);
  if (value.length <= MAX_PROSE) {
    const attributes = { class: "prose", dir: "auto", tabindex: "0", role: "region", "aria-label": LABEL };
    return { element: h("div", attributes, textNodes(value)), close() {} };
  }
  const view = new TextView({ text: value, label: LABEL });
  view.element.classList.add("inset");
  return view;
}
