// Elements from plain values: text is always text, so nothing that a run holds can become markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: h("a", {href, class, onclick, "aria-label": …, dataset: {…}}, child, …).
 * A child is a node, a text, a number, an array of these, or null/undefined/false for none.
 * An attribute that is null, undefined or false is left out; true stands as an empty one.
 */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Puts these children in place of those that are there. */
export function replace(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Says a sentence to a screen reader, once. */
export function announce(text) {
  const place = document.getElementById("announcer");
  if (place && place.textContent !== text) place.textContent = text;
}

/** A text that may come in any script and direction, kept from turning its surroundings around. */
export function isolated(text, attributes = {}) {
  return h("bdi", attributes, visible(text));
}

const ODD = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** A text on one line with what cannot be seen spelled out: control characters, zero widths, direction marks. */
export function visible(text) {
  return String(text).replace(ODD, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (typeof value === "function") {
      if (!name.startsWith("on")) throw new TypeError(`${name} takes no function`);
      element.addEventListener(name.slice(2), value);
    } else if (name.startsWith("on")) throw new TypeError(`${name} takes a function`);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}
