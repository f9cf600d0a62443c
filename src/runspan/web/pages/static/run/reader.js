// A long value to read: a string's characters instead of its JSON text, a long number whole.

import { h } from "../dom.js";
import { readString } from "./json.js";
import { textNodes } from "./odd.js";
import { TextView } from "./textview.js";

const PROSE = 20_000;

/** {element, close} for the value at `place`. Prose is set as prose; what is too long for that in rows. */
export function readable(text, place, kind) {
  const own = kind === "string" ? readString(text, place.start, place.end) : text.slice(place.start, place.end);
  if (own.length <= PROSE) {
    const element = h(
      "div",
      { class: "prose", dir: "auto", tabindex: "0", role: "region", "aria-label": "The value as text" },
      textNodes(own),
    );
    return { element, close() {} };
  }
  const view = new TextView({ text: own, label: "The value as text" });
  view.element.classList.add("inset");
  return view;
}
