// The timeline: steps as bars over time, in rows of which only those in sight are elements.

import { h, replace } from "../dom.js";
import { number, status, statusIcon } from "../format.js";
import { Axis } from "./axis.js";
import { barElements, spanOf } from "./bars.js";
import { hasEnded } from "./document.js";
import { icon } from "./icons.js";
import { keepInOrder } from "./kept.js";
import { rowsOf } from "./lanes.js";
import { chiefOf, statusOf } from "./node.js";
import { watchPress } from "./pointer.js";
import { Scale } from "./scale.js";
import { epoch } from "./times.js";
import { Tip } from "./tip.js";
import { nameOf, titleOf } from "./words.js";

const ROW = 32;
const AROUND = 6;

/** `element` is the view. `select` is called with a step's position when a reader opens it. */
export class Timeline {
  constructor({ select }) {
    Object.assign(this, {
      select,
      selected: null,
      open: new Set(),
      stop: null,
      frame: 0,
      anew: false,
      made: new Map(),
    });
    this.axis = new Axis();
    this.scale = new Scale({ pan: (px) => this.pan(px) });
    this.sheet = h("div", {
      class: "timeline-sheet",
      role: "tree",
      "aria-label": "Steps in the order of time. Enter opens one.",
    });
    this.area = h(
      "div",
      { class: "timeline-area", onscroll: () => this.render(), onkeydown: (event) => this.onKey(event) },
      this.scale.lines,
      this.sheet,
    );
    this.corner = h("div", { class: "timeline-corner" });
    this.element = h(
      "div",
      { class: "timeline" },
      h("div", { class: "timeline-head" }, this.corner, this.scale.element),
      this.area,
      this.tools(),
    );
    this.area.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.press = watchPress(this.area, () => this.render());
    this.tip = new Tip(this.area, (event) => this.stepAt(event));
    new ResizeObserver(() => this.resize()).observe(this.area);
  }

  tools() {
    const tool = (name, label, act) =>
      h("button", { class: "tool small", type: "button", title: label, "aria-label": label, onclick: act }, icon(name));
    return h(
      "div",
      { class: "canvas-tools", role: "group", "aria-label": "Zoom in time" },
      tool("minus", "Zoom out (−)", () => this.zoomBy(1 / 1.6)),
      tool("plus", "Zoom in (+)", () => this.zoomBy(1.6)),
      tool("fit", "The whole time (f)", () => this.fit()),
    );
  }

  /** Shows a run, with a step selected or none. What a reader zoomed and opened stays. */
  show(run, selected) {
    const isMoved = this.selected !== selected || this.run === undefined;
    const isNew = this.run !== run;
    Object.assign(this, { run, selected });
    if (isNew) this.arrange();
    if (isMoved && selected !== null) this.reveal(selected);
    this.render(true);
  }

  arrange() {
    this.rows = rowsOf(this.run.steps, this.open);
    this.now = Date.now();
    const times = this.run.steps.filter((step) => step.from !== null);
    const first = times.reduce((least, step) => Math.min(least, step.from), this.run.from ?? Infinity);
    const known = times.reduce((most, step) => Math.max(most, step.to ?? step.from), this.run.to ?? this.run.from ?? 0);
    this.last = this.endOf(first, known);
    this.axis.setWhole(first === Infinity ? 0 : first, this.last);
    this.sheet.style.height = `${this.rows.length * ROW + 48}px`;
    replace(this.corner, `${number(this.run.steps.length)} step${this.run.steps.length === 1 ? "" : "s"}`);
    if (!this.rows.some((row) => row.key === this.stop)) this.stop = this.rows[0]?.key ?? null;
  }

  /** Where the time ends: now for what goes on, unless that would leave nothing of what is known to see. */
  endOf(first, known) {
    if (hasEnded(this.run.status) || !this.run.zero) return known;
    const now = this.now - epoch(this.run.zero);
    const length = Math.max(known - first, 1);
    this.isStale = now - first > 30 * length;
    return this.isStale ? known + length * 0.3 : Math.max(now, known);
  }

  reveal(index) {
    let at = this.rows.findIndex(
      (row) => row.steps.includes(index) && (row.kind !== "loop" || !this.open.has(row.key)),
    );
    if (at < 0) at = this.rows.findIndex((row) => row.steps.includes(index));
    if (at < 0) return;
    this.stop = this.rows[at].key;
    this.scrollTo(at);
  }

  scrollTo(at) {
    const { scrollTop, clientHeight } = this.area;
    if (!clientHeight) {
      this.wanted = at;
      return;
    }
    const top = at * ROW;
    if (top < scrollTop || top + ROW > scrollTop + clientHeight)
      this.area.scrollTop = Math.max(0, top - clientHeight / 3);
  }

  resize() {
    const { clientWidth } = this.area;
    if (!clientWidth) return;
    const label = this.corner.getBoundingClientRect().width;
    this.axis.width = Math.max(60, clientWidth - label - 16);
    this.element.style.setProperty("--label", `${label}px`);
    if (this.wanted !== undefined) this.scrollTo(this.wanted);
    this.wanted = undefined;
    this.render(true);
  }

  zoomBy(factor, px) {
    this.axis.zoomBy(factor, px);
    this.render(true);
  }

  fit() {
    this.axis.fit();
    this.render(true);
  }

  /** Brings what grows with the clock up to now. */
  tick() {
    if (!this.run || hasEnded(this.run.status) || !this.area.clientHeight) return;
    this.arrange();
    this.render(true);
  }

  render(anew = false) {
    this.anew ||= anew;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.rows || !this.area.clientHeight || this.press.isDown) return;
    const first = Math.max(0, Math.floor(this.area.scrollTop / ROW) - AROUND);
    const last = Math.min(this.rows.length, Math.ceil((this.area.scrollTop + this.area.clientHeight) / ROW) + AROUND);
    if (this.anew) this.scale.paint(this.axis, this.run);
    const had = this.sheet.contains(document.activeElement);
    const stop = this.rows.findIndex((row) => row.key === this.stop);
    const made = new Map();
    const wanted = Array.from({ length: Math.max(0, last - first) }, (_, place) => first + place);
    if (stop >= 0 && stop < first) wanted.unshift(stop);
    if (stop >= last) wanted.push(stop);
    for (const at of wanted) {
      const row = this.rows[at];
      made.set(row.key, (!this.anew && this.made.get(row.key)) || this.rowElement(row, at));
    }
    this.made = keepInOrder(this.sheet, this.made, made);
    this.anew = false;
    if (had && !this.sheet.contains(document.activeElement)) made.get(this.stop)?.focus({ preventScroll: true });
  }

  rowElement(row, at) {
    const { run } = this;
    const chief = run.steps[chiefOf(row, run)];
    const value = statusOf(row, run);
    const isChosen = row.steps.includes(this.selected) && !(row.kind === "loop" && this.open.has(row.key));
    const element = h(
      "div",
      {
        class: `timeline-row ${row.kind}${isChosen ? " chosen" : ""}`,
        role: "treeitem",
        "aria-level": row.level,
        "aria-posinset": at + 1,
        "aria-setsize": this.rows.length,
        "aria-selected": String(isChosen),
        "aria-expanded": row.kind === "loop" ? String(this.open.has(row.key)) : null,
        "aria-label": this.labelOf(row, chief, value),
        tabindex: row.key === this.stop ? "0" : "-1",
        dataset: { at },
        onclick: (event) => this.onClick(event, row, chief),
      },
      h("div", { class: "timeline-label" }, this.labelNodes(row, chief, value)),
      h(
        "div",
        { class: "timeline-track", "aria-hidden": "true" },
        barElements(row, { run, axis: this.axis, last: this.last, now: this.now, selected: this.selected }),
        this.untimed(row),
      ),
    );
    element.style.transform = `translateY(${at * ROW}px)`;
    element.style.setProperty("--level", row.level - 1);
    return element;
  }

  labelOf(row, chief, value) {
    if (row.kind !== "loop")
      return row.kind === "round"
        ? `Execution ${row.round}, ${nameOf(chief, this.run.zero, this.now)}`
        : nameOf(chief, this.run.zero, this.now);
    return `${titleOf(chief)}, ${number(row.steps.length)} executions, ${status(value).label.toLowerCase()}`;
  }

  labelNodes(row, chief, value) {
    const toggle = row.kind === "loop" && h("span", { class: "timeline-toggle", "aria-hidden": "true" });
    const name =
      row.kind === "round"
        ? h("span", { class: "numbers" }, `Execution ${number(row.round)}`)
        : h("bdi", { class: "timeline-name", title: titleOf(chief) }, titleOf(chief));
    return [
      toggle,
      statusIcon(value),
      name,
      row.kind === "loop" && h("span", { class: "timeline-count numbers" }, `×${number(row.steps.length)}`),
    ];
  }

  untimed(row) {
    if (row.steps.some((index) => spanOf(this.run.steps[index], this.last))) return null;
    return h("span", { class: "bar-text numbers none" }, status(statusOf(row, this.run)).label.toLowerCase());
  }

  onClick(event, row, chief) {
    this.stop = row.key;
    if (event.target.closest(".timeline-toggle")) this.toggle(row);
    else this.select(this.executionAt(event, row) ?? chief.index);
  }

  /** What the card at the pointer tells of. */
  stepAt(event) {
    const element = event.target.closest?.(".timeline-row");
    const row = element && this.rows[Number(element.dataset.at)];
    if (!row) return null;
    return { run: this.run, step: this.run.steps[this.executionAt(event, row) ?? chiefOf(row, this.run)] };
  }

  /** Of a loop's executions the one under the pointer. */
  executionAt(event, row) {
    if (row.kind !== "loop" || !event.target.closest(".timeline-track")) return null;
    const box = event.target.closest(".timeline-track").getBoundingClientRect();
    const at = this.axis.timeAt(event.clientX - box.left);
    const near = row.steps.filter((index) => this.run.steps[index].from !== null);
    const away = (index) => {
      const { from, to } = spanOf(this.run.steps[index], this.last);
      return at < from ? from - at : Math.max(0, at - to);
    };
    return near.reduce((best, index) => (best === null || away(index) < away(best) ? index : best), null);
  }

  toggle(row) {
    if (this.open.has(row.key)) this.open.delete(row.key);
    else this.open.add(row.key);
    this.arrange();
    this.render(true);
  }

  onKey(event) {
    const at = this.rows.findIndex((row) => row.key === this.stop);
    const row = this.rows[at];
    if (!row || !event.target.closest(".timeline-row") || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.area.clientHeight / ROW) - 1);
    const to = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: this.rows.length - 1,
    }[event.key];
    if (to !== undefined) this.goToRow(Math.min(Math.max(to, 0), this.rows.length - 1));
    else if (event.key === "Enter" || event.key === " ") this.select(chiefOf(row, this.run));
    else if (event.key === "ArrowRight" && row.kind === "loop" && !this.open.has(row.key)) this.toggle(row);
    else if (event.key === "ArrowLeft" && row.kind === "loop" && this.open.has(row.key)) this.toggle(row);
    else if (event.key === "ArrowLeft" && row.kind === "round") this.goToRow(at - row.round);
    else return;
    event.preventDefault();
  }

  goToRow(at) {
    this.stop = this.rows[at].key;
    this.scrollTo(at);
    this.anew = true;
    this.paint();
    this.made.get(this.stop)?.focus({ preventScroll: true });
  }

  onWheel(event) {
    const across = event.shiftKey ? event.deltaX || event.deltaY : event.deltaX;
    const left = this.area.getBoundingClientRect().left + this.corner.getBoundingClientRect().width;
    if (event.ctrlKey || event.metaKey) this.zoomBy(Math.exp(-event.deltaY / 240), Math.max(0, event.clientX - left));
    else if (across && Math.abs(across) > Math.abs(event.shiftKey ? 0 : event.deltaY) && !this.axis.isWhole)
      this.pan(across);
    else return;
    event.preventDefault();
  }

  pan(px) {
    this.axis.pan(px);
    this.render(true);
  }
}
