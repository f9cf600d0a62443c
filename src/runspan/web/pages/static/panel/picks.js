// Two runs to compare, picked in the list and remembered from page to page.

import { url } from "../api.js";
import { announce, replace } from "../dom.js";

export class Picks {
  constructor(link, list) {
    this.link = link;
    this.list = list;
  }

  /** Shows the button as soon as a run is picked; it leads on once there are two. */
  show() {
    const picked = this.list.picked;
    this.link.hidden = picked.length === 0;
    if (picked.length === 2) {
      const [b, a] = picked; // the one picked first is the one to compare with
      this.link.href = url("/compare", { a: a, b: b });
      this.link.removeAttribute("aria-disabled");
      replace(this.link, "Compare 2 runs");
    } else {
      this.link.removeAttribute("href");
      this.link.setAttribute("aria-disabled", "true");
      replace(this.link, "Pick one more to compare");
    }
  }

  open() {
    if (this.link.href && !this.link.hidden) location.assign(this.link.href);
    else announce("Pick two runs first, with x");
  }
}
