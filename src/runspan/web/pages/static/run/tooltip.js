// Tooltip with the details of the step under the pointer or with the focus. Hidden from screen readers, because the
// accessible names of steps contain the same details.

import { h, replace } from "../dom.js";
import { duration, status, statusIcon } from "../format.js";
import { elapsedMs } from "./run-stats.js";
import { attemptNumber, errorText, stepTitle } from "./step-labels.js";

const DELAY_MS = 300;
const GAP = 14;

/** Shows the tooltip for the steps within an element. */
export class Tooltip {
  /**
   * @param {Element} area - The element that contains the steps.
   * @param {(event: Event) => {run: object, step: object}|null} stepAt - Returns the step that an event refers to.
   */
  constructor(area, stepAt) {
    this.card = h("div", { class: "tooltip", hidden: true, "aria-hidden": "true" });
    this.timer = 0;
    document.body.append(this.card);
    area.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && !event.buttons) this.schedule(stepAt(event), event.clientX, event.clientY);
      else this.hide();
    });
    area.addEventListener("focusin", (event) => {
      if (!event.target.matches(":focus-visible")) return;
      const box = event.target.getBoundingClientRect();
      this.schedule(stepAt(event), Math.min(box.right, box.left + 240), box.bottom - GAP);
    });
    for (const name of ["pointerleave", "pointerdown", "wheel", "focusout", "keydown"])
      area.addEventListener(name, () => this.hide(), { passive: true });
  }

  schedule(target, x, y) {
    if (!target) return this.hide();
    const isShown = this.target?.step === target.step && !this.card.hidden;
    this.target = target;
    clearTimeout(this.timer);
    if (isShown) this.moveTo(x, y);
    else {
      this.card.hidden = true;
      this.timer = setTimeout(() => this.show(target, x, y), DELAY_MS);
    }
  }

  show({ run, step }, x, y) {
    const ms = elapsedMs(step, run.origin, Date.now());
    const offset = step.from !== null && run.from !== null ? step.from - run.from : null;
    const rows = [
      ["Status", status(step.status).label],
      offset !== null && ["Started after", duration(offset)],
      ms !== null && ["Duration", duration(ms)],
      attemptNumber(step) && ["Attempt", attemptNumber(step)],
    ].filter(Boolean);
    replace(
      this.card,
      h("p", { class: "tooltip-name" }, statusIcon(step.status, 14), h("bdi", { class: "clamped" }, stepTitle(step))),
      h(
        "dl",
        {},
        rows.map(([name, value]) => [h("dt", {}, name), h("dd", { class: "tabular-nums" }, value)]),
      ),
      step.error && h("p", { class: "tooltip-error clamped", dir: "auto" }, errorText(step.error)),
    );
    this.card.hidden = false;
    this.moveTo(x, y);
  }

  moveTo(x, y) {
    const { offsetWidth, offsetHeight } = this.card;
    const left = x + GAP + offsetWidth > innerWidth ? x - GAP - offsetWidth : x + GAP;
    const top = y + GAP + offsetHeight > innerHeight ? y - GAP - offsetHeight : y + GAP;
    this.card.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  hide() {
    clearTimeout(this.timer);
    this.target = null;
    this.card.hidden = true;
  }
}
