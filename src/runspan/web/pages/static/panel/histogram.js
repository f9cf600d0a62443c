// Histogram of runs over time, stacked by status, with its counts as filter buttons and as a table.

import { getJson } from "../api.js";
import { h, replace, s } from "../dom.js";
import { number, status, statusIcon } from "../format.js";
import { binRuns } from "./histogram-bins.js";
import { startRange } from "./time-range.js";

const ORDER = ["completed", "other", "cancelled", "pending", "running", "suspended", "timed_out", "failed"]; // upwards
const HEIGHT = 72;
const PADDING = 32;
const MIN_WIDTH = 200;
const MIN_BIN_WIDTH = 9;
const MAX_BINS = 60;
const TICK_WIDTH = 110;
const REFRESH_INTERVAL_FACTOR = 20; // spend at most a twentieth of the time on counting

/** The label of a status. All unknown statuses are counted as "other". */
const labelOf = (key) => (key === "other" ? "Other" : status(key).label);

/** Loads and draws the histogram. */
export class Histogram {
  /**
   * @param {HTMLElement} container - The element to draw into.
   * @param {object} actions
   * @param {(status: string) => void} actions.onStatus - Called with the status to filter by, "" for all statuses.
   * @param {(from: number, to: number) => void} actions.onRange - Called with the times in which runs started, in
   *   milliseconds since 1970, to filter by.
   */
  constructor(container, { onStatus, onRange }) {
    Object.assign(this, { container, onStatus, onRange });
    this.isTableOpen = false;
    this.loading = null;
    this.nextRefresh = 0; // in the time of performance.now()
    this.timer = 0;
    this.isOutdated = false;
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 4) return;
      width = entry.contentRect.width;
      if (this.data) this.draw();
    }).observe(container);
  }

  /**
   * Load the counts again if the list has changed since they were loaded. Wait if the last time was too recent for what
   * counting costs.
   *
   * @param {object} parameters - Query parameters of the list.
   * @param {boolean} hasChanged - Whether the list has changed since the last call.
   */
  refresh(parameters, hasChanged) {
    this.isOutdated ||= hasChanged;
    if (!this.isOutdated) return;
    clearTimeout(this.timer);
    const load = () => document.hidden || this.load(parameters, { isRefresh: true });
    this.timer = setTimeout(load, Math.max(0, this.nextRefresh - performance.now()));
  }

  /**
   * Load the counts and draw them.
   *
   * @param {object} parameters - Query parameters of the list.
   * @param {{isRefresh?: boolean}} [options] - isRefresh: show no placeholder while loading.
   */
  async load(parameters, { isRefresh = false } = {}) {
    clearTimeout(this.timer);
    this.isOutdated = false;
    const started = performance.now();
    this.loading?.abort();
    const controller = (this.loading = new AbortController());
    this.parameters = parameters;
    if (!isRefresh && !this.data) {
      this.container.hidden = false;
      replace(this.container, h("div", { class: "histogram-loading" }, h("span", { class: "skeleton" })));
    }
    const { limit, ...filters } = parameters;
    try {
      const { body } = await getJson("/pages/spread", filters, { signal: controller.signal });
      this.data = { ...body.data, isPartial: body.meta.partial.length > 0 };
      this.nextRefresh = performance.now() + REFRESH_INTERVAL_FACTOR * (performance.now() - started);
      suggestWorkflows(body.data.workflows);
      this.draw();
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      this.data = null;
      this.container.hidden = error.status === 400; // the list reports an invalid query
      replace(this.container, h("p", { class: "muted" }, `No chart: ${error.title}. ${error.hint}`));
    }
  }

  draw() {
    const { data } = this;
    this.container.hidden = data.times.length + data.undated === 0;
    if (this.container.hidden) return;
    const width = Math.max(this.container.clientWidth - PADDING, MIN_WIDTH);
    const range = startRange(this.parameters, new Date());
    const histogram = binRuns(data, range, Math.min(MAX_BINS, Math.floor(width / MIN_BIN_WIDTH)));
    replace(
      this.container,
      this.header(),
      histogram.bins.length > 0 && this.chart(histogram, width),
      histogram.before > 0 && h("p", { class: "muted before" }, beforeText(histogram.before)),
      this.table(histogram),
    );
  }

  header() {
    const { data } = this;
    const count = data.times.length + data.undated;
    const runs = `${number(count)} ${count === 1 ? "run" : "runs"}`;
    const title = data.isPartial ? `${runs} (incomplete)` : data.whole ? runs : `The newest ${runs}`;
    const totals = new Map();
    for (const index of data.statuses) totals.set(data.names[index], (totals.get(data.names[index]) || 0) + 1);
    const chips = ORDER.toReversed()
      .filter((key) => totals.get(key))
      .map((key) => this.chip(key, totals.get(key)));
    return h("div", { class: "histogram-header" }, h("h2", {}, title), h("div", { class: "chips" }, chips));
  }

  chip(key, count) {
    const content = [
      statusIcon(key, 14),
      h("span", {}, labelOf(key)),
      h("b", { class: "tabular-nums" }, number(count)),
    ];
    if (key === "other") return h("span", { class: "chip status-other" }, content);
    const isPressed = this.parameters.status === key;
    return h(
      "button",
      {
        class: `chip status-${key}`,
        type: "button",
        "aria-pressed": String(isPressed),
        title: isPressed ? "Show all statuses" : "Show only this status",
        onclick: () => this.onStatus(isPressed ? "" : key),
      },
      content,
    );
  }

  chart({ bins, length, label, ticks }, width) {
    const max = Math.max(...bins.map((bin) => bin.total), 1);
    const binWidth = width / bins.length;
    const bars = bins.map((bin, index) => barGroup(bin, { x: index * binWidth, width: binWidth, max, label }));
    const tickLabels = ticks(Math.max(2, Math.floor(width / TICK_WIDTH))).map(({ at, text }) =>
      s("text", { x: at * width, y: HEIGHT + 16, class: "tick", "text-anchor": at > 0.94 ? "end" : "start" }, text),
    );
    const hatch = s(
      "pattern",
      { id: "hatch", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      s("line", { x1: 0, y1: 0, x2: 0, y2: 4, class: "hatch-line" }),
    );
    const chart = s(
      "svg",
      {
        class: "histogram-chart",
        width,
        height: HEIGHT + 22,
        viewBox: `0 0 ${width} ${HEIGHT + 22}`,
        role: "img",
        "aria-label": `Runs over time, ${bins.length} bars of ${length}; the table below has the same counts`,
      },
      s("defs", {}, hatch),
      s("line", { x1: 0, x2: width, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5, class: "axis" }),
      bars,
      tickLabels,
    );
    this.brush(chart, bins);
    return chart;
  }

  /** Let a drag over the bars, or a click on one, choose a range of time. */
  brush(chart, bins) {
    const indexAt = (event) => {
      const box = chart.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      return Math.max(0, Math.min(bins.length - 1, Math.floor(share * bins.length)));
    };
    let first = null;
    const mark = s("rect", { y: 0, height: HEIGHT, class: "brush" });
    chart.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      first = indexAt(event);
      chart.setPointerCapture(event.pointerId);
      event.preventDefault(); // no selection of text
    });
    chart.addEventListener("pointermove", (event) => {
      if (first === null) return;
      const [low, high] = ordered(first, indexAt(event));
      const width = chart.viewBox.baseVal.width / bins.length;
      mark.setAttribute("x", low * width);
      mark.setAttribute("width", (high - low + 1) * width);
      chart.append(mark);
    });
    chart.addEventListener("pointerup", (event) => {
      if (first === null) return;
      const [low, high] = ordered(first, indexAt(event));
      this.onRange(bins[low].from, bins[high].to);
    });
    const stop = () => {
      first = null;
      mark.remove();
    };
    chart.addEventListener("lostpointercapture", stop);
  }

  table({ bins, label }) {
    const keys = ORDER.toReversed().filter((key) => bins.some((bin) => bin.counts.get(key)));
    const rows = bins.filter((bin) => bin.total).toReversed();
    const { undated } = this.data;
    const table = h(
      "table",
      { class: "counts" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "From"),
          keys.map((key) => h("th", { scope: "col", class: "number" }, labelOf(key))),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((bin) =>
          h(
            "tr",
            {},
            h(
              "th",
              { scope: "row" },
              h(
                "button",
                {
                  class: "link-button",
                  type: "button",
                  title: "Show only the runs of this time",
                  onclick: () => this.onRange(bin.from, bin.to),
                },
                label(bin.from),
              ),
            ),
            keys.map((key) => h("td", { class: "number" }, number(bin.counts.get(key) || 0))),
          ),
        ),
      ),
    );
    const onToggle = (event) => (this.isTableOpen = event.target.open);
    return h(
      "details",
      { class: "histogram-table", open: this.isTableOpen, ontoggle: onToggle },
      h("summary", {}, "As a table"),
      undated > 0 && h("p", { class: "muted" }, `${number(undated)} runs have no start time and are not in the chart.`),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Counts" }, table),
    );
  }
}

/** The stacked bar of a bin, with a tooltip. */
function barGroup(bin, { x, width, max, label }) {
  const gap = Math.min(2, width * 0.2);
  let top = HEIGHT;
  const parts = ORDER.filter((key) => bin.counts.get(key)).map((key) => {
    const height = Math.max((bin.counts.get(key) / max) * (HEIGHT - 4), 1.5);
    top -= height;
    const box = { x: x + gap / 2, y: Math.max(top, 0), width: Math.max(width - gap, 1), height };
    return [
      s("rect", { ...box, class: `bar-part status-${key}` }),
      key === "failed" && s("rect", { ...box, class: "hatch" }),
    ];
  });
  const hover = s("rect", { x, y: 0, width, height: HEIGHT, class: "bar-hover" });
  return s("g", {}, s("title", {}, `${label(bin.from)}: ${countsText(bin)}`), hover, parts);
}

const ordered = (one, other) => [Math.min(one, other), Math.max(one, other)];

const beforeText = (count) => `${number(count)} older ${count === 1 ? "run is" : "runs are"} left of the chart`;

function countsText(bin) {
  const parts = ORDER.toReversed()
    .filter((key) => bin.counts.get(key))
    .map((key) => `${number(bin.counts.get(key))} ${labelOf(key).toLowerCase()}`);
  return parts.join(", ") || "no runs";
}

function suggestWorkflows(workflows) {
  const datalist = document.getElementById("workflows");
  if (datalist)
    replace(
      datalist,
      workflows.map((value) => h("option", { value })),
    );
}
