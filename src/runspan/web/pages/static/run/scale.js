// The scale of the timeline: ticks with their times at the top, and lines below them.

import { h, replace } from "../dom.js";
import { duration, time } from "../format.js";
import { epoch } from "./times.js";

const ROOM = 40;

/** A round length of time without what is always zero: 5 s, not 5.00 s. */
const tickText = (ms) =>
  ms === 0
    ? "0"
    : duration(ms)
        .replace(/\.0+(?= )/, "")
        .replace(/ (00 m|00 s|0 h)$/, "");

/** `element` has the ticks, `lines` the lines; a drag along the scale calls `pan` with pixels. */
export class Scale {
  constructor({ pan }) {
    this.element = h("div", { class: "timeline-scale", "aria-hidden": "true" });
    this.lines = h("div", { class: "timeline-lines", "aria-hidden": "true" });
    this.followDrag(pan);
  }

  /** Draws the part of time that `axis` shows; times are counted from the run's start. */
  paint(axis, run) {
    const ticks = axis.ticks(run.from ?? axis.first);
    const isWhole = ({ time: at }) => axis.at(at) < axis.width - ROOM;
    const placed = (element, at) => {
      element.style.transform = `translateX(${axis.at(at)}px)`;
      return element;
    };
    const mark = ({ time: at, after }) => {
      const moment = run.zero ? time(epoch(run.zero) + at) : null;
      return placed(h("span", { class: "tick numbers", title: moment }, tickText(after)), at);
    };
    replace(this.element, ticks.filter(isWhole).map(mark));
    replace(
      this.lines,
      ticks.map(({ time: at }) => placed(h("i"), at)),
    );
  }

  followDrag(pan) {
    let last = null;
    this.element.addEventListener("pointerdown", (event) => {
      last = event.clientX;
      this.element.setPointerCapture(event.pointerId);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (last === null) return;
      pan(last - event.clientX);
      last = event.clientX;
    });
    const end = () => {
      last = null;
    };
    this.element.addEventListener("pointerup", end);
    this.element.addEventListener("pointercancel", end);
  }
}
