// Charts of statistics over time. A table next to each has the same numbers.

import { s } from "../dom.js";

const HEIGHT = 96;
const MIN_WIDTH = 200;
const MAX_BAR_WIDTH = 64;
const TICK_WIDTH = 110;
const LABEL_WIDTH = 70;

/**
 * Return a chart of stacked bars.
 *
 * @param {object} chart
 * @param {string} chart.label - What it shows, for those who do not see it.
 * @param {{label: string, parts: {value: number, css: string, text: string}[]}[]} chart.bars - From the left; the parts
 *   from below. css: a class that sets --status.
 * @param {number} chart.width - Pixels.
 */
export function barChart({ label, bars, width }) {
  const wide = Math.max(width, MIN_WIDTH);
  const max = Math.max(...bars.map(({ parts }) => parts.reduce((sum, { value }) => sum + value, 0))) || 1;
  const barWidth = wide / bars.length;
  const drawnWidth = Math.min(barWidth, MAX_BAR_WIDTH);
  const gap = Math.min(2, barWidth * 0.2);
  const interval = Math.max(1, Math.ceil((bars.length * TICK_WIDTH) / wide));
  const groups = bars.map((bar, index) => {
    let top = HEIGHT;
    const parts = bar.parts
      .filter(({ value }) => value > 0)
      .map(({ value, css }) => {
        const height = Math.max((value / max) * (HEIGHT - 4), 1.5);
        top -= height;
        const box = {
          x: index * barWidth + gap / 2,
          y: Math.max(top, 0),
          width: Math.max(drawnWidth - gap, 1),
          height,
        };
        return s("rect", { ...box, class: `bar-part ${css}` });
      });
    const hover = s("rect", { x: index * barWidth, y: 0, width: barWidth, height: HEIGHT, class: "bar-hover" });
    const texts = bar.parts.filter(({ value }) => value > 0).map(({ text }) => text);
    return s("g", {}, s("title", {}, `${bar.label}: ${texts.join(", ") || "nothing"}`), hover, parts);
  });
  const ticks = bars.flatMap((bar, index) => {
    const x = index * barWidth;
    if (index % interval || x > wide - LABEL_WIDTH) return [];
    return s("text", { x, y: HEIGHT + 16, class: "tick" }, bar.label);
  });
  return s(
    "svg",
    { class: "bar-chart", viewBox: `0 0 ${wide} ${HEIGHT + 22}`, role: "img", "aria-label": label },
    s("line", { x1: 0, x2: wide, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5, class: "axis" }),
    groups,
    ticks,
  );
}

const TREND_WIDTH = 96;
const TREND_HEIGHT = 24;

/**
 * Return a small chart of counts: bars of runs, the failed ones marked.
 *
 * @param {{total: number, failed: number}[]} counts - From the left.
 * @param {string} label - What it shows, for those who do not see it.
 */
export function trend(counts, label) {
  const max = Math.max(...counts.map(({ total }) => total)) || 1;
  const width = TREND_WIDTH / counts.length;
  const bar = (index, value, css) => {
    const height = value && Math.max((value / max) * TREND_HEIGHT, 1);
    const x = index * width;
    return s("rect", {
      x,
      y: TREND_HEIGHT - height,
      width: Math.max(width - 0.5, 0.8),
      height,
      class: `bar-part ${css}`,
    });
  };
  return s(
    "svg",
    {
      class: "trend",
      width: TREND_WIDTH,
      height: TREND_HEIGHT,
      viewBox: `0 0 ${TREND_WIDTH} ${TREND_HEIGHT}`,
      role: "img",
      "aria-label": label,
    },
    s("title", {}, label),
    s("line", { x1: 0, x2: TREND_WIDTH, y1: TREND_HEIGHT - 0.5, y2: TREND_HEIGHT - 0.5, class: "axis" }),
    counts.map(({ total, failed }, index) => [
      total > 0 && bar(index, total, "status-completed"),
      failed > 0 && bar(index, failed, "status-failed"),
    ]),
  );
}
