// The time axis of the timeline: the visible part of the time range, and the ticks and grid lines that show it.

import { h, replace } from "../dom.js";
import { duration, time } from "../format.js";
import { toEpochMs } from "../instants.js";

const MIN_RANGE = 1e-5; // milliseconds
const MAX_ZOOM = 100_000;
const MAX_TICKS = 200;
const TICK_SPACING = 90; // pixels
const MIN_LABEL_ROOM = 40; // pixels that a label needs before the end of the axis
const DECIMAL_STEPS = [1, 2, 5];
const CLOCK_STEPS = [
  1e3, 2e3, 5e3, 1e4, 1.5e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 9e5, 1.8e6, 3.6e6, 7.2e6, 1.08e7, 2.16e7, 4.32e7,
];
const MAX_DECIMAL_STEP = 500;
const DAY = 8.64e7;

/**
 * Return the interval between ticks in milliseconds: a round number of the unit that people use for such intervals.
 *
 * @param {number} min - Lower limit in milliseconds.
 */
export function tickStep(min) {
  const decimalStep = (unit) => {
    const power = 10 ** Math.floor(Math.log10(Math.max(min / unit, 1e-9)));
    const factor = DECIMAL_STEPS.find((one) => one * power * unit >= min) ?? 10;
    return factor * power * unit;
  };
  if (!(min > 0)) return 1;
  if (min <= MAX_DECIMAL_STEP) return decimalStep(1);
  return CLOCK_STEPS.find((step) => step >= min) ?? decimalStep(DAY);
}

/** The visible window from `from` to `to` of the range from `first` to `last`, in milliseconds; `width` pixels wide. */
export class TimeAxis {
  constructor() {
    Object.assign(this, { first: 0, last: 1, from: 0, to: 1, width: 1 });
  }

  /**
   * Set the range. A window that showed the entire range grows with it.
   *
   * @param {number} first - Start in milliseconds.
   * @param {number} last - End in milliseconds.
   */
  setRange(first, last) {
    const { isFitted } = this;
    Object.assign(this, { first, last: Math.max(last, first + MIN_RANGE) });
    if (isFitted) this.fit();
    else this.constrain();
  }

  /** Whether the window shows the entire range. */
  get isFitted() {
    return this.from <= this.first && this.to >= this.last;
  }

  /** Show the entire range. */
  fit() {
    this.from = this.first;
    this.to = this.last;
  }

  /**
   * Return the pixel of a time.
   *
   * @param {number} ms - The time in milliseconds.
   */
  toPixel(ms) {
    return ((ms - this.from) / (this.to - this.from)) * this.width;
  }

  /**
   * Return the time at a pixel, in milliseconds.
   *
   * @param {number} px - The pixel.
   */
  toTime(px) {
    return this.from + (px / this.width) * (this.to - this.from);
  }

  /**
   * Multiply the zoom, keeping the time at a pixel in place.
   *
   * @param {number} factor - The factor.
   * @param {number} [px] - The pixel; the centre by default.
   */
  zoomBy(factor, px = this.width / 2) {
    const fixed = this.toTime(px);
    const range = this.last - this.first;
    const length = Math.min(Math.max((this.to - this.from) / factor, range / MAX_ZOOM), range);
    this.from = fixed - (px / this.width) * length;
    this.to = this.from + length;
    this.constrain();
  }

  /**
   * Move the window.
   *
   * @param {number} px - Pixels to the right.
   */
  pan(px) {
    const ms = (px / this.width) * (this.to - this.from);
    this.from += ms;
    this.to += ms;
    this.constrain();
  }

  /**
   * Return the visible ticks, as {time, offset} in milliseconds.
   *
   * @param {number} origin - The time that offsets are relative to.
   */
  ticks(origin) {
    const step = tickStep(((this.to - this.from) / this.width) * TICK_SPACING);
    const ticks = [];
    for (let count = Math.ceil((this.from - origin) / step); origin + count * step <= this.to; count += 1) {
      ticks.push({ time: origin + count * step, offset: count * step });
      if (ticks.length > MAX_TICKS) break;
    }
    return ticks;
  }

  /** Keep the window within the range. */
  constrain() {
    const length = Math.min(this.to - this.from, this.last - this.first);
    this.from = Math.min(Math.max(this.from, this.first), this.last - length);
    this.to = this.from + length;
  }
}

/** Shows ticks in `element` and grid lines in `gridlines`. */
export class TimeAxisView {
  /**
   * @param {object} actions
   * @param {(px: number) => void} actions.onPan - Called with the pixels by which the user drags the axis.
   */
  constructor({ onPan }) {
    this.element = h("div", { class: "timeline-axis", "aria-hidden": "true" });
    this.gridlines = h("div", { class: "timeline-gridlines", "aria-hidden": "true" });
    this.bindDrag(onPan);
  }

  /**
   * Show an axis, with times relative to the start of the run.
   *
   * @param {TimeAxis} axis - The axis.
   * @param {object} run - The result of indexRun().
   */
  render(axis, run) {
    const ticks = axis.ticks(run.from ?? axis.first);
    const placeAt = (element, ms) => {
      element.style.transform = `translateX(${axis.toPixel(ms)}px)`;
      return element;
    };
    const labels = ticks
      .filter((tick) => axis.toPixel(tick.time) < axis.width - MIN_LABEL_ROOM)
      .map((tick) => {
        const title = run.origin ? time(toEpochMs(run.origin) + tick.time) : null;
        return placeAt(h("span", { class: "tick tabular-nums", title }, offsetText(tick.offset)), tick.time);
      });
    replace(this.element, labels);
    replace(
      this.gridlines,
      ticks.map((tick) => placeAt(h("i"), tick.time)),
    );
  }

  bindDrag(onPan) {
    let last = null;
    this.element.addEventListener("pointerdown", (event) => {
      last = event.clientX;
      this.element.setPointerCapture(event.pointerId);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (last === null) return;
      onPan(last - event.clientX);
      last = event.clientX;
    });
    const end = () => {
      last = null;
    };
    this.element.addEventListener("pointerup", end);
    this.element.addEventListener("pointercancel", end);
  }
}

/** A round duration without zeros at its end: 5 s, not 5.00 s. */
function offsetText(ms) {
  if (ms === 0) return "0";
  return duration(ms)
    .replace(/\.0+(?= )/, "")
    .replace(/ (00 m|00 s|0 h)$/, "");
}
