// The two runs selected for comparison. They are kept in session storage, across the pages of the list.

import { url } from "../api.js";
import { announce, replace } from "../dom.js";

const STORAGE_KEY = "runspan.compare";
const MAX_SELECTED = 2;

/** The ids of the selected runs, and the link that compares them. */
export class CompareSelection {
  /**
   * @param {HTMLAnchorElement} link - The link to the compare page. It is shown once a run is selected.
   */
  constructor(link) {
    this.link = link;
    this.ids = readStorage();
    this.showLink();
  }

  /**
   * Return whether a run is selected.
   *
   * @param {string} id - Run id.
   */
  has(id) {
    return this.ids.includes(id);
  }

  /**
   * Select or deselect a run. Selecting a third run deselects the first.
   *
   * @param {string} id - Run id.
   * @param {boolean} isSelected - Whether to select it.
   */
  set(id, isSelected) {
    const others = this.ids.filter((other) => other !== id);
    this.ids = isSelected ? [...others, id].slice(-MAX_SELECTED) : others;
    try {
      sessionStorage.setItem(STORAGE_KEY, JSON.stringify(this.ids));
    } catch {
      // Without storage the selection lasts until the page is left.
    }
    this.showLink();
  }

  /** Navigate to the comparison, or announce that runs are missing. */
  open() {
    if (this.link.href && !this.link.hidden) location.assign(this.link.href);
    else announce("Select two runs first, with x");
  }

  showLink() {
    this.link.hidden = this.ids.length === 0;
    if (this.ids.length === MAX_SELECTED) {
      const [a, b] = this.ids;
      this.link.href = url("/compare", { a, b });
      this.link.removeAttribute("aria-disabled");
      replace(this.link, "Compare 2 runs");
    } else {
      this.link.removeAttribute("href");
      this.link.setAttribute("aria-disabled", "true");
      replace(this.link, "Select one more to compare");
    }
  }
}

function readStorage() {
  try {
    const ids = JSON.parse(sessionStorage.getItem(STORAGE_KEY) || "[]");
    return Array.isArray(ids) ? ids.filter((id) => typeof id === "string").slice(-MAX_SELECTED) : [];
  } catch {
    return [];
  }
}
