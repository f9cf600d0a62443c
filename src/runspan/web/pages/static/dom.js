// DOM helpers: create and update elements from plain values. Text is never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Create an HTML element: h("a", {href, class, onclick, "aria-label": …, dataset: {…}}, child, …).
 *
 * @param {string} tag - Tag name.
 * @param {object} [attributes] - Attributes by name. Functions under "on…" names become event listeners. null,
 *   undefined and false omit an attribute; true sets an empty one.
 * @param {...(Node|string|number|Array|null|undefined|false)} children - Child nodes and texts. Arrays are flattened;
 *   null, undefined and false are skipped.
 */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * Create an SVG element. The parameters are those of h().
 *
 * @param {string} tag - Tag name.
 * @param {object} [attributes] - Attributes by name.
 * @param {...(Node|string|number|Array|null|undefined|false)} children - Child nodes and texts.
 */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * Replace the children of an element and return the element.
 *
 * @param {Element} element - The parent.
 * @param {...(Node|string|number|Array|null|undefined|false)} children - The new children, as for h().
 */
export function replace(element, ...children) {
  element.replaceChildren(...flatten(children));
  return element;
}

/**
 * Make the values of `next` the children of `parent`, in order, and return `next`. Elements that are in both maps stay
 * in the document, so that they keep focus and pending clicks.
 *
 * @param {Element} parent - The parent.
 * @param {Map<any, Element>} previous - The current children by key: the map that the last call returned.
 * @param {Map<any, Element>} next - The new children by key.
 */
export function keyedChildren(parent, previous, next) {
  for (const [key, element] of previous) if (next.get(key) !== element) element.remove();
  let sibling = parent.firstChild;
  for (const element of next.values()) {
    if (element === sibling) sibling = sibling.nextSibling;
    else parent.insertBefore(element, sibling);
  }
  return next;
}

/**
 * Announce a text to screen readers through the page's live region.
 *
 * @param {string} text - The text.
 */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region && region.textContent !== text) region.textContent = text;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (typeof value === "function") {
      if (!name.startsWith("on")) throw new TypeError(`${name} must not be a function`);
      element.addEventListener(name.slice(2), value);
    } else if (name.startsWith("on")) throw new TypeError(`${name} must be a function`);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flatten(children));
  return element;
}

function flatten(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}
