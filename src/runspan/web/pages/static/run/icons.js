// The icons of the run page, and buttons with an icon.

import { h, s } from "../dom.js";

/** SVG paths in a box of 16 by 16. */
const PATHS = {
  close: "M4 4l8 8M12 4l-8 8",
  previous: "M10 3.5 5.5 8l4.5 4.5",
  next: "M6 3.5 10.5 8 6 12.5",
  wide: "M9.5 3h3.5v3.5M13 3 9 7M6.5 13H3V9.5M3 13l4-4",
  plus: "M8 3.5v9M3.5 8h9",
  minus: "M3.5 8h9",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  external: "M6.5 3.5h-3v9h9v-3M9 3h4v4M13 3 7.5 8.5",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z",
  download: "M8 2.5v7.5M4.8 7 8 10.2 11.2 7M3 13.2h10",
  canvas: "M5.5 2.5h5v3h-5zM2 10.5h5v3H2zM9 10.5h5v3H9zM8 5.5V8M4.5 10.5V8h7v2.5",
  timeline: "M2.5 4h6M5 8h7M8.5 12h5",
  child: "M3 3.5v4a2 2 0 0 0 2 2h7M9.5 7 12 9.5 9.5 12",
  loop: "M4 6.5A4.3 4.3 0 0 1 12 6M12 3v3H9M12 9.5A4.3 4.3 0 0 1 4 10M4 13v-3h3",
};

/**
 * Return an icon. It is hidden from screen readers, so its parent needs an accessible name.
 *
 * @param {string} name - A key of PATHS.
 */
export function icon(name) {
  return s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: PATHS[name] }));
}

/**
 * Return a small button with an icon.
 *
 * @param {string} name - Name of the icon.
 * @param {string} label - Accessible name and title.
 * @param {((event: MouseEvent) => void)|null} onclick - Click listener, if any.
 * @param {object} [attributes] - Further attributes, as for h().
 */
export function iconButton(name, label, onclick, attributes = {}) {
  const common = { class: "tool small", type: "button", title: label, "aria-label": label, onclick };
  return h("button", { ...common, ...attributes }, icon(name));
}
