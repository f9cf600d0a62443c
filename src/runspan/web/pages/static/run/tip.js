// Details of the step under the pointer or with the focus, in a small card beside it. Screen readers have them already.

import { h, replace } from "../dom.js";
import { duration, status, statusIcon } from "../format.js";
import { elapsed } from "./facts.js";
import { attemptOf, faultText, titleOf } from "./words.js";

const WAIT = 300;
const GAP = 14;

/** Shows a card over `area` for what `stepAt(event)` says: {run, step}, or null for nothing. */
export class Tip {
  constructor(area, stepAt) {
    this.card = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.timer = 0;
    document.body.append(this.card);
    area.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && !event.buttons) this.plan(stepAt(event), event.clientX, event.clientY);
      else this.hide();
    });
    area.addEventListener("focusin", (event) => {
      if (!event.target.matches(":focus-visible")) return;
      const box = event.target.getBoundingClientRect();
      this.plan(stepAt(event), Math.min(box.right, box.left + 240), box.bottom - GAP);
    });
    for (const name of ["pointerleave", "pointerdown", "wheel", "focusout", "keydown"])
      area.addEventListener(name, () => this.hide(), { passive: true });
  }

  plan(found, x, y) {
    if (!found) return this.hide();
    const isSame = this.shown?.step === found.step && !this.card.hidden;
    this.shown = found;
    clearTimeout(this.timer);
    if (isSame) this.place(x, y);
    else {
      this.card.hidden = true;
      this.timer = setTimeout(() => this.show(found, x, y), WAIT);
    }
  }

  show({ run, step }, x, y) {
    const took = elapsed(step, run.zero, Date.now());
    const after = step.from !== null && run.from !== null ? step.from - run.from : null;
    const rows = [
      ["Status", status(step.status).label],
      after !== null && ["Began after", duration(after)],
      took !== null && ["Took", duration(took)],
      attemptOf(step) && ["Attempt", attemptOf(step).replace("attempt ", "")],
    ].filter(Boolean);
    replace(
      this.card,
      h("p", { class: "tip-name" }, statusIcon(step.status, 14), h("bdi", { class: "clamped" }, titleOf(step))),
      h(
        "dl",
        {},
        rows.map(([name, value]) => [h("dt", {}, name), h("dd", { class: "numbers" }, value)]),
      ),
      step.error && h("p", { class: "tip-error clamped", dir: "auto" }, faultText(step.error)),
    );
    this.card.hidden = false;
    this.place(x, y);
  }

  place(x, y) {
    const { offsetWidth, offsetHeight } = this.card;
    const left = x + GAP + offsetWidth > innerWidth ? x - GAP - offsetWidth : x + GAP;
    const top = y + GAP + offsetHeight > innerHeight ? y - GAP - offsetHeight : y + GAP;
    this.card.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  hide() {
    clearTimeout(this.timer);
    this.shown = null;
    this.card.hidden = true;
  }
}
