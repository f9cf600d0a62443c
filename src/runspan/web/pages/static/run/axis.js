// The time axis of the timeline: which stretch of time is in sight, and where its ticks are. Pure.

import { tickStep } from "./times.js";

const CLOSEST = 0.00001;

/** A window [from, to] in milliseconds on the whole time [first, last], `width` pixels wide. */
export class Axis {
  constructor() {
    Object.assign(this, { first: 0, last: 1, from: 0, to: 1, width: 1 });
  }

  /** The whole time; the window grows with it as long as it showed everything. */
  setWhole(first, last) {
    const isWhole = this.isWhole;
    const end = Math.max(last, first + 1e-5);
    Object.assign(this, { first, last: end });
    if (isWhole) this.fit();
    else this.settle();
  }

  get isWhole() {
    return this.from <= this.first && this.to >= this.last;
  }

  fit() {
    this.from = this.first;
    this.to = this.last;
  }

  /** The pixel of a time. */
  at(time) {
    return ((time - this.from) / (this.to - this.from)) * this.width;
  }

  /** The time under a pixel. */
  timeAt(px) {
    return this.from + (px / this.width) * (this.to - this.from);
  }

  zoomBy(factor, px = this.width / 2) {
    const fixed = this.timeAt(px);
    const whole = this.last - this.first;
    const length = Math.min(Math.max((this.to - this.from) / factor, whole * CLOSEST), whole);
    this.from = fixed - (px / this.width) * length;
    this.to = this.from + length;
    this.settle();
  }

  pan(px) {
    const time = (px / this.width) * (this.to - this.from);
    this.from += time;
    this.to += time;
    this.settle();
  }

  settle() {
    const length = Math.min(this.to - this.from, this.last - this.first);
    this.from = Math.min(Math.max(this.from, this.first), this.last - length);
    this.to = this.from + length;
  }

  /** The ticks in sight, about every `apart` pixels: times counted from `zero`. */
  ticks(zero, apart = 90) {
    const step = tickStep(((this.to - this.from) / this.width) * apart);
    const ticks = [];
    for (let count = Math.ceil((this.from - zero) / step); zero + count * step <= this.to; count += 1) {
      ticks.push({ time: zero + count * step, after: count * step });
      if (ticks.length > 200) break;
    }
    return ticks;
  }
}

/** Bars of one status less than `least` pixels apart, as one: [{from, to, status}] in pixels, in order of time. */
export function merged(bars, least) {
  const found = [];
  for (const bar of bars) {
    const last = found.at(-1);
    if (last && bar.from - last.to < least && last.status === bar.status) last.to = Math.max(last.to, bar.to);
    else found.push({ from: bar.from, to: bar.to, status: bar.status });
  }
  return found;
}
